"""What ``train.loss`` and its companions may say, and what each loss needs. No torch: a plan asks these questions.

The formulas are in ``stages.core.losses.functions``; ``docs/losses.md`` is the table for people.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeFloat, PositiveFloat, Tag
from pydantic_core import PydanticCustomError

from stages.base import Config, Plugin
from stages.hints import closest

LabelSmoothing = Annotated[float, Field(ge=0, lt=0.5)]


@dataclass(frozen=True)
class Traits:
    """What a loss needs and what may be done to it."""

    reference: bool = True
    """It compares with the reference."""
    rewards: bool = False
    """It is a function of the implicit rewards beta * (log pi - log ref), so ``length_normalise`` and ``divergence``
    may change what a reward is. The others sum, average, sort or regress the log-ratios in a way of their own."""
    averaged: bool = False
    """It divides log-probabilities by the response's tokens itself."""
    unpaired: bool = False
    """It takes rows with only one response."""
    coupled: bool = False
    """It looks across pairs: it has to be called with all pairs of the optimizer step."""
    kl: bool = False
    """It needs the batch's estimate of the divergence from the reference."""


TRAITS: Mapping[str, Traits] = {
    "sigmoid": Traits(rewards=True),
    "robust": Traits(rewards=True),
    "ipo": Traits(averaged=True),
    "hinge": Traits(rewards=True),
    "kto": Traits(unpaired=True, kl=True),
    "bco": Traits(rewards=True, unpaired=True, coupled=True),
    "simpo": Traits(reference=False, averaged=True),
    "orpo": Traits(reference=False, averaged=True),
    "cpo": Traits(reference=False),
    "apo_zero": Traits(rewards=True),
    "apo_down": Traits(rewards=True),
    "exo": Traits(rewards=True),
    "nca": Traits(rewards=True),
    "sppo": Traits(),
    "discopop": Traits(rewards=True),
    "aot": Traits(coupled=True),
}
"""Every built-in loss."""

_OWN = Traits()  # nothing is known about a user's function, so it gets pairs with a reference, as they come
_ALSO_CALLED = {"dpo": "sigmoid", "slic": "hinge"}


class _Loss(Config):
    weight: PositiveFloat = 1.0
    """Factor on this loss in the sum."""


class PairwiseLoss(_Loss):
    use: Literal["sigmoid", "ipo", "hinge", "orpo", "apo_zero", "apo_down", "nca", "sppo", "aot"]
    label_smoothing: LabelSmoothing = 0.0
    """How often a preference is taken to be the wrong way round."""


class RobustLoss(_Loss):
    use: Literal["robust"]
    label_smoothing: LabelSmoothing = 0.1
    """The rate at which preferences are flipped."""


class ExoLoss(_Loss):
    use: Literal["exo"]
    label_smoothing: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    """Probability of the rejected response in the distribution that is aimed at."""


class SimpoLoss(_Loss):
    use: Literal["simpo"]
    gamma: NonNegativeFloat = 0.5
    """Margin that the rewards are to be apart."""
    label_smoothing: LabelSmoothing = 0.0


class CpoLoss(_Loss):
    use: Literal["cpo"]
    alpha: NonNegativeFloat = 1.0
    """Factor on the negative log-likelihood of the chosen response."""
    label_smoothing: LabelSmoothing = 0.0


class DiscopopLoss(_Loss):
    use: Literal["discopop"]
    temperature: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Width of the change from the logistic to the exponential loss; above 1 the loss would not be bounded."""
    label_smoothing: LabelSmoothing = 0.0


class KtoLoss(_Loss):
    use: Literal["kto"]
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0


class BcoLoss(_Loss):
    use: Literal["bco"]


class CustomLoss(Plugin, _Loss):
    """The user's own loss: a function called with (x: LossInput, beta, **options) that returns one loss per pair."""


class ConstraintConfig(Plugin):
    """The user's own penalty: a function called with (x: LossInput, rewards: Rewards, pairs, **options) that returns
    one penalty a pair."""

    weight: PositiveFloat = 1.0


class KlDivergence(Config):
    use: Literal["reverse_kl", "forward_kl", "js"]


