"""Every stage with its configuration. Imports neither Ray nor torch, so that a plan is made instantly."""

from __future__ import annotations

from typing import Any

from stages.base import Stage
from stages.data.config import CurateConfig, EncodeConfig, IngestConfig, PrepareConfig, QualityConfig
from stages.generate.config import RolloutConfig
from stages.judge.check.config import LabelledConfig
from stages.judge.config import EvaluateConfig, JudgeStageConfig, PairConfig, PromoteConfig, VoteConfig
from stages.judge.judges.llm.config import ReviseConfig
from stages.policy.config import MaterialiseConfig
from stages.score.config import HeldoutConfig, ReferenceConfig
from stages.train.config import RewardConfig, TrainConfig

MATERIALISE = Stage(
    "materialise", 2, MaterialiseConfig, ("source", "adapter"), "policy", "stages.policy.materialise:run"
)
INGEST = Stage("ingest", 6, IngestConfig, ("files", "seen"), "records", "stages.data.ingest:run")
CURATE = Stage("curate", 3, CurateConfig, ("pairs", "heldout", "seen"), "selection", "stages.data.curate:run")
ENCODE = Stage("encode", 5, EncodeConfig, ("policy", "pairs"), "tokens", "stages.data.encode:run")
PREPARE = Stage(
    "prepare", 5, PrepareConfig, ("selection", "selected", "pairs", "replay", "past_selection", "past"), "shards",
    "stages.data.prepare:run",
)  # fmt: skip
REFERENCE = Stage("reference", 6, ReferenceConfig, ("policy", "shards"), "logprobs", "stages.score.score:run")
TRAIN = Stage("train", 3, TrainConfig, ("policy", "shards", "reference"), "policy", "stages.train.train:run")
TRAIN_REWARD = Stage(
    "train_reward", 1, RewardConfig, ("policy", "shards", "heldout"), "reward_model", "stages.train.reward_stage:run"
)
ROLLOUT = Stage(
    "rollout", 3, RolloutConfig, ("policy", "adapter_base", "prompts"), "rollouts", "stages.generate.rollout:run"
)
JUDGE = Stage("judge", 3, JudgeStageConfig, ("rollouts", "model", "reference"), "judgements", "stages.judge.judge:run")
COMPARE = Stage("compare", 1, JudgeStageConfig, ("rollouts", "against", "model"), "verdicts", "stages.judge.judge:run")
VOTE = Stage("vote", 1, VoteConfig, ("judged", "against", "verdicts"), "judgements", "stages.judge.vote:run")
PAIR = Stage("pair", 4, PairConfig, ("rollouts", "judgements"), "pairs", "stages.judge.pair:run")
REVISE = Stage("revise", 1, ReviseConfig, ("rollouts", "model"), "pairs", "stages.judge.revise:run")
HELDOUT = Stage("heldout", 2, HeldoutConfig, ("shards", "policy", "reference"), "metrics", "stages.score.ranking:run")
EVALUATE = Stage(
    "evaluate", 3, EvaluateConfig,
    ("policy", "judged", "baseline", "baseline_judged", "verdicts", "checked", "baseline_checked", "log_ratios"),
    "evaluation",
    "stages.judge.evaluate:run",
)  # fmt: skip
PROMOTE = Stage(
    "promote", 2, PromoteConfig, ("candidate", "champion", "evaluation"), "policy", "stages.judge.promote:run"
)
QUALITY = Stage("quality", 3, QualityConfig, ("pairs", "heldout", "policy"), "report", "stages.data.quality.stage:run")
LABELLED = Stage("labelled", 1, LabelledConfig, ("pairs",), "rollouts", "stages.judge.check.labelled:run")

STAGES: tuple[Stage[Any], ...] = (
    MATERIALISE, INGEST, CURATE, ENCODE, PREPARE, REFERENCE, TRAIN, TRAIN_REWARD, ROLLOUT, JUDGE, COMPARE, VOTE, PAIR,
    REVISE, HELDOUT, EVALUATE, PROMOTE, QUALITY, LABELLED,
)  # fmt: skip
