"""Preference pairs for measurements: the same ones for the same arguments, with lengths like those of real data."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WORDS = """
account answer autumn balance basket bottle branch bridge bright build carbon careful carry castle change
cheese choose circle clear climb cloud coast collect colour common corner cotton cover create custom danger
decide deliver design detail differ dinner direct distance double dream driver early effect engine enough
evening exact explain fabric famous farmer feature finger finish follow forest formal friend garden gather
gentle glass grain handle harbour health hollow honest hotel ideal improve island journey jungle kettle
kitchen ladder language laugh leader leather lesson letter library listen little machine manner market
measure meadow memory middle mirror moment morning mountain music narrow nature needle notice number object
ocean office often orange orchard order paper parcel parent pattern pencil people perfect picture planet
plenty pocket polite powder prepare present price public puzzle quality quarter question quick quiet railway
reason recent record repair report river round sample school season second secret shadow signal silver simple
single smooth sofa spare spirit spring square station steady stone story street student sudden summer supply
surface switch table teacher temple theatre thread ticket timber together tomato travel treasure under useful
valley velvet village violin visit voyage wagon water weather weight whistle window winter wonder wooden
yellow
""".split()  # noqa: SIM905 - a list of words reads better as words
_TOKENS_A_WORD = 1.25
"""Of the default model's tokenizer, on these words."""

LENGTHS: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "realistic": {"prompt": (60, 0.65, 20, 200), "chosen": (85, 0.6, 20, 200), "rejected": (75, 0.6, 20, 200)},
    "long": {"prompt": (800, 0.0, 800, 800), "chosen": (100, 0.0, 100, 100), "rejected": (100, 0.0, 100, 100)},
}
"""Tokens of each part: median, spread and bounds of a log-normal distribution. Real preference data has about these
proportions; ``long`` is the case of a document with short answers."""


def pair(index: int, lengths: str = "realistic", seed: int = 0) -> dict[str, str]:
    """The pair of a number: ``prompt``, ``chosen`` and ``rejected``. The two answers' lengths are correlated."""
    draw = random.Random(f"{seed}/{lengths}/{index}")
    return {
        name: " ".join(draw.choices(WORDS, k=max(3, round(tokens / _TOKENS_A_WORD))))
        for name, tokens in drawn(draw, LENGTHS[lengths])
    }


def drawn(draw: random.Random, sides: Mapping[str, tuple[float, float, float, float]]) -> Iterator[tuple[str, float]]:
    """The length of each part of a pair, one after another: what is drawn between two of them has its place there."""
    common = draw.gauss(0, 1)
    for name, (median, spread, low, high) in sides.items():
        own = draw.gauss(0, 1)
        shift = own if name == "prompt" else math.sqrt(0.5) * (own + common)
        yield name, min(high, max(low, median * math.exp(spread * shift)))


def conversation(*sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A pair as TRL reads it, of the messages of prompt, chosen and rejected, with the ``length`` in characters that
    its batches are grouped by."""
    prompt, chosen, rejected = (sum(len(message["content"]) for message in side) for side in sides)
    named = zip(("prompt", "chosen", "rejected"), sides, strict=True)
    return {
        **{name: [{"role": m["role"], "content": m["content"]} for m in side] for name, side in named},
        "length": prompt + max(chosen, rejected),
    }
