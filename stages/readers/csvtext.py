"""CSV and TSV: a header, then rows whose values are all text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from stages.core.errors import RowError
from stages.readers.lines import lines, too_long
from stages.readers.places import Limits, Place, Row
from stages.readers.streams import Broken

_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}


def read(blocks: Iterable[bytes], file: str, limits: Limits, suffix: str) -> Iterator[Row]:
    """Rows of a text with a header. The separator is comma, semicolon or tab, whichever is commonest in the header."""
    # The default refuses cells of more than 128 KiB. The setting is the process's, and is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_row_bytes))
    source = _Lines(blocks, limits)
    try:
        first = source.header()
        if first is None:
            return
        delimiter = max(_DELIMITERS[suffix], key=first.count)
        reader = csv.reader(source, delimiter=delimiter, strict=True)
        header = _header(reader)
        yield from _rows(reader, source, header, file)
    except Broken as broken:
        yield Row(Place(file, source.number + 1), RowError("", str(broken)))
    except RowError as error:
        yield Row(Place(file, 1), error)


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader)
    except csv.Error as error:
        raise RowError("", f"no header that can be read: {error}") from None
    _check_text(header)
    if not any(header):
        raise RowError("", "the first line names no columns")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise RowError(twice[0], "the column appears twice in the header")
    return header


def _rows(reader: Iterator[list[str]], source: _Lines, header: list[str], file: str) -> Iterator[Row]:
    while True:
        start = source.begin_row()
        try:
            cells = next(reader, None)
            if cells is None:
                return
            if not cells:
                continue
            _check_text(cells)
            if len(cells) != len(header):
                raise RowError("", f"{len(cells)} cells, but the header has {len(header)} columns")
        except csv.Error as error:
            yield Row(Place(file, start), RowError("", f"not CSV: {error}"), source.begun)
        except RowError as error:
            yield Row(Place(file, start), error, source.begun)
        else:
            yield Row(Place(file, start), dict(zip(header, cells, strict=True)), source.begun)


def _check_text(cells: list[str]) -> None:
    text = "".join(cells)
    if "\0" in text:
        raise RowError("", "NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("", "not UTF-8 text") from None


class _Lines(Iterator[str]):
    """Lines for ``csv.reader``, which may go on reading after an error."""

    def __init__(self, blocks: Iterable[bytes], limits: Limits) -> None:
        self._lines = lines(blocks, limits.max_row_bytes)
        self._limits = limits
        self._waiting: str | None = None
        self._size = 0
        self.number = 0
        self.begun = ""
        """The first line of the row."""

    def header(self) -> str | None:
        """The first line, which is also returned again as the next line."""
        self._waiting = next(self, None)
        return self._waiting

    def begin_row(self) -> int:
        """The number of the next line."""
        self._size, self.begun = 0, ""
        return self.number + 1

    def __next__(self) -> str:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            return waiting
        line, whole = next(self._lines)
        self.number += 1
        self._size += len(line)
        # invalid UTF-8 is carried along, and refused with its row
        text = line.decode("utf-8", "surrogateescape") + "\n"
        self.begun = self.begun or text
        if not whole or self._size > self._limits.max_row_bytes:
            raise too_long(self._limits)
        return text
