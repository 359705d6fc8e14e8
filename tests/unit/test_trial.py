"""A trial of a sweep in this process, on a tiny model: what Ray Tune is told, and what it leaves to a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from stages.base import TrainResources
from stages.catalog import ENCODE, HELDOUT, INGEST, MATERIALISE, PREPARE, REFERENCE
from stages.data.config import EncodeConfig, IngestConfig, PrepareConfig
from stages.io import locks
from stages.io.artifact import Artifact, UserFile
from stages.io.output import Output
from stages.policy.config import MaterialiseConfig
from stages.score.config import HeldoutConfig, ReferenceConfig
from stages.train.arguments import POLICY, Arguments
from stages.train.bases import Bases
from stages.train.config import TrainConfig
from stages.train.kept import Kept
from stages.train.session import train_worker
from stages.tune import alone, trial
from stages.tune.measure import HeldOut
from stages.tune.told import Rungs
from stages.tune.trial import Training, Trial
from tests import artifacts, specs, tiny

CONFIG = TrainConfig(learning_rate=1e-3, batch_size=2, lora={"rank": 4})  # type: ignore[arg-type]
DROPOUT = TrainConfig(learning_rate=1e-3, batch_size=2, lora={"rank": 4, "dropout": 0.5})  # type: ignore[arg-type]
SCORED = ReferenceConfig(precision="fp32", mismatched=True)
RUNGS = Rungs((1, 3))
Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """What trainings take: twelve pairs, which are the held-out ones too."""
    folder = tmp_path_factory.mktemp("given")
    model, file = tiny.save(folder / "source"), specs.jsonl(folder / "pairs.jsonl", specs.pairs(12))
    store = folder / "store"
    policy = artifacts.run(MATERIALISE, store, MaterialiseConfig(), {"source": UserFile(str(model), "model")})
    pairs = artifacts.run(INGEST, store, IngestConfig(kind="pairs"), {"files.0": UserFile(str(file), file.name)})
    tokens = artifacts.run(ENCODE, store, EncodeConfig(), {"policy": policy, "pairs": pairs})
    shards = artifacts.run(PREPARE, store, PrepareConfig(), {"pairs.0": tokens})
    reference = artifacts.run(REFERENCE, store, SCORED, {"policy": policy, "shards": shards})
    return {"policy": policy, "shards": shards, "reference": reference}


@pytest.fixture
def make(given: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    monkeypatch.setattr(alone, "_bases", Bases())

    def trial_of(config: TrainConfig = CONFIG, seeds: int = 1) -> Trial:
        trainings = tuple(
            Training(seeded, given, artifacts.output(tmp_path, f"train-{hash(seeded.model_dump_json())}"))
            for seed in range(seeds)
            for seeded in [config.model_copy(update={"seed": seed})]
        )
        heldout = HeldOut(given["shards"], given["reference"], config, RUNGS)
        return Trial(1, trainings, heldout, RUNGS, ("reward_accuracy",), TrainResources(), 1, ())

    return trial_of


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found: Told = []
    monkeypatch.setattr(trial.tune, "report", found.append)
    return found


def run(made: Trial) -> None:
    trial.run({"trial": made})


def steps(output: Output) -> list[int]:
    file = Kept(output).newest_file("metrics.jsonl")
    return [] if file is None else [json.loads(line)["step"] for line in file.read_text().splitlines()]


def trained(config: TrainConfig, given: dict[str, Artifact], output: Output) -> dict[str, Any]:
    """What an ordinary training comes to, or one that goes on from what is there."""
    train_worker(Arguments(config, TrainResources(), 1, given, output, None, ()), alone._Session(lambda rows: None))
    return dict(load_file(policy_of(output).path("adapter/adapter_model.safetensors")))


def commit(output: Output) -> None:
    """As a run does, which forgets what it has continued from."""
    policy = policy_of(output)
    parts = [asdict(part) for part in policy.parts]
    manifest = {"fingerprint": output.fingerprint, "attempt": "a", "parts": parts, "summary": {}}
    output.store.write(f"{output.place}/manifest.json", json.dumps(manifest).encode())
    output.store.remove(output.work)


def policy_of(output: Output) -> Artifact:
    return Artifact(output.store, "", "", (output.done()[POLICY],))


def test_a_trial_is_measured_at_its_rungs_and_at_its_end(make: Callable[..., Trial], told: Told) -> None:
    made = make()
    run(made)
    assert [(result["share"], result["units"]) for result in told] == [(1 / 3, 1), (1.0, 3)]
    assert [bool(result.get("final")) for result in told] == [False, True]
    assert [point["share"] for point in told[-1]["curve"]] == [1 / 3, 1.0]
    assert told[-1]["scores"].keys() == {"heldout_loss", "reward_accuracy", "reward_margin", "kl"}
    assert told[-1]["reward_accuracy"] == told[-1]["scores"]["reward_accuracy"]
    assert told[-1]["heldout_loss"] < told[0]["heldout_loss"] < 0.7
    assert steps(made.trainings[0].output) == [1, 2, 3, 4, 5, 6]
    assert POLICY not in made.trainings[0].output.done()


@pytest.mark.parametrize(
    "changed", [CONFIG, DROPOUT, CONFIG.changed({"loss": "kto"})], ids=["plain", "dropout", "other answers"]
)
def test_what_is_measured_is_what_the_stage_for_held_out_pairs_measures(
    make: Callable[..., Trial], told: Told, given: dict[str, Artifact], tmp_path: Path, changed: TrainConfig
) -> None:
    config = changed.model_copy(update={"precision": "fp32"})
    made = make(config)
    run(made)
    output = made.trainings[0].output
    trained(config, given, output)
    policy = policy_of(output)
    scored = artifacts.run(REFERENCE, tmp_path, SCORED, {"policy": policy, "shards": given["shards"]})
    inputs = {"shards": given["shards"], "policy": scored, "reference": given["reference"]}
    found = artifacts.run(HELDOUT, tmp_path, HeldoutConfig(objective=config), inputs).summary
    measured = told[-1]["scores"]
    assert measured["heldout_loss"] == pytest.approx(found["loss"], abs=1e-4)
    assert measured["reward_margin"] == pytest.approx(found["reward_margin"], abs=1e-3)
    assert measured["kl"] == pytest.approx(found["kl"], abs=1e-3)


@pytest.mark.parametrize("config", [CONFIG, DROPOUT], ids=["plain", "dropout"])
def test_a_run_with_a_trials_values_finds_its_training_and_makes_the_same_policy(
    make: Callable[..., Trial], told: Told, given: dict[str, Artifact], tmp_path: Path, config: TrainConfig
) -> None:
    """Also the second trial of a process, on the base that the first has left."""
    other = config.model_copy(update={"beta": 0.5, "batch_size": 4})
    run(make())
    made = make(other)
    run(made)
    assert alone._bases.loads == 1
    output = made.trainings[0].output
    alike, fresh = trained(other, given, output), trained(other, given, artifacts.output(tmp_path, "fresh"))
    assert steps(output) == [1, 2, 3]
    assert alike.keys() == fresh.keys()
    assert all(alike[name].equal(fresh[name]) for name in fresh)


def test_a_trial_that_is_run_again_tells_the_same_without_a_model(
    make: Callable[..., Trial], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make())
    monkeypatch.setattr(alone, "train", lambda *given: pytest.fail("trained again"))
    before = list(told)
    told.clear()
    run(make())
    assert told == before


def stop_at(told: Told, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Have Ray Tune end a trial when it has told so much."""

    def report(result: dict[str, Any]) -> None:
        told.append(result)
        if len(told) == count:
            raise SystemExit

    monkeypatch.setattr(trial.tune, "report", report)


