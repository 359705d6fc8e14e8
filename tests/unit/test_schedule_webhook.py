"""A webhook is told, whatever it answers, and its address stays a secret."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipelines.schedule import webhook
from stages.base import StageError

EVENT = {"event": "failed", "schedule": "nightly", "reason": "größer als 3 GiB", "tick": 7}
SECRET = "T0KEN"


class Hook:
    """A server that gives the listed answers one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[int] = [200]
        self.headers: dict[str, str] = {}
        self.seen: list[tuple[str, str, dict[str, str], Any]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.seen.append((self.command, self.path, dict(self.headers), json.loads(body)))
                answer = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                if answer == 0:
                    return  # hangs up without a word
                if answer == 1:
                    self.wfile.write(b"no HTTP\r\n\r\n")
                    return
                self.send_response(answer)
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST

            def log_message(self, *words: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/{SECRET}?key={SECRET}"

    @property
    def tries(self) -> int:
        return len(self.seen)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("no_proxy", "*")
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_an_event_arrives_as_json(hook: Hook, waits: list[float]) -> None:
    assert webhook.call(hook.url, EVENT) is None
    [(method, path, headers, body)] = hook.seen
    assert (method, path) == ("POST", f"/hooks/{SECRET}?key={SECRET}")
    assert headers["Content-Type"] == "application/json"
    assert body == EVENT
    assert not any(waits)


@pytest.mark.parametrize("answer", [429, 500, 503, 0, 1])
def test_what_may_pass_is_tried_again(hook: Hook, waits: list[float], answer: int) -> None:
    hook.answers = [answer, answer, 204]
    assert webhook.call(hook.url, EVENT) is None
    assert hook.tries == 3
    assert [wait for wait in waits if wait] == [1, 2]


def test_three_tries_are_enough(hook: Hook, waits: list[float]) -> None:
    hook.answers = [500]
    assert webhook.call(hook.url, EVENT) == "HTTP 500, 3 times"
    assert hook.tries == 3


@pytest.mark.parametrize("answer", [400, 401, 404, 410])
def test_a_refusal_is_final(hook: Hook, waits: list[float], answer: int) -> None:
    hook.answers = [answer]
    assert webhook.call(hook.url, EVENT) == f"HTTP {answer}"
    assert hook.tries == 1


@pytest.mark.parametrize("answer", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(hook: Hook, waits: list[float], answer: int) -> None:
    hook.answers, hook.headers = [answer, 200], {"Location": f"{hook.url}/elsewhere"}
    assert webhook.call(hook.url, EVENT) == f"HTTP {answer}"
    assert hook.tries == 1


def test_a_name_and_a_password_go_into_a_header(hook: Hook, waits: list[float]) -> None:
    assert webhook.call(hook.url.replace("//", "//me:p%40ss@"), EVENT) is None
    [(_, path, headers, _)] = hook.seen
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"me:p@ss"
    assert path.startswith("/hooks/")


def test_nobody_listens(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert webhook.call(f"http://127.0.0.1:{free.getsockname()[1]}/", EVENT) == "connection refused, 3 times"
    assert [wait for wait in waits if wait] == [1, 2]


def test_a_connection_has_a_bounded_time(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []

    def connect(address: object, timeout: float, source: object) -> None:
        allowed.append(timeout)
        raise TimeoutError

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", connect)
    assert webhook.call("http://hooks.example/", EVENT) == "no answer within 10 s, 3 times"
    assert allowed == [10.0] * 3


def test_nobody_answers(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(webhook, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reason = webhook.call(f"http://127.0.0.1:{silent.getsockname()[1]}/", EVENT)
    assert reason == "no answer within 0.05 s, 3 times"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, f"{SECRET} not known"), "its host is unknown"),
        (ssl.SSLCertVerificationError(1, f"not valid for {SECRET}"), "its certificate is not valid"),
        (ssl.SSLError(1, SECRET), "no connection (SSLError)"),
        (ConnectionResetError(104, SECRET), "no connection (ConnectionResetError)"),
    ],
)
def test_trouble_is_told_in_words_without_the_host(
    waits: list[float], monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", connect)
    assert webhook.call(f"http://{SECRET}.example/", EVENT) == f"{words}, 3 times"


def test_the_address_is_in_no_log_and_no_reason(
    hook: Hook, waits: list[float], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    hook.headers = {"Location": hook.url}
    reasons = []
    for answer in (200, 302, 404, 500, 0, 1):
        hook.answers = [answer]
        reasons.append(webhook.call(hook.url, EVENT))
    captured = capfd.readouterr()
    assert hook.tries == 12
    for told in (caplog.text, captured.out, captured.err, repr(reasons)):
        assert SECRET not in told
        assert "127.0.0.1" not in told


def test_the_address_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhook.URL, f" https://hooks.example/{SECRET}\n")
    assert webhook.take() == f"https://hooks.example/{SECRET}"
    assert webhook.URL not in os.environ
    assert webhook.take() is None


def test_an_empty_address_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(webhook.URL, "")
    assert webhook.take() is None


@pytest.mark.parametrize(
    "address",
    [
        f"{SECRET}.example/hook", f"file:///{SECRET}", f"ftp://{SECRET}.example", f"https:///{SECRET}",
        f"https://{SECRET}.example:port/", f"https://[{SECRET}/", f"https://{SECRET}.example/a b",
        f"https://{SECRET}.example/ä", f"https://{SECRET}.example/\tx", f"https://{SECRET}℀.example/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(webhook.URL, address)
    with pytest.raises(StageError, match=webhook.URL) as caught:
        webhook.take()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    assert webhook.URL not in os.environ
