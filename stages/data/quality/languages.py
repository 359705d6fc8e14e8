"""The language of answers, by py3langid (a naive Bayes classifier over byte n-grams; Lui and Baldwin 2012)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.base import StageError
from stages.data.quality.rows import Row

UNSURE = "?"
_CONFIDENCE = 0.5
_CHARACTERS = 1000
"""So much of an answer is read: enough to tell, and the time does not grow with the answer."""


class Languages:
    """The language of the chosen response, or of the only one; ``UNSURE`` for text too short to tell, and code."""

    columns: tuple[str, ...] = ("chosen", "rejected")

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        """
        Raises:
            StageError: a wanted language is not one that can be told.
        """
        self.labels: list[str] = [*_identifier().labels, UNSURE]
        self._index = {label: index for index, label in enumerate(self.labels)}
        if unknown := sorted(set(wanted) - set(self.labels)):
            known = ", ".join(sorted(self.labels[:-1]))
            raise StageError(f"filters.languages: no language {', '.join(unknown)}; known are {known}")
        self._wanted = [self._index[label] for label in wanted]
        self._found = array("h")
        self.numbers = array("q")

    def see(self, row: Row) -> None:
        self.numbers.append(row.number)
        self._found.append(self._index[language(row.answer)])

    def codes(self) -> NDArray[np.int16]:
        """Each row's language as an index into ``labels``."""
        return np.asarray(self._found, np.int16)

    def found(self) -> NDArray[np.bool_]:
        """Rows in none of the wanted languages; those that are unsure are not found."""
        return ~np.isin(self.codes(), [*self._wanted, self._index[UNSURE]])


def language(text: str, confidence: float = _CONFIDENCE) -> str:
    """A language's ISO 639 code, or ``UNSURE`` for less confidence."""
    label, sure = _identifier().classify(text[:_CHARACTERS])
    return str(label) if sure >= confidence and label != "zxx" else UNSURE


def known() -> frozenset[str]:
    """The codes of the languages that can be told."""
    return frozenset(_identifier().labels) - {"zxx"}


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
