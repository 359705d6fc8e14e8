"""Judges whose score is a reward: that of a reward model, and that which is implicit in a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipelines.plan.rounds import plan
from pipelines.spec.checks import model as model_checks
from pipelines.spec.models import PipelineSpec
from stages.base import StageError
from stages.catalog import JUDGE, MATERIALISE
from stages.core.forward.scalar_head import unused_pad
from stages.core.records import ROLLOUTS, Judgement, Rollout
from stages.io.artifact import Artifact, UserFile
from stages.io.filenames import RECORDS
from stages.io.output import Output
from stages.io.store import Store
from stages.judge.asking import rows_of
from stages.judge.config import JudgeStageConfig
from stages.judge.judges.config import JudgeConfig
from stages.judge.judges.make import make
from stages.judge.judges.means import Means
from stages.judge.judges.rewards.reward_model import batches
from stages.judge.protocol import NoVerdict
from stages.policy.config import MaterialiseConfig, ModelSource
from stages.policy.reward import load_reward_model
from tests import artifacts, tiny

TEXTS = ("yes", "a rather longer answer, with <|im_end|> in it", "no", "")
ASKED = [{"role": "user", "content": "Is it?"}]

NOWHERE = Output(Store("/nowhere"), "s", "inputs")


def answers(*texts: str, **more: Any) -> list[Rollout]:
    return [Rollout("p", sample, ASKED, text, len(text), "stop", **more) for sample, text in enumerate(texts)]


def policy(folder: Path, source: Path) -> Artifact:
    given = {"source": UserFile(str(source), "x")}
    return artifacts.run(MATERIALISE, folder, MaterialiseConfig(), given, name=source.name)


def config(**settings: Any) -> Any:
    return TypeAdapter(JudgeConfig).validate_python(settings)


def reward_config(**settings: Any) -> Any:
    return config(use="reward_model", model={"model": "./rm"}, precision="fp32", **settings)


def scores(judge: Any, rollouts: Sequence[Rollout]) -> list[float]:
    found = {each.sample: each.score for each in judge(rows_of(rollouts, False)) if isinstance(each, Judgement)}
    return [found[each.sample] for each in rollouts]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("reward")
    return policy(folder, tiny.save_reward_model(folder / "rm"))


def by_hand(folder: Path, text: str) -> float:
    """As a model's card says: the chat template of the whole conversation, one at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = tiny.tokenizer()
    written = f"<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
    with torch.no_grad():
        return float(model(**tokenizer(written, return_tensors="pt", return_token_type_ids=False)).logits[0, 0])


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_scores_are_the_models_own_however_they_are_batched(reward_model: Artifact, batch_tokens: int) -> None:
    judge = make(reward_config(batch_tokens=batch_tokens), Means(NOWHERE, model=reward_model))
    plain = [text for text in TEXTS if "<|" not in text]
    expected = [by_hand(reward_model.folder() / "model", text) for text in plain]
    assert len(set(expected)) == len(expected)
    assert scores(judge, answers(*plain)) == pytest.approx(expected, abs=1e-5)


def test_a_control_token_in_an_answer_stays_text(reward_model: Artifact) -> None:
    """Read as a control token, it would end the turn early."""
    judge = make(reward_config(), Means(NOWHERE, model=reward_model))
    [found] = scores(judge, answers(TEXTS[1]))
    assert abs(found - by_hand(reward_model.folder() / "model", TEXTS[1])) > 1e-4


