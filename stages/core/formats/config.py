"""How a row becomes preference pairs: configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, NonNegativeFloat, Tag

from stages.base import Config, Plugin

FormatName = Literal[
    "auto", "preference", "transcript", "labelled", "sharegpt", "scored", "ranked", "votes", "choice", "alpaca_eval"
]
"""Shapes of rows (``stages.core.formats``); ``auto`` tells them apart row by row."""


class FormatConfig(Config):
    """How a row becomes pairs. Part of the identity of what is read."""

    format: Annotated[
        Annotated[FormatName, Tag("name")] | Annotated[Plugin, Tag("custom")],
        Discriminator(lambda value: "custom" if isinstance(value, dict | Plugin) else "name"),
    ] = "auto"
    """A shape's name, or the user's own function ``use: "module:function"`` from a row to pairs."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Where the row's fields are, by Rondo's name for each: ``{prompt: question, chosen: answers.good}``."""
    ignore: tuple[str, ...] = ()
    """Columns that are left alone on purpose; one that holds images or sounds makes its rows unusable otherwise."""
    strategy: Literal["best_vs_worst", "adjacent", "all"] = "best_vs_worst"
    """Which answers of a ranked list make pairs: the two ends, each with the next, or all of them."""
    min_margin: NonNegativeFloat = 0.0
    """Smallest score difference that makes a pair; equal scores never do."""
