"""Pairs that people have judged, in the formats of two published sets, made up for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PAIRS = [
    ("Name a colour.", "Blue.", "A colour is what light looks like to the eye, and many of them have names."),
    ("What is 2 + 2?", "4", "It is a sum of two numbers, which I would rather not work out."),
    ("Say hello in French.", "Bonjour!", "Hello! French is spoken in France, Canada and elsewhere."),
    ("Which month comes after May?", "June comes after May.", "May"),
    ("Is ice cold?", "Yes, ice is cold: it is frozen water.", "No."),
    ("Give a word that rhymes with cat.", "Hat", "Dog"),
    ("How many legs has a spider?", "Eight.", "Spiders have six legs, like all insects."),
    ("What is the capital of Italy?", "Rome is the capital of Italy.", "Milan"),
    ("Write one sentence about rain.", "Rain fell on the roof all night.", "Rain. Rain. Rain."),
    ("What do bees make?", "Bees make honey.", "Bees make milk."),
    ("Count to three.", "One, two, three.", "Three, two, one."),
    ("Opposite of hot?", "Cold", "Warm, or perhaps very warm."),
]


def verdicts(path: Path) -> Path:
    """One verdict on each pair, ``label`` 1 or 2; the better answer is in the first place in every other row."""
    rows = []
    for number, (asked, good, bad) in enumerate(_PAIRS):
        turned = number % 2
        first, second = (bad, good) if turned else (good, bad)
        rows.append({"input": asked, "output_1": first, "output_2": second, "label": 1 + turned})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def votes(path: Path) -> Path:
    """Three votes on each pair, 1 or 2, or 0 for a tie: of four pairs, on two all agree, on one a vote is for the other
    answer, on one two of three tie."""
    rows: list[dict[str, Any]] = []
    for number, (asked, good, bad) in enumerate(_PAIRS):
        turned = number % 2
        first, second = (bad, good) if turned else (good, bad)
        right, wrong = 1 + turned, 2 - turned
        cast = [[right] * 3, [right] * 3, [right, right, wrong], [0, 0, right]][number % 4]
        named = {f"annotator{place + 1}": vote for place, vote in enumerate(cast)}
        rows.append({"instruction": asked, "input": "", "response1": first, "response2": second, **named})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
