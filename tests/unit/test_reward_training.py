"""A reward model trained from a policy: its loss, its rewards in every layout, its stored form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pipelines.plan.rounds import plan
from pipelines.spec.checks import judging
from pipelines.spec.models import PipelineSpec
from stages.base import StageError, TrainResources
from stages.catalog import JUDGE, TRAIN_REWARD
from stages.core.forward.layout import choose_layout
from stages.core.forward.packing import Layout, collate
from stages.core.forward.rewards import ResponseRewards
from stages.core.losses.bradley_terry import bradley_terry
from stages.core.records import SHARD, PreferencePair
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.io.filenames import SHARD as SHARD_FILE
from stages.io.output import Output
from stages.judge.judges.make import make
from stages.judge.judges.means import Means
from stages.policy.load import load_encoder
from stages.policy.reward import load_reward_model
from stages.train.arguments import Arguments
from stages.train.closing import ClosedPairs, closing, padding
from stages.train.config import RewardConfig
from stages.train.reward_stage import summary
from stages.train.session import train_worker
from stages.tune import alone
from tests import artifacts, tiny
from tests.unit.test_reward_judges import answers, config, policy, scores

TRAINING = RewardConfig(precision="fp32", batch_size=4, epochs=6, learning_rate=3e-3, warmup=0.0)
GOOD, BAD = "yes indeed", "no"


def test_the_loss_by_hand() -> None:
    def loss(chosen: float, rejected: float, p: float, margin: float = 0.0) -> float:
        return float(bradley_terry(*(torch.tensor([float(value)]) for value in (chosen, rejected, p)), margin))

    assert loss(2, 0, 1) == pytest.approx(0.126928, abs=1e-6)
    assert loss(2, 0, 1, margin=1) == pytest.approx(0.313262, abs=1e-6)
    assert loss(2, 0, 0.75) == pytest.approx(0.626928, abs=1e-6)
    assert loss(2, 0, 0.75, margin=2) == pytest.approx(0.75 * 0.313262 + 0.25 * 1.313262, abs=1e-5)
    assert loss(2, 0, 0.5, margin=9) == loss(2, 0, 0.5) == loss(0, 2, 0.5)  # a tie has no margin
    assert loss(1, 3, 0.2, margin=1) == pytest.approx(loss(3, 1, 0.8, margin=1))  # whichever side is called chosen


def pairs_of(folder: Path) -> list[dict[str, Any]]:
    encoder = load_encoder(folder)
    rows = []
    for number in range(12):
        asked = [{"role": "user", "content": f"Is it {number}?"}]
        written = [[{"role": "assistant", "content": f"{text} {number}"}] for text in (GOOD, BAD)]
        pair = encoder.pair(PreferencePair(asked, *written, chosen_ended=number % 3 > 0))
        rows.append({**pair.__dict__, "pair_id": f"{number:016d}"})
    return rows


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("given")
    base = policy(folder, tiny.save(folder / "base"))
    rows = pairs_of(base.folder())
    shards = artifacts.of_rows(folder, "shards", SHARD_FILE, [rows[:8]], SHARD)
    heldout = artifacts.of_rows(folder, "heldout", SHARD_FILE, [rows[8:]], SHARD)
    return {"policy": base, "shards": shards, "heldout": heldout}


def trained(folder: Path, given: dict[str, Artifact], training: RewardConfig = TRAINING, **resources: Any) -> Artifact:
    output = artifacts.output(folder, "reward")
    arguments = Arguments(training, TrainResources(**resources), 1, given, output, None, ())
    train_worker(arguments, alone._Session(lambda rows: None))
    return Artifact(output.store, output.fingerprint, "", (output.done()["policy"],))


LORA = {"rank": 4}


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_trained_reward_model_is_what_the_judge_loads(
    tmp_path: Path, given: dict[str, Artifact], lora: dict[str, Any] | None
) -> None:
    made = trained(tmp_path, given, RewardConfig.model_validate({**TRAINING.model_dump(), "lora": lora}))
    said = summary(made)
    assert said["first_loss"] == pytest.approx(math.log(2))
    assert said["loss"] < 0.5
    assert said["heldout"]["pairs"] == 4
    assert said["heldout"]["reward_accuracy"] == 1
    assert said["stored_difference"] < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(made.folder() / "model")
    assert model.config.num_labels == 1
    assert load_encoder(made.folder()).tokenizer.chat_template == tiny.TEMPLATE
    # As a user gives it, copied to a folder, and as this judge sees it: the answers of the held-out pairs.
    stored = policy(tmp_path, made.folder() / "model")
    judge = make(
        config(use="reward_model", model={"model": "./x"}, precision="fp32"),
        Means(Output(stored.store, "s", "inputs"), model=stored),
    )
    margins = []
    for number in range(8, 12):
        asked = [{"role": "user", "content": f"Is it {number}?"}]
        written = answers(f"{GOOD} {number}", f"{BAD} {number}")
        both = [replace(each, messages=asked) for each in written]
        good, bad = scores(judge, both)
        margins.append(good - bad)
    assert sum(margins) / 4 == pytest.approx(said["heldout"]["reward_margin"], abs=1e-4)


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path: Path, given: dict[str, Artifact]) -> None:
    whole = trained(tmp_path / "whole", given)
    output = artifacts.output(tmp_path / "cut", "reward")
    session = _Stops(lambda rows: None)
    with pytest.raises(KeyboardInterrupt):
        train_worker(Arguments(TRAINING, TrainResources(checkpoint_every=2), 1, given, output, None, ()), session)
    assert session.steps == [2, 4]
    again = trained(tmp_path / "cut", given, checkpoint_every=2)
    files = [made.path("model/model.safetensors").read_bytes() for made in (whole, again)]
    assert files[0] == files[1]
    assert len(again.path("metrics.jsonl").read_text().splitlines()) == 12


class _Stops(alone._Session):
    def __init__(self, told: Any) -> None:
        super().__init__(told)
        self.steps: list[int] = []

    def kept(self, step: int) -> None:
        self.steps.append(step)
        if step == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_rewards_are_the_models_own_in_every_layout(tmp_path: Path, layout: Layout) -> None:
    """Responses of one token too, which do not follow the prompt where they stand second."""
    made = policy(tmp_path, tiny.save_reward_model(tmp_path / "rm"))
    model = load_reward_model(made.folder(), torch.device("cpu")).eval()
    pairs = [
        EncodedPair("a", [5, 6, 7], [8, 9], [10]),
        EncodedPair("b", [5, 6], [11], [12, 13, 14]),
        EncodedPair("c", [9], [11], [12]),
        EncodedPair("d", [9, 4], [], [12, 8]),
    ]
    expected = [
        model(torch.tensor([pair.prompt_ids + ids])).logits[0, 0].item() if ids else 0.0
        for pair in pairs
        for ids in (pair.chosen_ids, pair.rejected_ids)
    ]
    scorer = ResponseRewards(model, layout, "fp32")
    with torch.no_grad():
        found = scorer(collate(pairs, layout)).logprobs.tolist()
    scorer.release()
    assert found == pytest.approx(expected, abs=1e-5)
    assert choose_layout(model, "auto") == "shared"


def test_the_last_token_of_each_response_is_found() -> None:
    batch = collate([EncodedPair("a", [5, 6, 7], [8, 9], [10])], "shared")
    assert batch.answered.tolist() == [0, 1]
    assert batch.ids[batch.ends].tolist() == [9, 10]


def test_responses_are_closed_as_the_template_closes_an_answer(given: dict[str, Artifact]) -> None:
    """Also those that were cut off: the judge has only their text."""
    encoder = load_encoder(given["policy"].folder())
    data = ClosedPairs(ShardData(given["shards"]), encoder)
    for number, pair in enumerate(data.pairs(range(8))):
        asked: Any = [{"role": "user", "content": f"Is it {number}?"}]
        for ids, text in ((pair.chosen_ids, GOOD), (pair.rejected_ids, BAD)):
            whole = encoder.conversation([*asked, {"role": "assistant", "content": f"{text} {number}"}])
            assert pair.prompt_ids + ids == whole
    assert len(closing(encoder)) == 2  # the end of the turn and a line break
    end = encoder.tokenizer.eos_token_id
    assert padding(encoder, end) != end
    assert padding(encoder, 7) == 7


def test_a_row_with_one_response_is_refused(tmp_path: Path, given: dict[str, Artifact]) -> None:
    row = {**pairs_of(given["policy"].folder())[0], "rejected_ids": []}
    shards = artifacts.of_rows(tmp_path, "alone", SHARD_FILE, [[row]], SHARD)
    data = ClosedPairs(ShardData(shards), load_encoder(given["policy"].folder()))
    with pytest.raises(StageError, match="only one response"):
        data.pairs([0])


def test_a_pad_token_that_ends_conversations_is_not_kept(tmp_path: Path, given: dict[str, Artifact]) -> None:
    """transformers would take the token before it for the end."""
    source = tiny.save(tmp_path / "base")
    template = tiny.TEMPLATE.replace("'<|im_end|>\\n'", "'<|im_end|>'")
    (source / "chat_template.jinja").write_text(template)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, "pad_token_id": 2}))
    base = policy(tmp_path, source)
    made = trained(tmp_path, {**given, "policy": base})
    assert json.loads(made.path("model/config.json").read_text())["pad_token_id"] != 2
    assert summary(made)["heldout"]["reward_accuracy"] == 1


def test_a_spec_trains_a_reward_model_and_judges_with_it(tmp_path: Path) -> None:
    tiny.save(tmp_path / "base")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "hello"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    spec = {
        "name": "x", "policy": {"model": "./base"}, "prompts": {"train": "prompts.jsonl"},
        "preferences": ["pairs.jsonl"], "data": {"heldout": 0.5}, "rounds": 2,
        "judge": {"use": "reward_model", "model": "reward"}, "reward": {"margin": 1.0, "lora": {"rank": 2}},
    }  # fmt: skip
    steps = plan(PipelineSpec.model_validate(spec), tmp_path).steps
    (made,) = [step for step in steps if step.stage is TRAIN_REWARD]
    assert set(made.inputs) == {"policy", "shards", "heldout"}
    judged = [step for step in steps if step.stage is JUDGE]
    assert len(judged) == 2
    assert all(step.inputs["model"] is made for step in judged)
    other = plan(PipelineSpec.model_validate({**spec, "reward": {"margin": 2.0}}), tmp_path).steps
    assert judged[0].fingerprint not in {step.fingerprint for step in other}


def test_a_judge_without_the_reward_model_that_it_names_is_a_mistake(tmp_path: Path) -> None:
    values = {"judge": config(use="reward_model", model="reward"), "reward": None}
    assert [fault.path for fault in judging.faults(values, tmp_path)] == [("judge", "model")]
    values = {"reward": RewardConfig(), "preferences": ()}
    assert [fault.path for fault in judging.faults(values, tmp_path)] == [("reward",)]
