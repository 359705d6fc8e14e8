"""What becomes of pairs that are too long: configuration."""

from __future__ import annotations

from typing import Literal

Truncation = Literal["drop", "keep_start", "keep_end"]
