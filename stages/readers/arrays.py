"""JSON arrays of rows, at the top or under a key of one object, one element at a time.

The text is cut into elements by quotes and brackets alone, and each is then decoded by itself, so an element that is
not UTF-8, repeats a key or is too long is one bad row, and the others are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from stages.core.errors import RowError
from stages.readers.jsontext import decode
from stages.readers.lines import SHOWN, too_long
from stages.readers.places import Limits, Place, Row
from stages.readers.streams import Broken

_SPACE = re.compile(rb"[ \t\r\n]*")
_OUTSIDE = re.compile(rb'["\[\]{}]')
_INSIDE = re.compile(rb'["\\]')
_SCALAR_END = re.compile(rb"[,\]}\s]")


def read(blocks: Iterable[bytes], file: str, limits: Limits) -> Iterator[Row]:
    """Rows of a JSON array, or of the list that an object has under one of its keys."""
    reader = _Elements(blocks, file, limits)
    try:
        yield from reader.array() if reader.next() == b"[" else reader.object()
        if reader.next():
            raise Broken("there is more after the end of the JSON text; one object per line is .jsonl")
    except Broken as broken:
        yield Row(Place(file, row=reader.count + 1), RowError("", str(broken)), reader.around())


class _Elements:
    def __init__(self, blocks: Iterable[bytes], file: str, limits: Limits) -> None:
        self._blocks = iter(blocks)
        self._file, self._limits = file, limits
        self._data = b""
        self._at = 0
        self.count = 0

    def around(self) -> bytes:
        return self._data[self._at : self._at + SHOWN]

    def next(self) -> bytes:
        """The next byte that is not white space, left unread; empty at the end."""
        while True:
            self._at = _SPACE.match(self._data, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._more():
                return b""

    def array(self) -> Iterator[Row]:
        """The elements of the array that begins here."""
        self._at += 1
        if self.next() == b"]":
            self._at += 1
            return
        while True:
            text, whole = self._value(self._limits.max_row_bytes)
            self.count += 1
            yield self._row(text, whole)
            found = self._expect(b",]", f"after element {self.count}")
            if found == b"]":
                return

    def object(self) -> Iterator[Row]:
        """The elements of the first list of objects in the object that begins here."""
        self._at += 1
        listed = ""
        if self.next() == b"}":
            self._at += 1
        else:
            while True:
                if self.next() != b'"':
                    raise Broken(f"not JSON: expected a key in quotes, found {self._found()}")
                key = self._value(SHOWN)[0].decode("utf-8", "replace")
                self._expect(b":", f"after the key {key:.40}")
                if self.next() == b"[" and self._holds_objects():
                    if listed:
                        raise Broken(f"there are rows under {listed:.40} and under {key:.40}; only the first are read. "
                                     "Put them in two files, or one object per line (.jsonl)")  # fmt: skip
                    listed = key
                    yield from self.array()
                else:
                    self._value(0)
                if self._expect(b",}", f"after {key:.40}") == b"}":
                    break
        if not listed:
            raise Broken("a JSON object without a list of rows; expected a list of objects, an object with such a list "
                         "under one key, or one object per line (.jsonl)")  # fmt: skip

    def _holds_objects(self) -> bool:
        """Whether the list that begins here starts with an object."""
        start, block = self._at, self._data
        self._at += 1
        found = self.next()
        if self._data is block:
            self._at = start
        else:  # white space ran over the block's end: put the bracket back
            self._data, self._at = b"[" + self._data[self._at :], 0
        return found == b"{"

    def _row(self, text: bytes, whole: bool) -> Row:
        place = Place(self._file, row=self.count)
        if not whole:
            return Row(place, too_long(self._limits), text[:SHOWN])
        try:
            return Row(place, decode(text), text[:SHOWN])
        except RowError as error:
            return Row(place, error, text[:SHOWN])

    def _expect(self, some: bytes, where: str) -> bytes:
        found = self.next()
        if not found or found not in some:
            raise Broken(f"not JSON: expected {' or '.join(some.decode())} {where}, found {self._found()}")
        self._at += 1
        return found

    def _found(self) -> str:
        return repr(self.around()[:20].decode("utf-8", "replace")) if self.next() else "the end of the file"

    def _more(self) -> bool:
        """Go on to the next block; the position is counted from its start."""
        block = next(self._blocks, None)
        if block is None:
            return False
        self._at -= len(self._data)
        self._data = block
        return True

    def _value(self, most: int) -> tuple[bytes, bool]:
        """The bytes of the value that begins here, and whether these are all: ``most`` at most, else an excerpt."""
        first = self.next()
        if first and first not in b'"[{':
            return self._scalar(most)
        kept: list[bytes] = []
        size, start, depth, inside = 0, self._at, 0, False
        while True:
            token = (_INSIDE if inside else _OUTSIDE).search(self._data, self._at)
            if token is None or token[0] == b"\\":
                # the byte after a backslash is skipped, even if it is in the next block
                self._at = len(self._data) if token is None else token.end() + 1
                if self._at >= len(self._data):
                    kept, size = _kept(kept, size, self._data[start:], most)
                    start = 0
                    if not self._more():
                        raise Broken(f"the JSON text ends within element {self.count + 1}")
                continue
            self._at = token.end()
            if token[0] == b'"':
                inside = not inside
            else:
                depth += 1 if token[0] in b"[{" else -1
            if depth <= 0 and not inside:
                kept, size = _kept(kept, size, self._data[start : self._at], most)
                return b"".join(kept), size <= most

    def _scalar(self, most: int) -> tuple[bytes, bool]:
        kept: list[bytes] = []
        size = 0
        while True:
            end = _SCALAR_END.search(self._data, self._at)
            stop = end.start() if end else len(self._data)
            kept, size = _kept(kept, size, self._data[self._at : stop], most)
            self._at = stop
            if end or not self._more():
                return b"".join(kept), size <= most


def _kept(kept: list[bytes], size: int, piece: bytes, most: int) -> tuple[list[bytes], int]:
    kept.append(piece)
    size += len(piece)
    return (kept if size <= most else [b"".join(kept)[:SHOWN]]), size
