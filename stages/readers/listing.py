"""The files that a location names, in a fixed order."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from stages.readers import stores
from stages.readers.places import DataFile, NoFiles, ReadError, is_remote
from stages.readers.suffixes import KNOWN, container_suffix

_MAGIC = re.compile(r"[*?\[]")
_WILD = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_SHOWN = 8
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|copying|changelog|citation)([.\-_].*)?", re.IGNORECASE)
_NO_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
_HF_STATE = "state.json"
_HF_DICT = "dataset_dict.json"


class _Tree(Protocol):
    """A folder's files by their path below it."""

    root: str

    def uri(self, name: str) -> str: ...
    def walk(self) -> dict[str, int]: ...
    def match(self, pattern: str) -> dict[str, int]: ...
    def read(self, name: str) -> bytes: ...


def files(location: str, base: Path) -> list[DataFile]:
    """The data files that a location names, sorted by name. Relative paths are relative to ``base``.

    A folder means all data files below it, except descriptions (README, LICENSE, ``dataset_info.json`` and the like),
    hidden files, and those of a dataset's cache; files of other kinds are skipped there, and refused where they are
    named directly.

    Raises:
        ReadError: nothing is there, or nothing that is data; the scheme is unknown; a dataset has several splits;
            a link leads out of the folder.
    """
    if is_remote(location):
        return _remote(location)
    path = os.path.abspath(base / os.path.expanduser(location))
    if os.path.isfile(path):
        return [_named(path)]
    if os.path.isdir(path):
        return _listed(_LocalTree(path), None)
    if os.path.lexists(path):
        raise ReadError(f"{path} is {'a broken link' if os.path.islink(path) else 'not a regular file'}")
    if not _MAGIC.search(path):
        raise ReadError(f"{path} does not exist; {_neighbours(os.path.dirname(path))}")
    root, pattern = _split(path)
    if not os.path.isdir(root):
        raise ReadError(f"nothing matches {location}: there is no folder {root}")
    return _listed(_LocalTree(root), pattern)


def _named(uri: str) -> DataFile:
    """A file that is named directly."""
    name = uri.rpartition("/")[2]
    if container_suffix(name) is None:
        raise ReadError(f"{uri}: the suffix is not one of a known kind of data; known are {KNOWN}")
    return stores.file_at(uri)


def _remote(location: str) -> list[DataFile]:
    uri = stores.pinned(location) if location.startswith("hf://") else location
    uri = uri.rstrip("/")
    root, pattern = _split(uri) if _MAGIC.search(uri) else (uri, None)
    store, path = stores.filesystem(root)
    if pattern is None:
        with stores.reaching(uri):
            info = store.get_file_info(path)
        if info.is_file:
            return [_named(uri)]
        if info.type.name == "NotFound":
            raise ReadError(f"{uri} does not exist; check the address")
    return _listed(_RemoteTree(store, path, root), pattern)


def _split(path: str) -> tuple[str, str]:
    """A glob as the folder above its first wildcard, and the rest."""
    parts = path.split("/")
    first = next(index for index, part in enumerate(parts) if _MAGIC.search(part))
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _listed(tree: _Tree, pattern: str | None) -> list[DataFile]:
    found = tree.walk() if pattern is None else tree.match(pattern)
    if not found:
        what = "has no files" if pattern is None else f"has nothing that matches {pattern}; {_neighbours(tree.root)}"
        raise NoFiles(f"{tree.root} {what}")
    if pattern is None:
        _one_split(tree, found)
    kept = [name for name in found if container_suffix(name) is not None and not _describes(name)]
    kept = _current(tree, found, kept)
    if not kept:
        raise ReadError(f"{tree.root} has no data files, only {_names(found)}; known suffixes are {KNOWN}")
    return [DataFile(tree.uri(name), name, found[name]) for name in sorted(kept)]


def _describes(name: str) -> bool:
    """Whether a file describes data, or is hidden or a cache, and so has no rows of its own."""
    parts = PurePosixPath(name).parts
    last = parts[-1]
    hidden = any(part.startswith((".", "_")) for part in parts)
    cached = last.startswith("cache-") and last.endswith(".arrow")  # what datasets.map leaves behind
    return hidden or cached or last in _NO_ROWS or _ABOUT.fullmatch(last) is not None


def _one_split(tree: _Tree, found: Mapping[str, int]) -> None:
    for name in sorted(found):
        folder, _, last = name.rpartition("/")
        if last == _HF_DICT:
            splits = _object(tree, name).get("splits")
            splits = [str(split) for split in splits] if isinstance(splits, list) else []
            where = tree.uri(folder) if folder else tree.root
            raise ReadError(f"{where} is a dataset with the splits {', '.join(splits) or 'unknown'}; name one, such "
                            f"as {where}/{splits[0] if splits else 'train'}")  # fmt: skip


