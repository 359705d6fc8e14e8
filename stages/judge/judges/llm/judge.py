"""A language model as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.core.records import content_id
from stages.judge.judges.llm.asker import Asker
from stages.judge.judges.llm.config import LlmJudge
from stages.judge.judges.llm.kept import Question, Reply, Unanswered
from stages.judge.judges.llm.words import Said, Words
from stages.judge.protocol import Judged, Judgement, NoVerdict, Row, Verdict


@dataclass(frozen=True)
class _Order:
    """A comparison with one of its answers shown first."""

    row: Row
    places: tuple[int, int]
    swapped: bool

    def question(self, words: Words) -> Question:
        shown = [self.row.responses[place].text for place in self.places]
        first, second = reversed(shown) if self.swapped else shown
        return words.comparison(self.row, first, second)


class Llm:
    """Compares by two or scores, as its configuration says."""

    def __init__(self, config: LlmJudge, words: Words, asker: Asker) -> None:
        self._config, self._words, self._asker = config, words, asker

    def __call__(self, rows: Sequence[Row]) -> list[Judged]:
        return self._compared(rows) if self._config.compares else self._scored(rows)

    @property
    def paid(self) -> tuple[int, float]:
        """Tokens and money that the step has spent."""
        return self._asker.paid

    def close(self) -> None:
        self._asker.close()

    def _scored(self, rows: Sequence[Row]) -> list[Judged]:
        places = [(row, place) for row in rows for place in range(len(row.responses))]
        replies = self._asker.replies([self._words.score(row, row.responses[place].text) for row, place in places])
        judged: list[Judged] = []
        for (row, place), reply in zip(places, replies, strict=True):
            if isinstance(reply, Unanswered):
                judged.append(NoVerdict(row.prompt_id, (place,), reply.reason, reply.passing))
                continue
            said = self._words.read(reply)
            spent = (reply.input_tokens, reply.output_tokens, reply.cost, reply.seconds)
            sample = row.responses[place].sample
            judged.append(Judgement(row.prompt_id, sample, said.value, said.reason, said.principle, *spent))
        return judged

    def _compared(self, rows: Sequence[Row]) -> list[Judged]:
        """Equal texts are a tie; of the others each order is asked."""
        judged: list[Judged] = []
        orders: list[_Order] = []
        for row in rows:
            for first, second in row.comparisons:
                if row.responses[first].text == row.responses[second].text:
                    judged.append(Verdict(row.prompt_id, first, second, 0.5, "the same text"))
                else:
                    orders += self._orders(row, (first, second))
        replies = self._asker.replies([order.question(self._words) for order in orders])
        each = 2 if self._config.both_orders else 1
        pairs = [slice(start, start + each) for start in range(0, len(orders), each)]
        return [*judged, *(self._verdict(orders[pair], replies[pair]) for pair in pairs)]

    def _orders(self, row: Row, places: tuple[int, int]) -> list[_Order]:
        if self._config.both_orders:
            return [_Order(row, places, False), _Order(row, places, True)]
        texts = [row.responses[place].text for place in places]
        return [_Order(row, places, int(content_id([row.prompt_id, *texts]), 16) % 2 == 1)]

    def _verdict(self, orders: Sequence[_Order], replies: Sequence[Reply | Unanswered]) -> Judged:
        """The mean of what was said in both orders: a tie where these contradict each other."""
        row, (first, second) = orders[0].row, orders[0].places
        said: dict[bool, Said] = {}
        for order, reply in zip(orders, replies, strict=True):
            if isinstance(reply, Unanswered):
                return NoVerdict(row.prompt_id, (first, second), reply.reason, reply.passing)
            found = self._words.read(reply)
            said[order.swapped] = replace(found, value=1 - found.value if order.swapped else found.value)
        paid = [reply for reply in replies if isinstance(reply, Reply)]
        reasons = {name: " | ".join(dict.fromkeys(getattr(each, name) for each in said.values() if getattr(each, name)))
                   for name in ("reason", "principle")}  # fmt: skip
        return Verdict(
            row.prompt_id, first, second,
            preference=sum(each.value for each in said.values()) / len(said),
            shown=said[False].value if False in said else None,
            swapped=said[True].value if True in said else None,
            input_tokens=sum(each.input_tokens for each in paid),
            output_tokens=sum(each.output_tokens for each in paid),
            cost=sum(each.cost for each in paid),
            seconds=sum(each.seconds for each in paid),
            **reasons,
        )  # fmt: skip
