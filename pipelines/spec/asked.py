"""The judges that a spec names, and the models beside its policy."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.spec.models import EvaluateSpec, PipelineSpec
from pipelines.spec.problems import KeyPath
from stages.judge.judges.config import JudgeConfig, SingleJudge, models_of, singles
from stages.policy.config import ModelSource


def judges(judge: JudgeConfig | None, evaluate: EvaluateSpec | None) -> Iterator[tuple[KeyPath, SingleJudge]]:
    """Every judge with its key, those of an ensemble one by one."""
    checks = evaluate.checks.judge if evaluate is not None and evaluate.checks is not None else None
    for path, each in ((("judge",), judge), (("evaluate", "checks", "judge"), checks)):
        if each is not None:
            yield from (((*path, *key), single) for key, single in singles(each).items())


def models(spec: PipelineSpec) -> dict[KeyPath, ModelSource]:
    """Every model beside the policy's, with its key: of judges, of revisions, and those that are compared with."""
    asked = [*judges(spec.judge, spec.evaluate), *([(("revise",), spec.revise)] if spec.revise else [])]
    found: dict[KeyPath, ModelSource] = {
        (*path, name): source for path, each in asked for name, source in models_of(each).items()
    }
    others = enumerate(spec.evaluate.against)
    return found | {("evaluate", "against", n): each for n, each in others if not isinstance(each, str)}
