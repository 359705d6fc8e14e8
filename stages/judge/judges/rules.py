"""A judge that checks rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stages.judge.judges.config import RulesJudge
from stages.judge.protocol import Judgement, Row


class Rules:
    """The share of the configured rules that a text follows; ``reason`` names the broken ones."""

    def __init__(self, config: RulesJudge) -> None:
        self._config = config

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        return [self._judge(row, each.sample, each.text) for row in rows for each in row.responses]

    def _judge(self, row: Row, sample: int, text: str) -> Judgement:
        kept = self._kept(text)
        broken = [name for name, ok in kept if not ok]
        score = 1 - len(broken) / len(kept) if kept else 1.0
        return Judgement(row.prompt_id, sample, score, ", ".join(broken))

    def _kept(self, text: str) -> list[tuple[str, bool]]:
        rules, words, folded = self._config, len(text.split()), text.casefold()
        kept = []
        if rules.min_words is not None:
            kept.append(("min_words", words >= rules.min_words))
        if rules.max_words is not None:
            kept.append(("max_words", words <= rules.max_words))
        kept += [(f"must_contain {part!r}", part.casefold() in folded) for part in rules.must_contain]
        kept += [(f"must_not_contain {part!r}", part.casefold() not in folded) for part in rules.must_not_contain]
        if rules.pattern is not None:
            kept.append(("pattern", re.search(rules.pattern, text) is not None))
        return kept
