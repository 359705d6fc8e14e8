"""Where artifacts are: a folder of a disk that all see, or a prefix of a bucket (obstore).

Objects are put in place whole or not at all, so nothing is ever moved: who writes takes a place of its own, and a small
JSON object that is written last says what counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from stages.base import StageError
from stages.io import cache

SCHEMES = ("s3", "gs", "az")
_PATIENCE = "RONDO_STORE_PATIENCE"
"""Seconds for which a store that cannot be reached is tried again."""
_RANGE = 64 << 20
"""Bytes that are fetched at a time; each range is tried again on its own."""
_CHUNKS = 9000
"""A multipart upload has at most 10,000 chunks."""


class StoreError(StageError):
    """The store cannot be used, or something in it is damaged."""


@dataclass(frozen=True)
class Store:
    """A store by its location: an absolute path, or a URI such as ``s3://bucket/prefix`` or ``gs://bucket/prefix``.

    A small value that can be sent to any worker; every process opens it when it first needs it. A *place* is a path
    below the store's root, in POSIX form.
    """

    location: str = field(repr=False)

    @classmethod
    def at(cls, location: str) -> Store:
        """Raises:
        StoreError: the location is not one of a store.
        """
        if not location:
            raise StoreError("store: names no folder or bucket")
        path = Path(unquote(urlsplit(location).path)) if location.startswith("file://") else Path(location)
        if "://" in location and not location.startswith("file://"):
            store = cls(location)
            store._objects  # noqa: B018 - opened here, so that a mistake in it is found here
            return store
        path = path.expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise StoreError(f"store {path}: not a folder")
        return cls(str(path))

    @property
    def name(self) -> str:
        """The location without credentials, for records and messages."""
        return _without_credentials(self.location)

    @property
    def is_local(self) -> bool:
        return "://" not in self.location

    @property
    def _objects(self) -> Any:
        return _open(self.location)

    def local(self, place: str) -> Path:
        """Where a place is on this machine's disk: in the store itself or, for a bucket, in this node's cache."""
        return Path(self.location, place) if self.is_local else self.scratch / place

    @property
    def scratch(self) -> Path:
        """What of this store has to be on this machine's disk: locks and logs; for a bucket, copies."""
        if self.is_local:
            return Path(self.location)
        return cache.folder() / hashlib.sha256(self.name.encode()).hexdigest()[:12]

    # Small objects

    def read(self, place: str) -> bytes | None:
        """An object's content; None where there is none."""
        with self._reached():
            try:
                return bytes(self._objects.get(place).bytes())
            except FileNotFoundError:
                return None

    def write(self, place: str, data: bytes) -> None:
        """Put an object in place, whatever was there."""
        with self._reached():
            self._objects.put(place, data)

    def create(self, place: str, data: bytes) -> bool:
        """Put an object in place if none is there; returns whether it was. Of several writers one succeeds."""
        from obstore.exceptions import AlreadyExistsError

        with self._reached():
            try:
                self._objects.put(place, data, mode="create")
            except AlreadyExistsError:
                return self.read(place) == data  # a request that was sent again may meet its own first try
            return True

    def modified(self, place: str) -> datetime | None:
        """When an object was put in place, by the clock of the store; None where there is none."""
        with self._reached():
            try:
                found: datetime = self._objects.head(place)["last_modified"]
            except FileNotFoundError:
                return None
            return found

    def names(self, place: str) -> list[str]:
        """What stands directly below a place, folders and objects, sorted."""
        with self._reached():
            found = self._objects.list_with_delimiter(place)
        paths = [*found["common_prefixes"], *(each["path"] for each in found["objects"])]
        return sorted(path.rpartition("/")[2] for path in paths)

    def read_all(self, places: list[str]) -> list[bytes | None]:
        """Several objects at once."""
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(self.read, places))

    def delete(self, place: str) -> None:
        """Delete an object, if it is there."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._objects.delete(place)

    def remove(self, place: str) -> None:
        """Delete all that stands below a place."""
        shutil.rmtree(self.local(place), ignore_errors=True)
        if self.is_local:
            return
        with self._reached():
            paths = [each["path"] for chunk in self._objects.list(place) for each in chunk]
            if paths:
                self._objects.delete(paths)

    # Files

    def put(self, place: str) -> None:
        """Upload a file that was written at its local place; on a local disk it is there already."""
        if self.is_local:
            return
        file = self.local(place)
        with self._reached():
            self._objects.put(place, file, chunk_size=max(8 << 20, file.stat().st_size // _CHUNKS))

    def keep(self, folder: str) -> None:
        """Take what was uploaded from here for a copy, which goes when room is needed."""
        if not self.is_local:
            cache.hold(self.scratch, self.local(folder))

    def fetch(self, folder: str, name: str, size: int) -> Path:
        """A file on this machine's disk.

        Raises:
            StoreError: it is missing or has another size, or the store cannot be reached.
        """
        if self.is_local:
            file = self.local(f"{folder}/{name}")
            if not file.is_file() or file.stat().st_size != size:
                raise self._damaged(folder, name)
            return file
        return cache.fetch(self.scratch, folder, name, size, lambda target: self._download(folder, name, size, target))

    def _download(self, folder: str, name: str, size: int, target: Path) -> None:
        place = f"{folder}/{name}"

        def part(start: int) -> None:
            data = self._objects.get_range(place, start=start, end=min(start + _RANGE, size))
            os.pwrite(file.fileno(), data, start)

        with self._reached(), target.open("wb") as file:
            try:
                if self._objects.head(place)["size"] != size:
                    raise self._damaged(folder, name)
                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(part, range(0, size, _RANGE)))
            except FileNotFoundError:
                raise self._damaged(folder, name) from None

    def _damaged(self, folder: str, name: str) -> StoreError:
        whole = "/".join(folder.split("/")[:2])
        return StoreError(
            f"artifact {whole[10:22]} is damaged ({name}); delete {self.name.rstrip('/')}/{whole} and run again to "
            "make it anew"
        )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What obstore and the disk raise becomes a ``StoreError`` of one sentence."""
        from obstore.exceptions import BaseError

        try:
            yield
        except StoreError:
            raise
        except (BaseError, OSError) as error:
            raise StoreError(f"store {self.name} cannot be used: {_first_line(error)}") from error


