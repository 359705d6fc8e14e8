"""Tells a webhook what happened.

Its address is a secret, since whoever knows it can post there. It is written here by the standard library, because
requests and httpx log the addresses that they call.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from stages.base import StageError

URL = "RONDO_WEBHOOK"
"""The environment variable that holds the address."""
TIMEOUT = 10.0
"""Seconds to wait for a connection, and for an answer."""
_WAITS = (1.0, 2.0)
"""Seconds before the second and the third try."""


def take() -> str | None:
    """The address, which is removed from the environment, so that no process started from here has it.

    Raises:
        StageError: it is no http(s) address. The message does not hold it.
    """
    url = os.environ.pop(URL, "").strip()
    if url and not _is_address(url):
        raise StageError(f"{URL} holds no http:// or https:// address; it is a secret and not shown")
    return url or None


def call(url: str, event: Mapping[str, Any]) -> str | None:
    """Posts ``event`` as JSON. What may pass (no connection, 429, 5xx) is tried three times; no redirect is followed.

    Returns None if it was delivered, else why not, in words without the address.
    """
    request = _request(url, json.dumps(event).encode())
    reason = ""
    for wait in (0.0, *_WAITS):
        time.sleep(wait)
        reason, passing = _try(request)
        if not reason:
            return None
        if not passing:
            return reason
    return f"{reason}, {len(_WAITS) + 1} times"


def _is_address(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its text holds the address; the caller raises after this is over, so that nothing links to it
        return False


def _request(url: str, body: bytes) -> urllib.request.Request:
    """With the name and the password of the address, if it has them, in a header: urllib takes them for the host."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json", "User-Agent": "rondo"}
    login, at, host = parts.netloc.rpartition("@")
    if at:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    return urllib.request.Request(bare, body, headers, method="POST")  # noqa: S310 - take lets only http(s) through


def _opener() -> urllib.request.OpenerDirector:
    """Without handlers of redirects, which would send the event elsewhere, and of files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    return opener


def _try(request: urllib.request.Request) -> tuple[str, bool]:
    """Why it was not delivered, empty if it was, and whether that may pass."""
    try:
        with _opener().open(request, timeout=TIMEOUT):
            return "", False
    except HTTPError as error:
        with error:
            return f"HTTP {error.code}", error.code == 429 or error.code >= 500
    except (OSError, http.client.HTTPException) as error:
        return _words(error.reason if isinstance(error, URLError) else error), True


def _words(error: object) -> str:
    """Never the error's own text, which may hold the host."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return f"no answer within {TIMEOUT:g} s"
        case socket.gaierror():
            return "its host is unknown"
        case ssl.SSLCertVerificationError():
            return "its certificate is not valid"
    return f"no connection ({type(error).__name__})"
