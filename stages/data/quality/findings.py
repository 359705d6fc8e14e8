"""What is said about a survey: one finding a question, each with the rows that it is about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from stages.data.quality.counts import NO_KIND
from stages.data.quality.languages import UNSURE
from stages.data.quality.meaning import MEANING
from stages.data.quality.noise import Repeats, error_rate
from stages.data.quality.rows import Row
from stages.data.quality.survey import Survey
from stages.data.quality.text import cut

Finding = dict[str, Any]
_EXCERPT = 160
_NOTE = 120
_BIASED = 0.6
"""From this share on the longer answer wins too often (below 1 minus it too rarely), if the whole interval says so."""
_NOISY = 0.1
_FOREIGN = 0.01
_THIN = 0.5
"""A kind is thin that has less than this of an equal share."""


def findings(survey: Survey) -> list[Finding]:
    """All findings in the order of ``MEANING``."""
    makers: list[Callable[[Survey], Finding]] = [
        _duplicates, _near_duplicates, _contradictory, _same_answers, _length_bias, _contamination, _label_noise,
        _languages, _balance,
    ]  # fmt: skip
    return [make(survey) for make in makers]


def _finding(
    survey: Survey,
    name: str,
    numbers: Iterable[int],
    says: str,
    *,
    note: Callable[[Row], str] | None = None,
    level: str | None = None,
    of: int | None = None,
    measures: dict[str, Any] | None = None,
) -> Finding:
    """``numbers`` are the rows that it is about; some of them are named, the others counted."""
    rows = list(numbers)
    of = len(survey.records) if of is None else of
    title, means, advice = MEANING[name]
    named = [survey.records.row(number) for number in rows[: survey.config.named]]
    return {
        "name": name,
        "title": title,
        "level": level or ("look" if rows else "fine"),
        "says": says,
        "means": means,
        "advice": advice,
        "count": len(rows),
        "of": of,
        "share": len(rows) / of if of else 0.0,
        "measures": {key: _rounded(value) for key, value in (measures or {}).items()},
        "rows": [
            {
                "source": cut(row.source, _NOTE),
                "excerpt": cut(_last(row), _EXCERPT),
                "note": cut(note(row), _NOTE) if note else "",
            }
            for row in named
        ],
        "more": len(rows) - len(named),
    }


def _duplicates(survey: Survey) -> Finding:
    first = survey.duplicates.first()
    numbers = np.flatnonzero(first != np.arange(len(first))).tolist()
    return _finding(
        survey, "duplicates", numbers, f"{_rows(len(numbers))} stood before, letter by letter",
        note=lambda row: "same as " + _source(survey, int(first[row.number])),
    )  # fmt: skip


def _near_duplicates(survey: Survey) -> Finding:
    exact = survey.duplicates.found()
    links = {link.row: link for link in survey.links if not link.flipped and not exact[link.row]}
    return _finding(
        survey, "near_duplicates", links,
        f"{_rows(len(links))} with nearly the same words as an earlier one{_of_sample(survey)}",
        note=lambda row: "like " + _source(survey, links[row.number].first),
        of=survey.sampled, measures={"similarity": survey.config.similarity},
    )  # fmt: skip


def _contradictory(survey: Survey) -> Finding:
    against = survey.contradictions.against()
    numbers = np.flatnonzero(survey.contradictions.found()).tolist()
    return _finding(
        survey, "contradictory", numbers, f"{_rows(len(numbers))} with the opposite preference of another",
        note=lambda row: "against " + _source(survey, int(against[row.number])),
    )  # fmt: skip


def _same_answers(survey: Survey) -> Finding:
    numbers = np.flatnonzero(survey.same_answers.found()).tolist()
    return _finding(
        survey, "same_answers", numbers, f"{_rows(len(numbers))} with the same answer twice", of=survey.counts.paired
    )


def _length_bias(survey: Survey) -> Finding:
    bias, won, lengths = survey.lengths.bias(), survey.lengths.difference(), survey.lengths.lengths()
    order = np.argsort(-won, kind="stable")
    worst = order[: int((won > 0).sum())]
    place = {int(survey.lengths.numbers[index]): index for index in worst[: survey.config.named].tolist()}
    biased = bias.low is not None and bias.high is not None and (bias.low > _BIASED or bias.high < 1 - _BIASED)
    says = (
        f"the longer answer wins in {bias.share:.1%} of {bias.pairs:,} pairs ({bias.low:.1%} to {bias.high:.1%}), "
        f"correlation {bias.correlation:+.2f}"
        if bias.share is not None
        else "no pair has answers of different lengths"
    )
    return _finding(
        survey, "length_bias", [survey.lengths.numbers[index] for index in worst.tolist()], says + _of_sample(survey),
        note=lambda row: " against ".join(str(n) for n in sorted(lengths[place[row.number], 1:].tolist())[::-1])
        + f" {survey.unit}",
        level="look" if biased else "fine" if bias.pairs else "unknown", of=bias.pairs,
        measures=bias._asdict(),
    )  # fmt: skip


def _contamination(survey: Survey) -> Finding:
    found = survey.contamination
    if found is None:
        return _finding(survey, "contamination", [], "there are no held-out prompts to compare with", level="unknown")
    hits = found.hits()
    numbers = np.flatnonzero(hits >= 0).tolist()
    touched = len(np.unique(hits[hits >= 0]))

    def note(row: Row) -> str:
        shared = found.shared(row)
        return f"{found.sources[hits[row.number]]}: " + (f"“{shared}”" if shared else "the same prompt")

    return _finding(
        survey, "contamination", numbers,
        f"{_rows(len(numbers))} share text with {touched:,} of {len(found.sources):,} held-out prompts",
        note=note,
        measures={"heldout_prompts": len(found.sources), "heldout_touched": touched, "ngram": survey.config.ngram},
    )  # fmt: skip


def _label_noise(survey: Survey) -> Finding:
    contradictory = survey.contradictions.found()
    exact = survey.duplicates.found()
    near = [link for link in survey.links if not exact[link.row] and not contradictory[link.row]]
    flipped = [link for link in near if link.flipped]
    parts = {
        "votes": survey.votes.repeats(),
        "repeated_rows": Repeats(*survey.contradictions.disagreement()),
        "near_duplicates": Repeats(len(near), len(flipped)),
    }
    rate = error_rate(list(parts.values()))
    split, other = set(survey.votes.split), {link.row: link.first for link in flipped}
    numbers = sorted(split | set(other) | set(np.flatnonzero(contradictory).tolist()))

    def note(row: Row) -> str:
        if row.number in split:
            return "votes " + ", ".join(f"{vote:g}" for vote in row.votes)
        return f"nearly {_source(survey, other[row.number])}, flipped" if row.number in other else "contradicted"

    says = (
        "nothing to estimate it from: no pair has several votes or stands twice"
        if rate is None
        else f"about {rate:.1%} of the labels are wrong, from "
        + ", ".join(
            f"{name.replace('_', ' ')} ({part.disagreeing:,.0f} of {part.comparisons:,} disagree)"
            for name, part in parts.items()
            if part.comparisons
        )
    )
    return _finding(
        survey, "label_noise", numbers, says, note=note,
        level="unknown" if rate is None else "look" if rate >= _NOISY else "fine",
        measures={"rate": rate, **{name: part._asdict() for name, part in parts.items()}},
    )  # fmt: skip


def _languages(survey: Survey) -> Finding:
    found = survey.languages
    counts = language_counts(survey)
    sure = [label for label in counts if label != UNSURE]
    if not sure:
        return _finding(survey, "languages", [], "no answer is long enough to tell", level="unknown", of=survey.sampled)
    codes = found.codes()
    fine = [found.labels.index(label) for label in (sure[0], UNSURE)]
    numbers = [found.numbers[index] for index in np.flatnonzero(~np.isin(codes, fine)).tolist()]
    spoken = {found.numbers[index]: found.labels[codes[index]] for index in np.flatnonzero(~np.isin(codes, fine))}
    return _finding(
        survey, "languages", numbers,
        f"mostly {sure[0]}, {_rows(len(numbers))} in {len(sure) - 1} other languages{_of_sample(survey)}",
        note=lambda row: f"{spoken[row.number]}: {row.answer[:_NOTE]}", of=survey.sampled,
        level="look" if len(numbers) >= _FOREIGN * survey.sampled else "fine",
        measures={"main": sure[0]},
    )  # fmt: skip


def _balance(survey: Survey) -> Finding:
    counts = survey.counts.kinds
    kinds = survey.config.kinds or tuple(sorted(kind for kind in counts if kind != NO_KIND))
    if not kinds:
        return _finding(survey, "balance", [], "no row says what kind it is", level="unknown")
    equal = sum(counts[kind] for kind in kinds) / len(kinds)
    thin = [kind for kind in kinds if counts[kind] < _THIN * equal or not counts[kind]]
    outside = sum(count for kind, count in counts.items() if kind not in kinds)
    numbers = _outside(survey, set(kinds)) if outside else []
    says = "; ".join(
        filter(None, [
            ", ".join(f"{cut(kind, 40)} {counts[kind]:,}" for kind in kinds[:8]) + (", …" if len(kinds) > 8 else ""),
            f"thin: {', '.join(cut(kind, 40) for kind in thin[:8])}" if thin else "",
            f"{_rows(outside)} of none of them" if outside else "",
        ])
    )  # fmt: skip
    return _finding(
        survey, "balance", numbers, says, level="look" if thin or outside else "fine",
        note=lambda row: f"kind {row.values['kind']}" if row.values["kind"] else "no kind",
        measures={"thin": [cut(kind, _NOTE) for kind in thin], "equal_share": equal},
    )  # fmt: skip


def language_counts(survey: Survey) -> dict[str, int]:
    """Rows a language, most first."""
    counts = Counter(survey.languages.codes().tolist())
    named = {survey.languages.labels[code]: count for code, count in counts.items()}
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))


def _outside(survey: Survey, kinds: set[str]) -> list[int]:
    return [row.number for row in survey.records.stream(["kind"]) if row.values["kind"] not in kinds]


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows" if count else "no row"


def _of_sample(survey: Survey) -> str:
    return "" if survey.sampled == len(survey.records) else f" (in a sample of {survey.sampled:,})"


def _source(survey: Survey, number: int) -> str:
    return survey.records.row(number).source


def _last(row: Row) -> str:
    """The prompt's last message, which tells prompts apart better than its first."""
    return str(row.values["prompt"][-1]["content"]) if row.values["prompt"] else ""


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value
