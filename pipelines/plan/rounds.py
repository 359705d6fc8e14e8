"""A spec becomes a plan: the rounds unrolled into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.plan.base_model import base_step
from pipelines.plan.given import Past, Preferences, encoded, past_inputs, preferences, prompts
from pipelines.plan.judging import Ensemble, Judging, Single, judging, log_ratios, revised
from pipelines.plan.reward import reward_step
from pipelines.plan.steps import Step, walk
from pipelines.spec.models import PipelineSpec, train_of
from stages.catalog import EVALUATE, HELDOUT, PAIR, PREPARE, PROMOTE, REFERENCE, ROLLOUT, TRAIN
from stages.core.losses import config as loss_config
from stages.data.config import PrepareConfig
from stages.generate.config import choose_engine
from stages.judge.config import EvaluateConfig
from stages.score.config import HeldoutConfig, ReferenceConfig, measured
from stages.train.config import TrainConfig


@dataclass(frozen=True)
class Round:
    """The steps of one round that its report reads."""

    number: int
    prepare: Step
    train: Step
    heldout: Step | None
    evaluate: Step | None
    promote: Step | None

    @property
    def policy(self) -> Step:
        """The policy after the round: the new one, or what the gate let through."""
        return self.promote or self.train


@dataclass(frozen=True)
class Plan:
    rounds: tuple[Round, ...]

    @property
    def policy(self) -> Step:
        return self.rounds[-1].policy

    @property
    def steps(self) -> list[Step]:
        """All steps in the order they run: first those that read the user's files, then round by round."""
        targets = [step for r in self.rounds for step in (r.train, r.heldout, r.evaluate, r.promote) if step]
        return sorted(walk(targets), key=lambda step: any(isinstance(v, Step) for v in step.inputs.values()))


def plan(spec: PipelineSpec, folder: Path) -> Plan:
    """Unroll a spec's rounds. Relative model paths are relative to ``folder``."""
    return Planner(spec, folder).plan(spec)


class Planner:
    """Plans of a spec and of others that differ from it in how they train: the user's files are looked at once."""

    def __init__(self, spec: PipelineSpec, folder: Path) -> None:
        self._folder = folder
        self._base = base_step(spec.policy, folder)
        self._given = preferences(spec, folder, self._base)
        self._judging = judging(spec, folder, reward_step(spec, self._base, self._given))
        self._prompts: dict[str, Step] = {}

    def plan(self, spec: PipelineSpec) -> Plan:
        return unroll(spec, self._base, self._given, self._asked, self._judging)

    def _asked(self, key: str, location: str) -> Step:
        if key not in self._prompts:
            self._prompts[key] = prompts(key, location, self._folder)
        return self._prompts[key]


def unroll(
    spec: PipelineSpec, base: Step, given: Preferences | None, asked: Callable[[str, str], Step],
    judging: Judging, past: Sequence[Past] = (),
) -> Plan:  # fmt: skip
    """A spec's rounds from a base policy, on the ``given`` preferences and the prompts that ``asked`` finds by their
    key and location; ``iterate.replay`` also counts for the ``past``."""
    return _Unroller(spec, base, given, asked, judging, past).unroll()


