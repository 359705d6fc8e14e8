"""What people's rows look like, and how they become preference pairs (docs/formats.md)."""

from __future__ import annotations

from stages.core.errors import NoPair, RowError
from stages.core.formats.messages import ROLES
from stages.core.formats.parser import RowParser, detect, parse_pair, parse_prompt

__all__ = ["ROLES", "NoPair", "RowError", "RowParser", "detect", "parse_pair", "parse_prompt"]
