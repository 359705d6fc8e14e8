"""Pairs that people have judged, for a judge to be measured on: configuration."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from stages.base import Config


class LabelledConfig(Config):
    limit: PositiveInt | None = None
    """So many of the pairs, by chance; by default all."""
    seed: NonNegativeInt = 0
    """Of the choice, which depends on it and on the pairs' content alone."""
