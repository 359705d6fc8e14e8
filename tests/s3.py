"""A bucket on this machine: moto's server, which keeps objects in its memory and knows conditional puts."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@dataclass
class Bucket:
    """A bucket that can be out of reach for a while."""

    name: str
    port: int = 0
    _server: Any = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        """Out of reach; what is in it stays."""
        self._server.stop()

    def keys(self, prefix: str) -> list[str]:
        """The names of the objects that are there."""
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        objects = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.name].keys
        return [key for key in list(objects) if key.startswith(prefix)]


@contextmanager
def bucket(name: str = "rondo") -> Iterator[Bucket]:
    """A bucket on a server; while it runs, the environment names it as S3."""
    made = Bucket(name)
    made.start()
    before = dict(os.environ)
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=made.endpoint)
    request = urllib.request.Request(f"{made.endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request).close()
    try:
        yield made
    finally:
        os.environ.clear()
        os.environ.update(before)
        made.stop()