def test_a_model_without_a_padding_token_scores_the_same(tmp_path: Path) -> None:
    source = tiny.save_reward_model(tmp_path / "rm")
    settings = json.loads((source / "config.json").read_text())
    with_pad = scores(
        make(reward_config(), Means(NOWHERE, model=policy(tmp_path / "a", source))),
        answers(*TEXTS),
    )
    (source / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    made = policy(tmp_path / "b", source)
    found = scores(make(reward_config(), Means(NOWHERE, model=made)), answers(*TEXTS))
    assert found == pytest.approx(with_pad, abs=1e-5)
    assert unused_pad([[0, 1], [3]], 5) == 2


def test_what_is_too_long_has_no_score(reward_model: Artifact) -> None:
    judge = make(reward_config(max_length=60), Means(NOWHERE, model=reward_model))
    said = judge(rows_of(answers("short", "long " * 20), False))
    assert [(each.places, each.reason) for each in said if isinstance(each, NoVerdict)] == [
        ((1,), "the reward model cannot read it: more than 60 tokens with its prompt (judge.max_length)")
    ]
    assert [each.sample for each in said if isinstance(each, Judgement)] == [0]


def test_batches_hold_padding_too_and_everything_once() -> None:
    lengths = [3, 10, 4, 9, 50, 1]
    made = list(batches(lengths, 20))
    assert sorted(place for group in made for place in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * max(lengths[n] for n in group) <= 20 for group in made)
    assert made == [[4], [1, 3], [2, 0, 5]]


@pytest.mark.parametrize(
    ("make_source", "part"),
    [
        (tiny.save, "is no reward model"),
        (lambda folder: tiny.save_reward_model(folder, outputs=2), "this one has 2"),
        (lambda folder: _without_head(tiny.save_reward_model(folder)), ""),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path: Path, make_source: Any, part: str) -> None:
    source = make_source(tmp_path / "model")
    found = model_checks.reward_problems(ModelSource(model=str(source)), tmp_path)
    assert [part in message for message in found] == ([True] if part else [])
    with pytest.raises(StageError, match=r"no reward model|one output|score\.weight"):
        load_reward_model(policy(tmp_path, source).folder(), torch.device("cpu"))


def _without_head(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "score" not in name}, folder / "model.safetensors")
    return folder


def test_a_reward_model_needs_a_chat_template(tmp_path: Path) -> None:
    source = tiny.save_reward_model(tmp_path / "rm")
    (source / "chat_template.jinja").unlink()
    [problem] = model_checks.reward_problems(ModelSource(model=str(source)), tmp_path)
    assert "no chat template" in problem
    with pytest.raises(StageError, match="no chat template"):
        policy(tmp_path, source)


@pytest.mark.parametrize("model", [{"model": "./rm", "adapter": "./a"}, {"model": "pkg://a/b.gguf"}])
def test_what_would_lose_the_head_is_refused(model: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="head"):
        config(use="reward_model", model=model)


def test_identity_has_what_changes_a_score_and_no_more() -> None:
    base = {"use": "reward_model", "model": {"model": "./a"}}
    other = config(**{**base, "model": {"model": "./b"}}, batch_tokens=7)
    assert config(**base).identity() == other.identity() == {"use": "reward_model"}
    assert config(**base, max_length=9).identity() == {"use": "reward_model", "max_length": 9}
    implicit = config(use="implicit_reward", model={"model": "./a"}, reference={"model": "./b"}, beta=0.5)
    assert implicit.identity() == {"use": "implicit_reward", "beta": 0.5}


def log_prob(source: Path, prompt: list[int], answer: list[int]) -> float:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        logged = torch.log_softmax(model(torch.tensor([prompt + answer])).logits[0, :-1], -1)
    return float(logged[range(len(prompt) - 1, len(logged)), answer].sum())


def test_an_implicit_reward_is_beta_times_the_log_ratio(tmp_path: Path) -> None:
    sources = [tiny.save(tmp_path / "trained", 1), tiny.save(tmp_path / "before", 0)]
    trained, before = (policy(tmp_path, source) for source in sources)
    settings = {"model": {"model": "./t"}, "reference": {"model": "./b"}, "precision": "fp32"}
    judge = make(
        config(use="implicit_reward", beta=0.5, **settings),
        Means(NOWHERE, model=trained, reference=before),
    )
    encode = tiny.tokenizer().encode
    prompt = encode("<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n")
    answer = encode("yes<|im_end|>")
    expected = 0.5 * (log_prob(sources[0], prompt, answer) - log_prob(sources[1], prompt, answer))
    assert abs(expected) > 0.1
    # Known ids, ids of another tokenizer, and none: the same answer each time.
    assert scores(judge, answers("yes", prompt_ids=prompt, ids=answer)) == pytest.approx([expected], abs=1e-4)
    assert scores(judge, answers("yes", prompt_ids=[5, 6], ids=[99_999])) == pytest.approx([expected], abs=1e-4)
    assert scores(judge, answers("yes")) == pytest.approx([expected], abs=1e-4)
    cut = answers("yes", prompt_ids=prompt, ids=answer[:-1])
    without_end = 0.5 * (log_prob(sources[0], prompt, answer[:-1]) - log_prob(sources[1], prompt, answer[:-1]))
    assert scores(judge, cut) == pytest.approx([without_end], abs=1e-4)


def test_the_stage_gives_an_implicit_reward_the_sampled_ids(tmp_path: Path) -> None:
    """Their end is missing, though the answer counts as ended: only ids can tell."""
    encode = tiny.tokenizer().encode
    prompt = encode("<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n")
    row = {"prompt_id": "p", "messages": ASKED, "tokens": 3, "finish_reason": "stop", "tools": "", "metadata": "",
           "policy": "", "sampling": "", "text": "yes"}  # fmt: skip
    given = [
        {**row, "sample": n, "prompt_ids": prompt, "ids": encode(text)}
        for n, text in enumerate(("yes", "yes<|im_end|>"))
    ]
    rollouts = artifacts.of_rows(tmp_path, "rollouts", RECORDS, [given], ROLLOUTS)
    models = {
        name: policy(tmp_path, tiny.save(tmp_path / name, seed)) for seed, name in enumerate(("reference", "model"))
    }
    judge = config(use="implicit_reward", model={"model": "./t"}, reference={"model": "./b"})
    made = artifacts.run(JUDGE, tmp_path, JudgeStageConfig(judge=judge), {"rollouts": rollouts, **models})
    first, second = artifacts.rows(made, RECORDS)
    assert first["score"] != second["score"]
    assert made.summary["input_tokens"] == 2 * len(prompt) + 3 + 4


def test_models_of_a_judge_are_inputs_of_its_step(tmp_path: Path) -> None:
    tiny.save(tmp_path / "base")
    tiny.save_reward_model(tmp_path / "rm")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    spec = {"name": "x", "policy": {"model": "./base"}, "prompts": {"train": "prompts.jsonl"}}

    def judged(judge: dict[str, Any]) -> Any:
        steps = plan(PipelineSpec.model_validate({**spec, "judge": judge}), tmp_path).steps
        return next(step for step in steps if step.stage is JUDGE)

    with_model = judged({"use": "reward_model", "model": {"model": "./rm"}})
    assert set(with_model.inputs) == {"rollouts", "model"}
    assert with_model.fingerprint == judged({"use": "reward_model", "model": {"model": "rm"}}).fingerprint
    tiny.save_reward_model(tmp_path / "rm", seed=1)
    assert with_model.fingerprint != judged({"use": "reward_model", "model": {"model": "./rm"}}).fingerprint
    both = judged({"use": "implicit_reward", "model": {"model": "./base"}, "reference": {"model": "./rm"}})
    assert set(both.inputs) == {"rollouts", "model", "reference"}
