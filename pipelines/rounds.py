"""A spec becomes a plan: the rounds unrolled into steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.fingerprint import hash_path
from pipelines.models import base_step
from pipelines.plan import Source, Step, walk
from pipelines.spec import PipelineSpec
from stages import objectives
from stages.catalog import (
    EVALUATE,
    INGEST,
    JUDGE,
    PAIR,
    PREPARE,
    PROMOTE,
    REFERENCE,
    ROLLOUT,
    TRAIN,
    EvaluateConfig,
    IngestConfig,
    JudgeStageConfig,
    PrepareConfig,
    ReferenceConfig,
    choose_engine,
)


@dataclass(frozen=True)
class Round:
    """The steps of one round that its report reads."""

    number: int
    prepare: Step
    train: Step
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
        """All steps in the order in which they run: what reads the user's files first, then round by round."""
        targets = [step for r in self.rounds for step in (r.train, r.evaluate, r.promote) if step]
        return sorted(walk(targets), key=lambda step: any(isinstance(v, Step) for v in step.inputs.values()))


def plan(spec: PipelineSpec, folder: Path) -> Plan:
    """Unroll a spec's rounds. ``folder`` is where relative model paths begin."""
    return _Unroller(spec, base_step(spec.policy, folder)).unroll()


@dataclass
class _Unroller:
    spec: PipelineSpec
    base: Step
    champion: Step = field(init=False)
    """The last promoted policy."""
    adapter_base: dict[str, Step] = field(default_factory=dict)
    """For a policy made of an adapter: what the adapter sits on."""
    earlier: list[Step] = field(default_factory=list)
    """Where earlier pairs come from, the oldest first."""

    def __post_init__(self) -> None:
        self.champion = self.base

    def unroll(self) -> Plan:
        rounds = tuple(self._round(number) for number in range(1, self.spec.rounds + 1))
        return Plan(rounds)

    def _round(self, number: int) -> Round:
        spec = self.spec
        own = self._pairs(number)
        replay = self.earlier if spec.iterate.replay else []
        shards = Step(
            f"round-{number}/prepare",
            PREPARE,
            PrepareConfig(
                max_length=spec.prepare.max_length,
                truncation=spec.prepare.truncation,
                replay=spec.iterate.replay if replay else 0.0,
            ),
            {"policy": self.base}
            | {f"pairs.{index}": step for index, step in enumerate(own)}
            | {f"replay.{index}": step for index, step in enumerate(replay)},
        )
        self.earlier = [*self.earlier, *own]
        train = self._train(number, shards)
        evaluate = self._evaluate(number, train)
        promote = None
        if evaluate and spec.evaluate.promote_if:
            inputs = {"candidate": train, "champion": self.champion, "evaluation": evaluate}
            promote = Step(f"round-{number}/promote", PROMOTE, spec.evaluate.promote_if, inputs)
        self.champion = promote or train
        return Round(number, shards, train, evaluate, promote)

    def _pairs(self, number: int) -> list[Step]:
        """The round's own pairs: the given preferences in round 1, and those judged from the champion's answers."""
        spec, own = self.spec, []
        if number == 1 and spec.preferences:
            files = {f"files.{index}": _source(path) for index, path in enumerate(spec.preferences)}
            own.append(Step("preferences", INGEST, IngestConfig(kind="pairs"), files))
        if spec.prompts.train:
            prompts = self._prompts("prompts", spec.prompts.train)
            rollouts = self._rollouts(f"round-{number}/rollout", self.champion, prompts, spec.rollout.samples, number)
            judged = self._judged(f"round-{number}/judge", rollouts)
            inputs = {"rollouts": rollouts, "judgements": judged}
            own.append(Step(f"round-{number}/pair", PAIR, spec.pair, inputs))
        return own

    def _train(self, number: int, shards: Step) -> Step:
        spec = self.spec
        origins = {"base": self.base, "previous": self.champion}
        initial, against = origins[spec.iterate.initial], origins[spec.iterate.reference]
        config = spec.train.model_copy(update={"seed": spec.train.seed + spec.seed})
        inputs = {"policy": initial, "shards": shards}
        if objectives.needs_reference(config):
            scoring = ReferenceConfig(
                precision=config.precision,
                quantization=config.quantization,
                layout=config.layout,
                mismatched=objectives.needs_kl(config),
            )
            given = {"policy": against, "shards": shards}
            inputs["reference"] = Step(f"round-{number}/reference", REFERENCE, scoring, given, spec.resources.reference)
        train = Step(f"round-{number}/train", TRAIN, config, inputs, spec.resources.train)
        if spec.train.lora and not spec.train.lora.dora and not spec.train.quantization:
            # vLLM knows no DoRA; a LoRA on a quantised base complements that base, which is merged, not this one.
            self.adapter_base[train.fingerprint] = initial
        return train

    def _evaluate(self, number: int, train: Step) -> Step | None:
        spec = self.spec
        if not spec.prompts.heldout:
            return None
        prompts = self._prompts("heldout", spec.prompts.heldout)
        judged = {}
        baseline = self.champion if spec.evaluate.against == "previous" else self.base
        for role, policy in (("policy", train), ("baseline", baseline)):
            key = f"round-{number}/evaluate" if role == "policy" else f"{policy.key}/heldout"
            rollouts = self._rollouts(f"{key}-rollout", policy, prompts, spec.evaluate.samples, 0)
            judged[role] = self._judged(f"{key}-judge", rollouts)
        return Step(f"round-{number}/evaluate", EVALUATE, EvaluateConfig(), judged)

    def _prompts(self, key: str, path: Path) -> Step:
        return Step(key, INGEST, IngestConfig(kind="prompts"), {"files.0": _source(path)})

    def _rollouts(self, key: str, policy: Step, prompts: Step, samples: int, number: int) -> Step:
        spec = self.spec
        seed = spec.rollout.seed + spec.seed + number
        engine = choose_engine(spec.rollout.engine, spec.train.prompt_learning)
        config = spec.rollout.model_copy(update={"samples": samples, "seed": seed, "engine": engine})
        inputs = {"policy": policy, "prompts": prompts}
        if base := self.adapter_base.get(policy.fingerprint):
            inputs["adapter_base"] = base
        return Step(key, ROLLOUT, config, inputs, spec.resources.rollout)

    def _judged(self, key: str, rollouts: Step) -> Step:
        if self.spec.judge is None:
            raise ValueError("prompts without a judge; the spec's checks let this through")
        return Step(key, JUDGE, JudgeStageConfig(judge=self.spec.judge), {"rollouts": rollouts})


def _source(path: Path) -> Source:
    return Source(path.name, path, hash_path(path))