def _without_credentials(location: str) -> str:
    return re.sub(r"//[^/@]*@", "//", location.partition("?")[0])


def patience() -> float:
    """Seconds for which a store that cannot be reached is tried again."""
    return float(os.environ.get(_PATIENCE, "120"))


@lru_cache(maxsize=8)
def _open(location: str) -> Any:
    """obstore's store for a location, made once a process."""
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, from_url

    if "://" not in location:
        return LocalStore(location, mkdir=True)
    uri = urlsplit(location)
    name = _without_credentials(location)
    if uri.scheme not in SCHEMES or not uri.hostname:
        known = ", ".join(f"{scheme}://bucket/prefix" for scheme in SCHEMES)
        raise StoreError(f"store {name}: expected a folder, or one of {known}")
    retries: Any = {
        "max_retries": 10_000,
        "retry_timeout": timedelta(seconds=patience()),
        "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    options: dict[str, Any] = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(minutes=10)}
    given = _s3_options(uri) if uri.scheme == "s3" else {}
    if given.get("endpoint", "").startswith("http://"):
        options["allow_http"] = True
    try:
        place = f"{uri.scheme}://{uri.hostname}{uri.path}"
        make: Any = from_url
        return make(place, client_options=options, retry_config=retries, **given)
    except (BaseError, ValueError, TypeError) as error:
        raise StoreError(f"store {name}: {_first_line(error)}") from None


def _s3_options(uri: Any) -> dict[str, Any]:
    """What a URI says beside the bucket, in the words that pyarrow has for it, and the environment's endpoint."""
    given = dict(parse_qsl(uri.query))
    if unknown := given.keys() - {"region", "endpoint_override", "scheme"}:
        raise StoreError(f"store s3://{uri.hostname}: unknown option {min(unknown)}; known: region, endpoint_override, "
                         "scheme")  # fmt: skip
    options: dict[str, Any] = {"region": given["region"]} if "region" in given else {}
    endpoint = given.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get(
        "AWS_ENDPOINT_URL")  # fmt: skip
    if endpoint:
        options["endpoint"] = endpoint if "://" in endpoint else f"{given.get('scheme', 'https')}://{endpoint}"
    if uri.username:
        options |= {"access_key_id": unquote(uri.username), "secret_access_key": unquote(uri.password or "")}
    elif "AWS_ACCESS_KEY_ID" not in os.environ and (provider := _profile()) is not None:
        options["credential_provider"] = provider
    return options


def _profile() -> Any:
    """AWS credentials of a profile or a login, where boto3 is installed and finds any; obstore itself knows only those
    of the environment and of the machine."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return None
    session = boto3.Session()
    return Boto3CredentialProvider(session) if session.get_credentials() is not None else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
