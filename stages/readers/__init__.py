"""From what a user names (a file, a folder, a glob, ``s3://``, ``gs://``, ``hf://``, a dataset saved to disk) to rows
with their places. Nothing that is read is ever unpickled or executed; ``docs/data-files.md`` has the table of dirt."""

from __future__ import annotations

from stages.core.errors import RowError
from stages.readers.containers import rows
from stages.readers.listing import files
from stages.readers.places import DataFile, Limits, NoFiles, Place, ReadError, Row
from stages.readers.stores import file_at, identity

__all__ = [
    "DataFile",
    "Limits",
    "NoFiles",
    "Place",
    "ReadError",
    "Row",
    "RowError",
    "file_at",
    "files",
    "identity",
    "rows",
]
