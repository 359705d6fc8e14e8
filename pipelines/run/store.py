"""The artifact store: content-addressed folders on a local disk or an object store (through pyarrow.fs).

What stands below the store's root:

    artifacts/<fingerprint>/<attempt>/...      files of one attempt, immutable once committed
    artifacts/<fingerprint>/manifest.json      written last; names the attempt. Without it nothing is there.
    work/<fingerprint>/                        what a crashed stage continues from; deleted after the commit
    runs/, logs/                               records and logs of runs

Object stores have no atomic rename, so nothing is ever moved: every attempt writes a folder of its own, and
putting the manifest in place, which is atomic everywhere, is the commit. Two runs that finish the same step
leave two whole attempts, of which the manifest names one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from filelock import FileLock, Timeout

from stages.base import Artifact


@dataclass(frozen=True)
class Attempt:
    """One try at making an artifact. ``path`` is a local folder to write into."""

    fingerprint: str
    name: str
    path: Path
    replaces: str | None
    """The attempt that the manifest named when this one began."""


class ArtifactStore:
    """A store at a local path or at a URI that pyarrow.fs knows (``s3://bucket/prefix``, ``gs://...``).

    Raises:
        StoreError: the URI cannot be opened, or the local path cannot be created.
    """

    def __init__(self, location: str, scratch: Path | None = None, filesystem: pafs.FileSystem | None = None) -> None:
        self.location = re.sub(r"//[^/@]*@", "//", location)  # credentials in a URI stay out of every record
        try:
            if filesystem is not None:
                self.filesystem, self.root = filesystem, location
            elif "://" in location:
                self.filesystem, self.root = pafs.FileSystem.from_uri(location)
            else:
                self.filesystem, self.root = pafs.LocalFileSystem(), str(Path(location).expanduser().absolute())
            self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
            if not location or not self.root:
                raise ValueError("names no folder or bucket")
            if self.is_local and Path(self.root).exists() and not Path(self.root).is_dir():
                raise ValueError("not a folder")
        except (OSError, ValueError) as error:
            raise StoreError(f"store {self.location}: {error}") from None
        # What has to be on a local disk: everything for a local store, copies and work for a remote one.
        place = hashlib.sha256(location.encode()).hexdigest()[:12]
        self.local = Path(self.root) if self.is_local else (scratch or Path.home() / ".cache" / "rondo") / place

    # Manifests

    def manifest(self, fingerprint: str) -> dict[str, Any] | None:
        """The manifest of a committed artifact, or None."""
        return self._read_json(f"{self.root}/artifacts/{fingerprint}/manifest.json")

    def manifests(self) -> list[dict[str, Any]]:
        """Every committed artifact's manifest."""
        selector = pafs.FileSelector(f"{self.root}/artifacts", allow_not_found=True)
        folders = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return [found for name in sorted(folders) if (found := self.manifest(name))]

    # Reading

    def open(self, fingerprint: str) -> Artifact:
        """A committed artifact on the local disk; from a remote store it is copied there once.

        Raises:
            StoreError: it is not committed, or a file is missing or has another size than the manifest says.
        """
        manifest = self.manifest(fingerprint)
        if manifest is None:
            raise StoreError(f"artifact {fingerprint[:12]} is not in the store {self.location}")
        relative = f"artifacts/{fingerprint}/{manifest['attempt']}"
        path = self.local / relative
        if not self.is_local:
            self._download(f"{self.root}/{relative}", path, manifest["files"])
        for name, size in manifest["files"].items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                raise StoreError(
                    f"artifact {fingerprint[:12]} is damaged ({name}); delete {self.root}/artifacts/{fingerprint} "
                    "and run again to make it anew"
                )
        return Artifact(path, fingerprint, manifest["summary"])

    def _download(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        for name, size in files.items():
            file = target / name
            if file.is_file() and file.stat().st_size == size:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
            with contextlib.suppress(FileNotFoundError):  # open() finds it missing and says so
                pafs.copy_files(f"{source}/{name}", str(partial), self.filesystem, pafs.LocalFileSystem())
                partial.replace(file)

    # Writing

    def attempt(self, fingerprint: str) -> Attempt:
        """A fresh, empty folder to write an artifact into."""
        name = uuid.uuid4().hex[:12]
        path = self.local / "artifacts" / fingerprint / name
        path.mkdir(parents=True)
        manifest = self.manifest(fingerprint)
        return Attempt(fingerprint, name, path, manifest["attempt"] if manifest else None)

    def work(self, fingerprint: str) -> Path:
        """The folder in which an interrupted stage finds what it left."""
        path = self.local / "work" / fingerprint
        path.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, attempt: Attempt, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Make the attempt the artifact: its files first, the manifest last. Returns the manifest that is there then:
        if another machine has committed the same step meanwhile, its result stays.
        """
        files = {
            file.relative_to(attempt.path).as_posix(): file.stat().st_size
            for file in sorted(attempt.path.rglob("*"))
            if file.is_file()
        }
        folder = f"{self.root}/artifacts/{attempt.fingerprint}"
        if not self.is_local:
            for name in files:
                target = f"{folder}/{attempt.name}/{name}"
                self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
                pafs.copy_files(str(attempt.path / name), target, pafs.LocalFileSystem(), self.filesystem)
        document = {
            **manifest,
            "fingerprint": attempt.fingerprint,
            "attempt": attempt.name,
            "files": files,
            "committed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        now = self.manifest(attempt.fingerprint)
        if now is None or now["attempt"] == attempt.replaces:
            self._write_json(f"{folder}/manifest.json", now := document)
        self.forget_work(attempt.fingerprint)
        return now

    def forget_work(self, fingerprint: str) -> None:
        """Delete what an interrupted stage left to continue from."""
        shutil.rmtree(self.local / "work" / fingerprint, ignore_errors=True)

    def discard(self, fingerprint: str) -> None:
        """Delete the attempts that no manifest names: what killed runs left. Call with the lock held."""
        manifest = self.manifest(fingerprint)
        keep = {manifest["attempt"]} if manifest else set()
        folder = self.local / "artifacts" / fingerprint
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir() and path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, timeout: float = -1) -> Iterator[bool]:
        """Hold a lock among the runs on this machine; it goes when its holder dies. Yields whether it was had.

        Runs on different machines that share a remote store are not kept apart: both do the work, and the
        commit keeps one whole result.
        """
        path = self.local / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    # Run records

    def write_run(self, run: str, record: Mapping[str, Any]) -> None:
        self._write_json(f"{self.root}/runs/{run}.json", record)

    def read_run(self, run: str) -> dict[str, Any] | None:
        return self._read_json(f"{self.root}/runs/{run}.json")

    def runs(self) -> list[str]:
        """Names of all runs, the oldest first."""
        selector = pafs.FileSelector(f"{self.root}/runs", allow_not_found=True)
        names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    # JSON files, put in place whole

    def _read_json(self, path: str) -> dict[str, Any] | None:
        try:
            with self.filesystem.open_input_stream(path) as stream:
                value: dict[str, Any] = json.loads(stream.read())
                return value
        except FileNotFoundError:
            return None
        except ValueError:
            raise StoreError(f"{path} is damaged (not JSON); delete it") from None

    def _write_json(self, path: str, value: Mapping[str, Any]) -> None:
        data = json.dumps(value, indent=2, ensure_ascii=False).encode()
        self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        target = f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex[:8]}" if self.is_local else path
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)
        if self.is_local:
            self.filesystem.move(target, path)


class StoreError(Exception):
    """The store cannot be used, or something in it is damaged."""