@dataclass
class _Unroller:
    spec: PipelineSpec
    base: Step
    given: Preferences | None
    """The user's preferences, if there are any."""
    asked: Callable[[str, str], Step]
    """Prompts by their key, and where they are."""
    judging: Judging
    past: Sequence[Past]
    """What earlier ticks of a schedule trained on."""
    champion: Step = field(init=False)
    """The last promoted policy."""
    adapter_base: dict[str, Step] = field(default_factory=dict)
    """For a policy made from an adapter: what the adapter sits on."""
    virtual_tokens: bool = field(init=False)
    """Whether policies of any round are made of such: then one engine answers for all of them."""
    earlier: list[Step] = field(default_factory=list)
    """Earlier rounds' own pairs, oldest first."""

    def __post_init__(self) -> None:
        self.champion = self.base
        self.earlier = [step for each in self.past for step in each.own]
        spec = self.spec
        trainings = (train_of(spec.train, spec.iterate, number) for number in range(1, spec.rounds + 1))
        self.virtual_tokens = any(training.prompt_learning for training in trainings)

    def unroll(self) -> Plan:
        rounds = tuple(self._round(number) for number in range(1, self.spec.rounds + 1))
        return Plan(rounds)

    def _round(self, number: int) -> Round:
        spec = self.spec
        config = train_of(spec.train, spec.iterate, number)
        own = self._own(number)
        shards = self._shards(number, own)
        self.earlier = [*self.earlier, *own]
        train = self._train(number, shards, config)
        heldout = self._heldout(number, train, config)
        evaluate = self._evaluate(number, train)
        promote = None
        if evaluate and spec.evaluate.promote_if:
            inputs = {"candidate": train, "champion": self.champion, "evaluation": evaluate}
            promote = Step(f"round-{number}/promote", PROMOTE, spec.evaluate.promote_if, inputs)
        self.champion = promote or train
        return Round(number, shards, train, heldout, evaluate, promote)

    def _shards(self, number: int, own: list[Step]) -> Step:
        """What a round trains on: the given preferences (in later rounds the replayed share of them), the round's own
        pairs and the replayed share of earlier ones."""
        again = self.spec.iterate.replay
        share = 1.0 if number == 1 else again
        replay = self.earlier if again else []
        past, past_of = past_inputs(self.past if again else ())
        data = self.given if self.given and share else None
        config = PrepareConfig(
            preferences=share if data else 1.0, replay=again if replay or past else 0.0,
            source_of=data.source_of if data else (), past_of=past_of, max_bad_share=self.spec.data.max_bad_share,
        )  # fmt: skip
        inputs = (dict(data.inputs) if data else {}) | {f"pairs.{index}": step for index, step in enumerate(own)}
        inputs |= {f"replay.{index}": step for index, step in enumerate(replay)} | past
        return Step(f"round-{number}/prepare", PREPARE, config, inputs, self.spec.resources.prepare)

    def _own(self, number: int) -> list[Step]:
        """The round's own pairs, tokenised: judged from the champion's answers."""
        spec = self.spec
        if not spec.prompts.train:
            return []
        asked = self.asked("prompts", spec.prompts.train)
        rollouts = self._rollouts(f"round-{number}/rollout", self.champion, asked, spec.rollout.samples, number)
        made = {}
        if self.judging.judge is not None:
            judged = self._judge.scored(f"round-{number}/judge", rollouts)
            inputs = {"rollouts": rollouts, "judgements": judged}
            made["encode"] = Step(f"round-{number}/pair", PAIR, spec.pair, inputs)
        if (pairs := revised(spec, self.judging, f"round-{number}/revise", rollouts)) is not None:
            made["encode-revised"] = pairs
        return [encoded(f"round-{number}/{name}", pairs, self.base, spec) for name, pairs in made.items()]

    def _train(self, number: int, shards: Step, config: TrainConfig) -> Step:
        spec = self.spec
        initial = self.base if spec.iterate.initial == "base" else self.champion
        inputs = {"policy": initial, "shards": shards}
        if loss_config.needs_reference(config):
            inputs["reference"] = self._scored(f"round-{number}/reference", self._against(), shards, config)
        seeded = config.model_copy(update={"seed": config.seed + spec.seed})
        train = Step(f"round-{number}/train", TRAIN, seeded, inputs, spec.resources.train)
        if config.lora and not config.lora.dora and not config.quantization:
            # vLLM has no DoRA; a LoRA on a quantised base complements that base, which it is merged into, not this one.
            self.adapter_base[train.fingerprint] = initial
        return train

    def _heldout(self, number: int, train: Step, config: TrainConfig) -> Step | None:
        """The new policy and its reference on the held-out preferences."""
        spec = self.spec
        if self.given is None or not self.given.heldout:
            return None
        shards = Step(
            "preferences/heldout", PREPARE, PrepareConfig(heldout=True), self.given.inputs, spec.resources.prepare
        )
        name = f"round-{number}/heldout"
        scored = {"shards": shards, "policy": self._scored(f"{name}-logprobs", train, shards, config, False)}
        if loss_config.needs_reference(config):
            scored["reference"] = self._scored(f"{name}-reference", self._against(), shards, config, False)
        return Step(name, HELDOUT, HeldoutConfig(objective=measured(config)), scored)

    def _scored(self, key: str, policy: Step, shards: Step, train: TrainConfig, quantized: bool = True) -> Step:
        """A policy's log-probabilities of the responses in shards, as a training needs them; ``quantized`` if it holds
        the policy quantised."""
        config = ReferenceConfig(
            precision=train.precision,
            quantization=train.quantization if quantized else None,
            layout=train.layout,
            mismatched=loss_config.needs_kl(train),
        )
        return Step(key, REFERENCE, config, {"policy": policy, "shards": shards}, self.spec.resources.reference)

    def _against(self) -> Step:
        return self.base if self.spec.iterate.reference == "base" else self.champion

    def _evaluate(self, number: int, train: Step) -> Step | None:
        spec = self.spec
        if not spec.prompts.heldout:
            return None
        asked = self.asked("heldout", spec.prompts.heldout)
        key = f"round-{number}/evaluate"
        answers = self._rollouts(f"{key}-rollout", train, asked, spec.evaluate.samples, 0)
        inputs = {"policy": answers}
        if not self._judge.compares:
            inputs["judged"] = self._judge.scored(f"{key}-judge", answers)
        for name, policy in self._baselines().items():
            place = f"{policy.key}/heldout"
            theirs = self._rollouts(f"{place}-rollout", policy, asked, spec.evaluate.samples, 0)
            inputs[f"baseline.{name}"] = theirs
            if self._judge.compares:
                inputs[f"verdicts.{name}"] = self._judge.compared(f"{key}-{name}", answers, theirs)
            else:
                inputs[f"baseline_judged.{name}"] = self._judge.scored(f"{place}-judge", theirs)
        config = EvaluateConfig(against=spec.evaluate.baselines, task=spec.evaluate.task)
        inputs |= self._checks(key, train)
        if spec.evaluate.kl or (spec.evaluate.promote_if and spec.evaluate.promote_if.max_kl is not None):
            inputs["log_ratios"] = log_ratios(spec, f"{key}-kl", answers, train, self._against())
        return Step(key, EVALUATE, config, inputs)

    def _checks(self, key: str, train: Step) -> dict[str, Step]:
        """The answers that are checked, of the new policy and of the first baseline."""
        spec, judge = self.spec, self.judging.checks
        if spec.evaluate.checks is None or judge is None:
            return {}
        asked = self.asked("checks", spec.evaluate.checks.prompts)
        baseline = self._baselines()[spec.evaluate.baselines[0]]
        found = {}
        for role, policy in (("checked", train), ("baseline_checked", baseline)):
            place = f"{key}-checks" if role == "checked" else f"{policy.key}/checks"
            answers = self._rollouts(f"{place}-rollout", policy, asked, spec.evaluate.samples, 0)
            found[role] = judge.scored(f"{place}-judge", answers)
        return found

    def _baselines(self) -> dict[str, Step]:
        """What a round's policy is measured against, by name."""
        policies = {"base": self.base, "previous": self.champion, **self.judging.others}
        return {name: policies[name] for name in self.spec.evaluate.baselines}

    @property
    def _judge(self) -> Single | Ensemble:
        if self.judging.judge is None:
            raise ValueError("prompts without a judge; the spec's checks let this through")
        return self.judging.judge

    def _rollouts(self, key: str, policy: Step, prompts: Step, samples: int, number: int) -> Step:
        spec = self.spec
        seed = spec.rollout.seed + spec.seed + number
        engine = choose_engine(spec.rollout.engine, self.virtual_tokens)
        config = spec.rollout.model_copy(update={"samples": samples, "seed": seed, "engine": engine})
        inputs = {"policy": policy, "prompts": prompts}
        if base := self.adapter_base.get(policy.fingerprint):
            inputs["adapter_base"] = base
        return Step(key, ROLLOUT, config, inputs, spec.resources.rollout)
