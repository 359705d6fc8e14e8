"""What ``rondo check`` says of judges, revisions and gates."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import workspace
from tests.unit.workspace import SPEC

WITHOUT = SPEC.replace("judge: {use: sentiment}\n", "")
LLM = '{use: llm, endpoint: {url: "http://host/v1", model: m}'
REVISE = 'revise: {endpoint: {url: "http://host/v1", model: m}, constitution: [Be kind.]}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checks.jsonl").write_text('{"prompt": "2 + 2?"}\n')
    return workspace.make(tmp_path)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (SPEC + "evaluate: {promote_if: {max_regression: {math: 0.1}}}\n", "max_regression", "evaluate.task"),
        (SPEC + "evaluate: {promote_if: {max_check_regression: 0}}\n", "max_check_regression", "needs evaluate.checks"),
        (SPEC + "evaluate: {checks: {prompts: none.jsonl}}\n", "checks.prompts", "none.jsonl"),
        (SPEC + "evaluate: {checks: {prompts: train.jsonl}}\n", "checks.prompts", "also in training"),
        (WITHOUT + "judge: {use: llm}\n", "spec.yaml:4 judge", "expected either an endpoint or a model"),
        (SPEC + "evaluate: {promote_if: {min_agreement: 0.5}}\n", "min_agreement", "give an ensemble"),
        (SPEC + "evaluate: {against: [base, {model: nowhere}]}\n", "evaluate.against.1.model", "no such folder"),
        (SPEC + "evaluate: {against: bse}\n", "evaluate.against", "'base' or 'previous'"),
        (SPEC.replace(", heldout: heldout.jsonl", "") + "evaluate: {kl: true}\n", "evaluate.kl", "prompts.heldout"),
        (SPEC + "evaluate: {against: []}\n", "evaluate.against", "got an empty list"),
        (SPEC + f"evaluate: {{checks: {{prompts: checks.jsonl, judge: {LLM}}}}}}}\n", "checks.judge", "scores each"),
        (WITHOUT + f"judge: {LLM}, budget: {{tokens: 5}}}}\nresources: {{judge: {{workers: 2}}}}\n",
         "resources.judge.workers", "2 workers cannot share a budget"),
        (WITHOUT + "judge: {use: llm, model: {model: nowhere}}\n", "judge.model.model", "no such folder"),
        (WITHOUT + "judge: {use: ensemble, judges: [{use: sentiment}]}\n", "judge.judges", "at least 2"),
        (WITHOUT + "judge: {use: ensemble, judges: [{use: sentiment}, {use: rules}]}\n", "judge.judges.1", "a rule"),
        (WITHOUT + "judge: {use: ensemble, judges: [{use: ensemble}, {use: sentiment}]}\n",
         "judge.judges.0", "unknown judge"),
        (WITHOUT + "judge: {use: ensemble, judges: [{use: sentiment}, {use: 'mine:No'}]}\n", "judge.judges.1", "mine"),
        (SPEC + "pair: {soft: {votes: true}}\n", "pair.soft.votes", "needs an ensemble, or a judge that compares"),
        (SPEC.replace("train: train.jsonl, ", "") + "preferences: [pairs.jsonl]\n" + REVISE, "revise", "prompts.train"),
        (WITHOUT + REVISE, "judge", "required when there are prompts"),
    ],
)  # fmt: skip
def test_what_does_not_fit(text: str, where: str, what: str, folder: Path) -> None:
    problem = workspace.only(folder, text)
    assert where in problem.where or where in str(problem), problem
    assert what in problem.message, problem


def test_an_ensemble_with_soft_votes_fits(folder: Path) -> None:
    text = (
        WITHOUT + f"judge: {{use: ensemble, judges: [{{use: sentiment}}, {LLM}}}]}}\npair: {{soft: {{votes: true}}}}\n"
    )
    assert workspace.loaded(folder, text).spec.judge is not None


def test_a_key_that_is_not_set_here_is_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = WITHOUT + f"judge: {LLM[:-1]}, key_env: A_KEY}}}}\n"
    monkeypatch.delenv("A_KEY", raising=False)
    assert any(note.startswith("A_KEY is not set here") for note in workspace.loaded(folder, text).notes)
    monkeypatch.setenv("A_KEY", "x")
    assert not any("A_KEY" in note for note in workspace.loaded(folder, text).notes)


def test_a_reward_model_that_no_judge_uses_is_noted(folder: Path) -> None:
    notes = workspace.loaded(folder, SPEC + "preferences: [pairs.jsonl]\nreward: {}\n").notes
    assert any(note.startswith("no judge uses the reward model") for note in notes)