def test_a_trial_that_does_not_go_on_leaves_its_base_and_a_checkpoint(
    make: Callable[..., Trial], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(told, monkeypatch, 1)
    with pytest.raises(SystemExit):
        run(make())
    run(make(CONFIG.model_copy(update={"beta": 0.3})))
    assert alone._bases.loads == 1
    assert steps(make().trainings[0].output) == [1, 2]


def test_a_trial_goes_on_from_its_checkpoint(
    make: Callable[..., Trial], told: Told, monkeypatch: pytest.MonkeyPatch, given: dict[str, Artifact]
) -> None:
    stop_at(told, monkeypatch, 1)
    with pytest.raises(SystemExit):
        run(make())
    stop_at(told, monkeypatch, 99)
    run(make())
    assert [result["share"] for result in told] == [1 / 3, 1 / 3, 1.0]
    made = make().trainings[0].output
    assert steps(made) == [1, 2, 3, 4, 5, 6]
    fresh = trained(CONFIG, given, replace(made, fingerprint="fresh"))
    assert all(fresh[name].equal(weight) for name, weight in trained(CONFIG, given, made).items())


def test_the_other_seeds_follow_and_the_mean_counts(make: Callable[..., Trial], told: Told) -> None:
    run(make(seeds=3))
    assert [result["share"] for result in told] == [1 / 3, 1.0]
    each = [scores["heldout_loss"] for scores in told[-1]["each"]]
    assert len(set(each)) == 3
    assert told[-1]["heldout_loss"] == pytest.approx(sum(each) / 3)
    mean = sum(each) / 3
    assert told[-1]["spread"]["heldout_loss"] == pytest.approx((sum((x - mean) ** 2 for x in each) / 2) ** 0.5)


def test_a_training_that_a_run_has_made_is_only_measured(
    make: Callable[..., Trial], told: Told, given: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    (training,) = made.trainings
    trained(CONFIG, given, training.output)
    commit(training.output)
    monkeypatch.setattr(alone, "train", lambda *given: pytest.fail("trained again"))
    run(made)
    (found,) = told
    assert found["final"]
    assert found["share"] == 1.0
    assert found["scores"].keys() == {"heldout_loss", "reward_accuracy", "reward_margin", "kl"}


def test_the_last_checkpoint_of_a_run_that_was_killed_is_measured(
    make: Callable[..., Trial], told: Told, given: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    unfinished = Arguments(CONFIG, TrainResources(), 1, given, made.trainings[0].output, None, (), finish=False)
    train_worker(unfinished, alone._Session(lambda rows: None))
    run(made)
    assert [(result["share"], bool(result.get("final"))) for result in told] == [(1.0, True)]
    assert "reward_accuracy" in told[0]
    monkeypatch.setattr(alone, "train", lambda *given: pytest.fail("measured again"))
    run(made)
    assert told[1] == told[0]


def test_a_trial_without_held_out_pairs_has_no_scores(make: Callable[..., Trial], told: Told) -> None:
    run(replace(make(), heldout=None, needs=()))
    (found,) = told
    assert (found["share"], found["scores"], found["final"]) == (1.0, {}, True)


def test_what_is_known_of_a_trial_is_told_again(
    make: Callable[..., Trial], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make(seeds=2))
    before = list(told)
    known = {"status": "done", "curve": told[-1]["curve"], "scores": told[-1]["scores"]}
    monkeypatch.setattr(trial, "_follow", lambda *given: pytest.fail("looked into files"))
    names = ("share", "units", "reward_accuracy", "kl", "final")
    for status, kept, expected in (("done", known["curve"], before), ("stopped", known["curve"][:1], before[:1])):
        told.clear()
        run(replace(make(), recorded={**known, "status": status, "curve": kept}))
        assert [{n: r.get(n) for n in names} for r in told] == [{n: r.get(n) for n in names} for r in expected]
    told.clear()
    run(replace(make(), needs=(), recorded={"status": "done", "curve": [], "scores": {"win_rate": 0.5}}))
    assert [result["win_rate"] for result in told] == [0.5]


def test_a_score_that_the_search_goes_by_has_to_be_there(make: Callable[..., Trial], told: Told) -> None:
    run(replace(make(), needs=("reward_accuracy", "win_rate")))
    assert told == [
        {"failed": "win_rate could not be measured: no held-out row has both a chosen and a rejected response"}
    ]


def test_a_trial_that_fails_says_why_and_the_next_one_is_not_touched(make: Callable[..., Trial], told: Told) -> None:
    run(make(TrainConfig(learning_rate=1e30, batch_size=2, max_grad_norm=1e30)))
    assert list(told[-1]) == ["failed"]
    assert "not finite at step" in told[-1]["failed"]
    assert "lower train.learning_rate" in told[-1]["failed"]
    told.clear()
    run(make())
    assert told[-1]["final"]
    assert alone._bases.loads == 2


def test_a_training_that_another_process_is_at_is_waited_for(
    make: Callable[..., Trial], told: Told, given: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make()
    (training,) = made.trainings
    with ThreadPoolExecutor(1) as other:
        with locks.lock(training.output.store.scratch, training.output.fingerprint):
            waiting = other.submit(run, made)
            time.sleep(0.3)
            assert not told
            trained(CONFIG, given, training.output)  # by the one who holds it
            commit(training.output)
            monkeypatch.setattr(alone, "train", lambda *given: pytest.fail("trained again"))
        waiting.result(60)
    assert told[-1]["final"]