class AlphaDivergence(Config):
    use: Literal["alpha"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Towards 0 it becomes the reverse, towards 1 the forward KL divergence."""


def _use(value: Any) -> Any:
    return value.get("use") if isinstance(value, Mapping) else getattr(value, "use", None)


def _named(
    what: str, names: Sequence[str], also: Mapping[str, str] | None = None, own: bool = False
) -> Callable[[Any], Any]:
    """A validator that makes a mapping of a bare name and refuses unknown names.

    Args:
        what: what it is that has these names.
        also: other names that people know, and which of ``names`` they mean.
        own: a user's "module:function" is taken too.
    """
    meant = {name: name for name in names} | dict(also or {})
    valid = ", ".join(names) + (', or your own as "module:function"' if own else "")

    def check(value: Any) -> Any:
        value = {"use": value} if isinstance(value, str) else value
        use = _use(value)
        if use in names or (own and isinstance(use, str) and ":" in use):
            return value
        if isinstance(value, Mapping) and "use" not in value:
            raise PydanticCustomError(UNKNOWN_NAME, "{text}", {"text": f"name the {what} with use; valid: {valid}"})
        shown = reprlib.repr(value if use is None else use)
        close = closest(str(use), meant)
        question = f"did you mean {meant[close]!r}? " if close else ""
        text = f"unknown {what} {shown}; {question}valid: {valid}"
        raise PydanticCustomError(UNKNOWN_NAME, "{text}", {"text": text})

    return check


LOSS_ARGUMENTS = ("x", "beta")
"""What a user's loss is called with besides its options."""
CONSTRAINT_ARGUMENTS = ("x", "rewards", "pairs")
"""What a user's constraint is called with besides its options."""
UNKNOWN_NAME = "unknown_name"
"""Pydantic's type of the error for a name that does not exist."""


def _loss_tag(value: Any) -> str:
    use = str(_use(value))
    if ":" in use:
        return "custom"
    return "pairwise" if use in get_args(PairwiseLoss.model_fields["use"].annotation) else use


def _divergence_tag(value: Any) -> str:
    return "alpha" if _use(value) == "alpha" else "kl"


def _listed(value: Any) -> Any:
    """One loss is a list of one, so that every way to write it is one identity."""
    if isinstance(value, list | tuple) and not value:
        raise ValueError("expected at least one loss, got an empty list")
    return value if isinstance(value, list | tuple) else [value]


LossConfig = Annotated[
    Annotated[PairwiseLoss, Tag("pairwise")]
    | Annotated[RobustLoss, Tag("robust")]
    | Annotated[ExoLoss, Tag("exo")]
    | Annotated[SimpoLoss, Tag("simpo")]
    | Annotated[CpoLoss, Tag("cpo")]
    | Annotated[DiscopopLoss, Tag("discopop")]
    | Annotated[KtoLoss, Tag("kto")]
    | Annotated[BcoLoss, Tag("bco")]
    | Annotated[CustomLoss, Tag("custom")],
    Discriminator(_loss_tag),
    BeforeValidator(_named("loss", tuple(TRAITS), _ALSO_CALLED, own=True)),
]
Losses = Annotated[tuple[LossConfig, ...], BeforeValidator(_listed)]
Divergence = Annotated[
    Annotated[KlDivergence, Tag("kl")] | Annotated[AlphaDivergence, Tag("alpha")],
    Discriminator(_divergence_tag),
    BeforeValidator(_named("divergence", ("reverse_kl", "forward_kl", "js", "alpha"))),
]


class ObjectiveConfig(Config):
    """What a training minimises."""

    loss: Losses = (PairwiseLoss(use="sigmoid"),)
    """One loss or a weighted sum of several: names, mappings with options, or the user's own functions."""
    beta: PositiveFloat = 0.1
    """Strength of the pull towards the reference; what it means to each loss is in docs/losses.md."""
    length_normalise: bool = False
    """Divide each response's log-ratio by its tokens before the loss."""
    divergence: Divergence = KlDivergence(use="reverse_kl")
    """What measures the distance to the reference (f-DPO)."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the preferred response's mean negative log-likelihood a token, added to the loss (RPO)."""
    wpo: bool = False
    """Weight each pair by how likely the policy is to write it (WPO)."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """The user's own penalties, added to the loss."""


def traits(loss: LossConfig) -> Traits:
    """What a loss needs; a user's function gets pairs with their reference, part of a step's pairs at a time."""
    return TRAITS.get(loss.use, _OWN)


def own_options(loss: LossConfig) -> dict[str, Any]:
    """The options that the loss's function is called with."""
    return loss.options if isinstance(loss, CustomLoss) else loss.model_dump(exclude={"use", "weight"})


def needs_reference(objective: ObjectiveConfig) -> bool:
    """Whether anything reads the reference's log-probabilities. User code may."""
    return bool(objective.constraints) or any(traits(loss).reference for loss in objective.loss)


def needs_kl(objective: ObjectiveConfig) -> bool:
    """Whether prompts are scored with other prompts' answers as well."""
    return any(traits(loss).kl for loss in objective.loss)


def takes_unpaired(objective: ObjectiveConfig) -> bool:
    """Whether rows with only one response can be trained on."""
    return all(traits(loss).unpaired for loss in objective.loss)


def loss_path(objective: ObjectiveConfig, index: int) -> tuple[str | int, ...]:
    """Key path, below ``train``, of one of the losses."""
    return ("loss", index) if len(objective.loss) > 1 else ("loss",)


def conflicts(objective: ObjectiveConfig) -> Iterator[tuple[str, str]]:
    """Settings that are valid one by one and cannot work together: the key below ``train``, and what to do."""
    given = {"length_normalise": objective.length_normalise, "divergence": objective.divergence.use != "reverse_kl"}
    for key in (key for key, changed in given.items() if changed):
        for loss in objective.loss:
            if (reason := _why_not(loss, key)) is not None:
                yield key, f"cannot be combined with the loss {loss.use}, {reason}; leave it out, or use another loss"


def _why_not(loss: LossConfig, key: str) -> str | None:
    """Why ``length_normalise`` or ``divergence`` means nothing to a loss, or None."""
    has = traits(loss)
    if has.rewards:
        return None
    if isinstance(loss, CustomLoss):
        return "which is your own and gets the log-probabilities as they are"
    if has.averaged and key == "length_normalise":
        return "which divides by the response's tokens itself"
    if not has.reference:
        return "which has no reference"
    return "which is not a function of the two rewards alone"
