"""A judge that checks rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from stages.base import StageError
from stages.judge.judges.rules import answer, instructions, rows, shape
from stages.judge.judges.rules.config import FromField, RulesJudge
from stages.judge.protocol import Judgement, NoVerdict, Row

Rule = tuple[str, bool]
"""What it is called, and whether it is followed."""


class Rules:
    """The share of the configured rules that a text follows; ``reason`` names the broken ones. Where the prompt's row
    lacks what one of them needs there is no verdict."""

    def __init__(self, config: RulesJudge) -> None:
        """
        Raises:
            StageError: the configured language is not one that can be told.
        """
        self._config = config
        if isinstance(config.language, str):
            try:
                shape.is_language("", config.language)
            except rows.Unjudged as error:
                raise StageError(f"judge rules: {error}") from None

    def __call__(self, rows: Sequence[Row]) -> list[Judgement | NoVerdict]:
        return [self._judge(row, place) for row in rows for place in range(len(row.responses))]

    def _judge(self, row: Row, place: int) -> Judgement | NoVerdict:
        response = row.responses[place]
        try:
            kept = [*self._texts(response.text), *self._shapes(row, response.text), *self._facts(row, response.text)]
        except rows.Unjudged as error:
            return NoVerdict(row.prompt_id, (place,), str(error))
        except (OverflowError, ValueError, TypeError) as error:  # a number without an end, in the row or in the answer
            return NoVerdict(row.prompt_id, (place,), f"cannot be checked: {type(error).__name__}: {error}")
        broken = [name for name, ok in kept if not ok]
        score = 1 - len(broken) / len(kept) if kept else 1.0
        return Judgement(row.prompt_id, response.sample, score, ", ".join(broken))

    def _texts(self, text: str) -> Iterator[Rule]:
        rules, words, folded = self._config, len(text.split()), text.casefold()
        if rules.min_words is not None:
            yield "min_words", words >= rules.min_words
        if rules.max_words is not None:
            yield "max_words", words <= rules.max_words
        yield from ((f"must_contain {part!r}", part.casefold() in folded) for part in rules.must_contain)
        yield from ((f"must_not_contain {part!r}", part.casefold() not in folded) for part in rules.must_not_contain)
        if rules.pattern is not None:
            yield "pattern", re.search(rules.pattern, text) is not None

    def _shapes(self, row: Row, text: str) -> Iterator[Rule]:
        wanted, code = self._config.json_, self._config.language
        if wanted is not False:
            schema = None if wanted is True else wanted
            if isinstance(schema, FromField):
                schema = shape.schema_of(rows.given(row, schema.field, "json"))
            fault = shape.json_fault(text, schema)
            yield (f"json ({fault})" if fault else "json"), not fault
        if code is not None:
            code = rows.given(row, code.field, "language") if isinstance(code, FromField) else code
            yield f"language {code}", shape.is_language(text, code)

    def _facts(self, row: Row, text: str) -> Iterator[Rule]:
        if (rule := self._config.answer) is not None:
            fields = answer.FIELDS if rule.field is None else (rule.field,)
            reference = answer.wanted(rows.first_given(row, fields, "answer"))
            found = answer.found(text, reference)
            said = "none" if found is None else repr(found)
            yield f"answer ({said:.80}, not {reference.text!r:.80})", answer.agrees(found, reference, rule.tolerance)
        if self._config.instructions:
            yield from instructions.followed(row, text)
