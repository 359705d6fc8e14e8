"""A judge of sentiment."""

from __future__ import annotations

from collections.abc import Sequence

from stages.judge.protocol import Judgement, Row


class Sentiment:
    """VADER's compound score of the text, from -1 to 1. An English lexicon with rules; needs no network.

    Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text" (2014).
    """

    def __init__(self) -> None:
        from vader import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        score = self._analyzer.polarity_scores
        return [Judgement(row.prompt_id, r.sample, score(r.text)["compound"]) for row in rows for r in row.responses]
