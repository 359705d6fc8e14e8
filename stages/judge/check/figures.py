"""How a judge agrees with people, as figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

from stages.core.bootstrap import Interval, ratio
from stages.core.evaluation.agreement import cohen_kappa, krippendorff_alpha
from stages.core.evaluation.biases import length_bias, position_bias

_EVEN = 1e-6
"""So close to one half is a tie."""


@dataclass(frozen=True)
class Item:
    """A pair of answers, with preferences for the first of them: 1, 0, or 0.5 for a tie.

    ``people`` may be a share of votes or a probability; ``judge`` is None where the judge has no verdict. ``shown`` and
    ``swapped`` are what it said in each order, if it was asked in both. ``longer`` is by how many characters the first
    is longer than the second.
    """

    prompt: str
    people: float
    votes: tuple[float, ...] = ()
    judge: float | None = None
    shown: float | None = None
    swapped: float | None = None
    longer: int = 0


@dataclass(frozen=True)
class Bootstrap:
    """Intervals are over prompts: pairs on one prompt are alike."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def figures(items: Sequence[Item], settings: Bootstrap = Bootstrap()) -> dict[str, Any]:
    """Everything about the items, as JSON values; what does not exist is None. A tie is a label like the others except
    where a figure's name says otherwise.

    ``accuracy``: ``with_ties`` is the share of all verdicts that are people's, ties among them (setup S1 of Zheng et
    al. 2023, arXiv:2306.05685); ``without_ties`` that of the pairs on which neither people nor the judge tie (their
    S2); ``half_ties`` that of the pairs on which people do not, where a tie of the judge is half right.

    Raises:
        ValueError: there are no items.
    """
    if not items:
        raise ValueError("nothing was judged")
    judged = [item for item in items if item.judge is not None]
    truth, said = [_sign(item.people) for item in judged], [_sign(item.judge) for item in judged]
    ties = {"people": truth.count(0), "judge": said.count(0)}
    both = sum(one == two == 0 for one, two in zip(truth, said, strict=True))
    return {
        "pairs": len(items),
        "prompts": len({item.prompt for item in items}),
        "judged": len(judged),
        "unjudged": len(items) - len(judged),
        "ties": {**ties, "both": both},
        "accuracy": _accuracy(judged, settings) if judged else None,
        "kappa": _known(cohen_kappa(said, truth)) if judged else None,
        "people": _people(items, settings),
        "position": _position(judged, settings),
        "length": _length(judged, said, truth, settings),
        "confidence": settings.confidence,
    }


def _accuracy(judged: Sequence[Item], settings: Bootstrap) -> dict[str, Any]:
    def right(item: Item) -> float:
        return float(_sign(item.judge) == _sign(item.people))

    def half(item: Item) -> float:
        return right(item) if _sign(item.judge) else 0.5

    sure = [item for item in judged if _sign(item.people)]
    both = [item for item in sure if _sign(item.judge)]
    return {
        "with_ties": _mean(judged, right, settings),
        "without_ties": _mean(both, right, settings),
        "half_ties": _mean(sure, half, settings),
    }


def _people(items: Sequence[Item], settings: Bootstrap) -> dict[str, Any] | None:
    """Agreement among people, the most that a judge of single votes can be asked for. ``agreement`` is how often two of
    them, by chance, say the same of a pair, and ``judge`` how often the judge and one of them do. None where no pair
    has two votes."""
    several = [item for item in items if len(item.votes) > 1]
    if not several:
        return None

    def among(item: Item) -> float:
        two = [_sign(one) == _sign(other) for one, other in combinations(item.votes, 2)]
        return sum(two) / len(two)

    def judge(item: Item) -> float:
        return sum(_sign(vote) == _sign(item.judge) for vote in item.votes) / len(item.votes)

    most = max(len(item.votes) for item in several)
    units = [[*map(_sign, item.votes), *[None] * (most - len(item.votes))] for item in several]
    return {
        "agreement": _mean(several, among, settings),
        "judge": _mean([item for item in several if item.judge is not None], judge, settings),
        "alpha": _known(krippendorff_alpha([list(row) for row in zip(*units, strict=True)])),
    }


def _position(judged: Sequence[Item], settings: Bootstrap) -> dict[str, Any] | None:
    twice = [(each.shown, each.swapped) for each in judged if each.shown is not None and each.swapped is not None]
    if not twice:
        return None
    given, turned = [_sign(shown) for shown, _ in twice], [-_sign(swapped) for _, swapped in twice]
    found = position_bias(given, turned, **asdict(settings))
    return {"pairs": len(twice), "changed": _plain(found.changed), "first": _plain(found.first)}


def _length(
    judged: Sequence[Item], said: Sequence[int], truth: Sequence[int], settings: Bootstrap
) -> dict[str, Any] | None:
    if not judged:
        return None
    found = length_bias(said, [float(item.longer) for item in judged], truth, **asdict(settings))
    people = _plain(found.people) if found.people is not None else None
    return {"longer": _plain(found.longer), "people": people, "correlation": _known(found.correlation)}


def _mean(items: Sequence[Item], value: Callable[[Item], float], settings: Bootstrap) -> dict[str, Any] | None:
    """The mean over items, each counting alike, resampled by prompt; None of none."""
    if not items:
        return None
    sums: dict[str, tuple[float, int]] = {}
    for item in items:
        total, count = sums.get(item.prompt, (0.0, 0))
        sums[item.prompt] = total + value(item), count + 1
    top, bottom = zip(*sums.values(), strict=True)
    return {**_plain(ratio(top, bottom, **asdict(settings))), "pairs": len(items)}


def _sign(preference: float | None) -> int:
    assert preference is not None
    return 0 if abs(preference - 0.5) < _EVEN else 1 if preference > 0.5 else -1


def _plain(interval: Interval) -> dict[str, float | None]:
    return {name: _known(value) for name, value in asdict(interval).items()}


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def joined(
    labels: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    judgements: Sequence[Mapping[str, Any]],
) -> Iterator[Item]:
    """What people said of each pair with what the judge did: its verdicts if it compares (rows of ``VERDICTS``), else
    which of its scores is higher (``JUDGEMENTS``). ``labels`` are rows of ``check.labelled.LABEL``, ``answers`` of the
    rollouts."""
    text = {(row["prompt_id"], row["sample"]): row["text"] for row in answers}
    score = {(row["prompt_id"], row["sample"]): row["score"] for row in judgements}
    verdict = {row["prompt_id"]: row for row in verdicts}
    for label in labels:
        name = label["prompt_id"]
        first, second = (name, 0), (name, 1)
        found: dict[str, Any] = {}
        if name in verdict:
            found = {"judge": verdict[name]["preference"]} | {key: verdict[name][key] for key in ("shown", "swapped")}
        elif not verdicts and first in score and second in score:
            found = {"judge": 0.5 + 0.5 * ((score[first] > score[second]) - (score[first] < score[second]))}
        longer = len(text[first]) - len(text[second])
        yield Item(label["prompt_key"], label["preference"], tuple(label["votes"]), longer=longer, **found)