def _current(tree: _Tree, found: Mapping[str, int], kept: Sequence[str]) -> list[str]:
    """Without the Arrow files that a dataset saved to disk no longer lists as its own (left behind by an earlier,
    larger version).

    Raises:
        ReadError: one that it does list is missing.
    """
    result = list(kept)
    for state in [name for name in found if name.rpartition("/")[2] == _HF_STATE]:
        entries = _object(tree, state).get("_data_files")
        if not isinstance(entries, list):
            continue
        prefix = state[: -len(_HF_STATE)]
        own = {prefix + str(entry.get("filename")) for entry in entries if isinstance(entry, dict)}
        if missing := sorted(own - set(found)):
            raise ReadError(f"{tree.uri(state)} lists {', '.join(missing)}, which is missing; save the dataset again")
        result = [name for name in result if name in own or not _arrow_in(name, prefix)]
    return result


def _arrow_in(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name.endswith(".arrow") and "/" not in name[len(prefix) :]


def _object(tree: _Tree, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads(tree.read(name))
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{tree.uri(name)} cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


def _names(names: Mapping[str, int] | Sequence[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _neighbours(folder: str) -> str:
    if is_remote(folder):
        return "check the address"
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return f"in {folder} there is {_names(os.listdir(folder)) or 'nothing'}"


class _LocalTree:
    """A local folder. Links that stay inside are read once, under one of their names; others are refused, because a
    folder from somebody else could otherwise bring in any file of this machine."""

    def __init__(self, root: str) -> None:
        self.root = root

    def uri(self, name: str) -> str:
        return os.path.join(self.root, name)

    def walk(self) -> dict[str, int]:
        found = []
        for folder, below, names in os.walk(self.root, onerror=_refuse):
            below[:] = [name for name in below if not name.startswith((".", "_"))]
            links = [name for name in below if os.path.islink(os.path.join(folder, name))]
            found += [os.path.join(folder, name) for name in [*links, *names] if not name.startswith((".", "_"))]
        return self._checked(found)

    def match(self, pattern: str) -> dict[str, int]:
        return self._checked([self.uri(name) for name in glob.glob(pattern, root_dir=self.root, recursive=True)])

    def read(self, name: str) -> bytes:
        return Path(self.uri(name)).read_bytes()

    def _checked(self, paths: Sequence[str]) -> dict[str, int]:
        top = os.path.realpath(self.root) + os.sep
        taken: dict[str, str] = {}
        for path in sorted(paths, key=lambda path: (os.path.islink(path), path)):
            target = os.path.realpath(path)
            if not (target + os.sep).startswith(top) or (os.path.islink(path) and os.path.isdir(path)):
                raise ReadError(f"{path} is reached by a link, or is a link to a folder ({target}); name that itself")
            if os.path.isfile(target):
                taken.setdefault(target, path)
        return {os.path.relpath(path, self.root): os.path.getsize(path) for path in taken.values()}


def _refuse(error: OSError) -> None:
    raise ReadError(f"{error.filename} cannot be read: {error.strerror}") from error


class _RemoteTree:
    """A folder in a bucket or on the hub."""

    def __init__(self, store: Any, path: str, root: str) -> None:
        self._store, self._path, self.root = store, path, root

    def uri(self, name: str) -> str:
        return f"{self.root}/{name}"

    def walk(self) -> dict[str, int]:
        return self._below(recursive=True)

    def match(self, pattern: str) -> dict[str, int]:
        expression = _expression(pattern)
        listed = self._below(recursive="/" in pattern or "**" in pattern)
        return {name: size for name, size in listed.items() if expression.fullmatch(name)}

    def read(self, name: str) -> bytes:
        with stores.reaching(self.uri(name)), self._store.open_input_stream(f"{self._path}/{name}") as handle:
            data: bytes = handle.read()
        return data

    def _below(self, recursive: bool) -> dict[str, int]:
        from pyarrow.fs import FileSelector

        with stores.reaching(self.root):
            infos = self._store.get_file_info(FileSelector(self._path, recursive=recursive))
        prefix = self._path.rstrip("/") + "/"
        return {info.path.removeprefix(prefix): info.size or 0 for info in infos if info.is_file}


def _expression(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: ``**`` matches any folders, other wildcards stay within one name."""
    made = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^/]+?\]|.", pattern, re.DOTALL):
        if token in _WILD:
            made += _WILD[token]
        elif len(token) > 1:
            inside = token[1:-1].replace("\\", r"\\")
            made += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            made += re.escape(token)
    try:
        return re.compile(made, re.DOTALL)
    except re.error as error:
        raise ReadError(f"{pattern} is not a glob: {error}") from None
