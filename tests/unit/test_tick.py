"""A tick of a schedule: from which policy, on what, and what becomes of it."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan.rounds import Plan
from pipelines.plan.steps import Step
from pipelines.run.champions import Champions
from pipelines.schedule import lease
from pipelines.schedule import tick as ticking
from pipelines.spec import load
from stages.base import StageError
from stages.io.store import StoreError
from tests import s3, specs
from tests.unit import workspace
from tests.unit.ticks import NAME, SPEC, START, Schedule, schedule

__all__ = ["schedule"]


def files(plan: Plan) -> set[str]:
    """The names of the files of preferences that a plan trains on."""
    prepare = plan.rounds[0].prepare
    return {step.inputs["pairs"].key for name, step in prepare.inputs.items() if name.startswith("selected.")}  # type: ignore[union-attr]


def initial(plan: Plan) -> str:
    return plan.rounds[0].train.inputs["policy"].fingerprint


def test_the_first_tick_trains_from_the_spec_s_model_and_makes_the_first_champion(schedule: Schedule) -> None:
    done = schedule.tick()
    assert (done["outcome"], done["from_champion"], done["champion"]) == ("promoted", 0, 1)
    champion = schedule.champions.require()
    assert champion.policy == schedule.plans[0].rounds[0].train.fingerprint
    assert champion.run == "run-1"
    assert champion.evidence["win_rate"]["mean"] == 0.75
    assert champion.evidence["files"] == ["one.jsonl"]
    record = schedule.store.read_run("run-1")
    assert record is not None
    assert record["tick"]["decision"]["win_rate"]["prompts"] == 3


def test_nothing_new_runs_nothing_and_is_one_entry_in_all(schedule: Schedule) -> None:
    schedule.tick()
    for _ in range(3):
        assert schedule.tick()["outcome"] == "nothing"
    assert (len(schedule.plans), len(schedule.ledger.ticks)) == (1, 1)
    quiet = schedule.ledger.quiet
    assert quiet is not None
    assert (quiet.ticks, quiet.since, quiet.due) == (3, START + timedelta(hours=2), START + timedelta(hours=4))
    schedule.pairs("two.jsonl", 10)
    schedule.tick()
    schedule.tick()
    quiet = schedule.ledger.quiet
    assert quiet is not None
    assert quiet.ticks == 1  # counted from the last tick that found something


def test_the_next_tick_trains_from_the_champion_on_what_is_new_and_is_measured_against_it(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    assert schedule.tick()["champion"] == 2
    plan = schedule.plans[1]
    first = schedule.plans[0].rounds[0].train.fingerprint
    assert files(plan) == {"preferences/two.jsonl"}
    assert initial(plan) == first
    assert not any(name.startswith(("past", "replay")) for name in plan.rounds[0].prepare.inputs)
    evaluate = plan.rounds[0].evaluate
    assert evaluate is not None
    rollouts = evaluate.inputs["baseline.base"]
    assert isinstance(rollouts, Step)
    assert rollouts.inputs["policy"].fingerprint == first


def test_a_worse_policy_is_refused_and_its_files_are_used_up(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    schedule.rates = [0.3]
    done = schedule.tick()
    assert (done["outcome"], done["champion"]) == ("refused", 1)
    assert "too low" in done["reason"]
    assert schedule.tick()["outcome"] == "nothing"


def test_rows_of_a_file_that_grew_are_not_trained_on_twice(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("one.jsonl", 0, 7)
    schedule.tick()
    selection = schedule.plans[1].rounds[0].prepare.inputs["selection"]
    manifest = schedule.store.manifest_at(*schedule.ledger.ticks[1].end.made.selection)  # type: ignore[union-attr,misc]
    assert manifest is not None
    assert selection.fingerprint == manifest["fingerprint"]
    assert (manifest["summary"]["training"], manifest["summary"]["dropped"]) == (3, {"seen_before": 4})


def test_a_new_file_without_a_new_row_is_nothing(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("copy.jsonl", 1, 2)
    done = schedule.tick()
    assert (done["outcome"], done["tick"], len(schedule.plans)) == ("nothing", 2, 1)
    assert "used before" in done["reason"]
    assert schedule.tick().get("tick") is None  # the file is used up


def test_replay_trains_again_on_a_share_of_what_was_promoted(schedule: Schedule) -> None:
    workspace.spec(schedule.folder, SPEC + "iterate: {replay: 0.5}\n")
    schedule.tick()
    schedule.pairs("bad.jsonl", 10)
    schedule.rates = [0.1]
    schedule.tick()
    schedule.pairs("three.jsonl", 20)
    schedule.tick()
    prepare = schedule.plans[2].rounds[0].prepare
    (past,) = [step for name, step in prepare.inputs.items() if name.startswith("past.")]
    assert past.fingerprint == schedule.plans[0].rounds[0].prepare.inputs["selected.0"].fingerprint
    assert (prepare.config.replay, prepare.config.past_of) == (0.5, (0,))  # type: ignore[attr-defined]
    assert prepare.config.preferences == 1  # type: ignore[attr-defined]


def test_without_held_out_rows_in_what_is_new_none_are_measured(schedule: Schedule) -> None:
    workspace.spec(schedule.folder, SPEC + "data: {heldout: 0.5}\n")
    schedule.pairs("one.jsonl", 0, 40)
    schedule.tick()
    assert schedule.plans[0].rounds[0].heldout is not None
    for number in range(50, 80):  # until a file of a single pair is trained on
        schedule.pairs("two.jsonl", number, 1)
        if schedule.tick()["outcome"] == "promoted":
            break
    assert schedule.plans[1].rounds[0].heldout is None


def asking(schedule: Schedule) -> None:
    text = SPEC.replace("{heldout", "{train: asked, heldout").replace("preferences: [pairs]\n", "") + "rounds: 2\n"
    workspace.spec(schedule.folder, text)
    (schedule.folder / "asked").mkdir()
    specs.jsonl(schedule.folder / "asked" / "one.jsonl", specs.prompts(3))


def test_new_prompts_are_asked_in_all_rounds_and_old_ones_never_again(schedule: Schedule) -> None:
    asking(schedule)
    schedule.rates = [0.7, 0.2]
    done = schedule.tick()
    assert (done["outcome"], done["decision"]["round"]) == ("promoted", 1)
    assert schedule.champions.require().policy == schedule.plans[0].rounds[0].train.fingerprint
    assert schedule.tick()["outcome"] == "nothing"
    specs.jsonl(schedule.folder / "asked" / "two.jsonl", specs.prompts(5, start=1))
    schedule.tick()
    place = schedule.ledger.ticks[1].end.made.prompts  # type: ignore[union-attr]
    assert place is not None
    manifest = schedule.store.manifest_at(*place)
    assert manifest is not None
    assert (manifest["summary"]["rows"], manifest["summary"]["seen"]) == (3, 2)


def test_prompts_that_make_no_pairs_of_their_own_are_no_rounds(schedule: Schedule) -> None:
    workspace.spec(schedule.folder, SPEC.replace("{heldout", "{train: asked.jsonl, heldout") + "rounds: 3\n")
    specs.jsonl(schedule.folder / "asked.jsonl", specs.prompts(3))
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    schedule.tick()
    assert [len(plan.rounds) for plan in schedule.plans] == [3, 1]


def test_one_that_failed_uses_nothing_up_and_is_done_again(schedule: Schedule) -> None:
    schedule.trouble = lambda _: 1
    done = schedule.tick()
    assert (done["outcome"], done["reason"], done["run"]) == ("failed", "out of memory", "run-1")
    assert schedule.ledger.failures == 1
    schedule.pairs("two.jsonl", 10)
    assert schedule.tick(START + timedelta(hours=1))["outcome"] == "promoted"
    assert files(schedule.plans[1]) == {"preferences/one.jsonl", "preferences/two.jsonl"}
    assert schedule.ledger.failures == 0


def test_rows_that_cannot_be_read_fail_it_before_a_run(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = schedule.loaded()
    monkeypatch.setattr(schedule, "loaded", lambda: loaded)  # the checks of the spec would see them
    specs.jsonl(schedule.folder / "pairs" / "one.jsonl", [*specs.pairs(1), *({"prompt": str(i)} for i in range(9))])
    done = schedule.tick()
    assert (done["outcome"], done["run"], schedule.plans) == ("failed", None, [])
    assert "quarantine" in done["reason"] or "rows" in done["reason"]
    assert Path(done["log"]).is_file()


def interrupted(schedule: Schedule) -> None:
    schedule.trouble = lambda _: 130
    assert schedule.tick()["outcome"] == "interrupted"


def test_an_interrupted_one_is_gone_on_with_as_it_began(schedule: Schedule) -> None:
    interrupted(schedule)
    schedule.pairs("two.jsonl", 10)
    done = schedule.tick()
    assert (done["tick"], done["outcome"], done["due"]) == (1, "promoted", (START + timedelta(hours=1)).isoformat())
    assert [step.fingerprint for step in schedule.plans[0].steps] == [
        step.fingerprint for step in schedule.plans[1].steps
    ]
    schedule.tick()
    assert files(schedule.plans[2]) == {"preferences/two.jsonl"}


def test_ctrl_c_while_reading_leaves_it_to_the_next(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ticking.Runner, "run", lambda *_: signal.raise_signal(signal.SIGINT))
        assert schedule.tick()["outcome"] == "interrupted"
    assert schedule.tick()["tick"] == 1


def test_killed_between_its_champion_and_its_end_it_promotes_once(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ticking.Ledger, "end", die)
        with pytest.raises(Killed):
            schedule.tick()
    done = schedule.tick()
    assert (done["outcome"], done["tick"], done["champion"]) == ("promoted", 1, 1)
    assert initial(schedule.plans[0]) == initial(schedule.plans[1])


def test_if_its_files_were_changed_meanwhile_it_begins_anew(schedule: Schedule) -> None:
    interrupted(schedule)
    schedule.pairs("one.jsonl", 0, 9)
    done = schedule.tick()
    assert (done["tick"], done["outcome"]) == (2, "promoted")
    end = schedule.ledger.ticks[0].end
    assert end is not None
    assert (end.outcome, "changed" in end.reason) == ("outdated", True)


def by_hand(schedule: Schedule) -> None:
    """Another champion: the one that there is once more."""
    champions = Champions(schedule.store, NAME)
    champions.move(champions.require().policy, champions.require().inputs, "a person knows better")


def test_a_champion_changed_by_hand_while_it_runs_stays(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    schedule.trouble = lambda _: by_hand(schedule) or 0  # type: ignore[func-returns-value]
    assert schedule.tick()["outcome"] == "outdated"
    assert schedule.champions.require().reason == "a person knows better"
    done = schedule.tick()
    assert (done["outcome"], done["from_champion"], done["files"]) == ("promoted", 2, ["two.jsonl"])


def test_a_champion_changed_by_hand_while_it_was_interrupted_stays(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    interrupted(schedule)
    by_hand(schedule)
    done = schedule.tick()
    assert (done["tick"], done["from_champion"], done["champion"]) == (3, 2, 3)


def test_the_same_due_time_has_one_tick(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    for due in (START, START + timedelta(hours=1)):
        assert schedule.tick(due)["outcome"] == "done before"
    assert len(schedule.plans) == 1


def test_while_another_is_at_it_nothing_is_done(schedule: Schedule) -> None:
    with lease.hold(schedule.store, NAME, 30, lambda: None) as other:
        assert other is None
        assert schedule.tick()["outcome"] == "held"
    assert schedule.plans == []
    assert schedule.tick()["outcome"] == "promoted"


def test_a_lease_that_is_lost_interrupts_it(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, Any] = {}
    real = lease.hold

    def hold(store: Any, name: str, seconds: float, lost: Any) -> Any:
        held["lost"] = lost
        return real(store, name, seconds, lost)

    monkeypatch.setattr(ticking.lease, "hold", hold)
    schedule.trouble = lambda _: held["lost"]() or 0
    done = schedule.tick()
    assert (done["outcome"], "lease" in done["reason"]) == ("interrupted", True)


def test_a_policy_that_was_deleted_is_said(schedule: Schedule) -> None:
    schedule.tick()
    schedule.store.store.remove("artifacts/" + schedule.champions.require().policy)
    schedule.pairs("two.jsonl", 10)
    with pytest.raises(StageError, match="was deleted"):
        schedule.tick()


@pytest.mark.parametrize("name", ["ticks/000001.json", "ticks/000001-end.json", "quiet.json"])
def test_a_damaged_entry_is_named(schedule: Schedule, name: str) -> None:
    schedule.tick()
    schedule.tick()
    schedule.store.store.write(f"schedules/tiny/{name}", b"{}")
    with pytest.raises(StoreError, match=rf"schedules/tiny/{name} is damaged.*restore it"):
        schedule.tick()


def test_a_ledger_that_was_deleted_does_not_take_an_old_champion_for_its_own(schedule: Schedule) -> None:
    schedule.tick()
    schedule.store.store.remove("schedules/tiny")
    schedule.pairs("two.jsonl", 10)
    done = schedule.tick()
    assert (done["tick"], done["outcome"], done["champion"]) == (1, "promoted", 2)


def test_in_a_bucket_it_is_the_same(schedule: Schedule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3.bucket() as bucket:
        schedule.place = f"s3://{bucket.name}/runs"
        schedule.tick()
        assert schedule.tick()["outcome"] == "nothing"
        schedule.pairs("one.jsonl", 0, 7)
        assert schedule.tick()["champion"] == 2
        assert initial(schedule.plans[1]) == schedule.plans[0].rounds[0].train.fingerprint
        with lease.hold(schedule.store, NAME, 30, lambda: None):
            assert schedule.tick()["outcome"] == "held"


def test_of_several_rounds_that_the_gate_lets_through_the_last_makes_the_champion(schedule: Schedule) -> None:
    asking(schedule)
    done = schedule.tick()
    (plan,) = schedule.plans
    assert done["decision"]["round"] == 2
    assert schedule.champions.require().policy == plan.rounds[1].train.fingerprint
    for each in plan.rounds:  # all are measured against the policy that the tick started from
        assert each.evaluate is not None
        rollouts = each.evaluate.inputs["baseline.base"]
        assert isinstance(rollouts, Step)
        assert rollouts.inputs["policy"].fingerprint == initial(plan)


def test_prompts_that_were_all_asked_before_make_no_pairs(schedule: Schedule) -> None:
    workspace.spec(schedule.folder, SPEC.replace("{heldout", "{train: asked, heldout") + "rounds: 2\n")
    (schedule.folder / "asked").mkdir()
    specs.jsonl(schedule.folder / "asked" / "one.jsonl", specs.prompts(3))
    schedule.tick()
    specs.jsonl(schedule.folder / "asked" / "two.jsonl", specs.prompts(2, start=1))
    schedule.pairs("two.jsonl", 10)
    schedule.tick()
    assert len(schedule.plans[1].rounds) == 1
    assert "pairs.0" not in schedule.plans[1].rounds[0].prepare.inputs


def test_pairs_that_earlier_rounds_made_are_replayed(schedule: Schedule) -> None:
    asking(schedule)
    path = schedule.folder / "spec.yaml"
    path.write_text(path.read_text() + "iterate: {replay: 0.5}\n")
    schedule.tick()
    specs.jsonl(schedule.folder / "asked" / "two.jsonl", specs.prompts(9, start=5))
    schedule.tick()
    before, now = schedule.plans
    own = {each.prepare.inputs["pairs.0"].fingerprint for each in before.rounds}
    replayed = [{step.fingerprint for name, step in each.prepare.inputs.items() if name.startswith("replay.")}
                for each in now.rounds]  # fmt: skip
    assert replayed[0] == own
    assert replayed[1] == own | {now.rounds[0].prepare.inputs["pairs.0"].fingerprint}


def test_failures_are_counted_since_the_last_tick_that_did_not_fail(schedule: Schedule) -> None:
    def fail() -> int:
        schedule.trouble = lambda _: 1
        schedule.tick()
        return schedule.ledger.failures

    assert [fail(), fail()] == [1, 2]
    interrupted(schedule)
    assert schedule.ledger.failures == 2
    schedule.pairs("one.jsonl", 0, 9)  # what the interrupted one had taken is another
    assert fail() == 3
    assert schedule.tick()["outcome"] == "promoted"
    schedule.pairs("two.jsonl", 10)
    assert fail() == 1
    schedule.pairs("two.jsonl", 0, 4)
    schedule.ledger.nothing(START + timedelta(hours=50))
    assert schedule.ledger.failures == 0


@pytest.mark.parametrize("number", [1, 2])
def test_rows_of_all_earlier_ticks_count(schedule: Schedule, number: int) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)
    schedule.tick()
    schedule.pairs("three.jsonl", 3 if number == 1 else 13)  # one row of an earlier file, and three
    schedule.tick()
    manifest = schedule.store.manifest_at(*schedule.ledger.ticks[2].end.made.selection)  # type: ignore[union-attr,misc]
    assert manifest is not None
    assert manifest["summary"]["dropped"] == {"seen_before": 1}


def test_prompts_of_all_earlier_ticks_and_held_out_ones_count(schedule: Schedule) -> None:
    asking(schedule)
    for name, start in (("two.jsonl", 10), ("three.jsonl", 2)):
        schedule.tick()
        specs.jsonl(schedule.folder / "asked" / name, specs.prompts(3, start))
    heldout = (schedule.folder / "heldout.jsonl").read_text()
    loaded = schedule.loaded()
    schedule.loaded = lambda: loaded  # type: ignore[method-assign]  # the checks of the spec would see the next line
    with (schedule.folder / "asked" / "three.jsonl").open("a") as file:
        file.write(heldout)
    schedule.tick()
    place = schedule.ledger.ticks[2].end.made.prompts  # type: ignore[union-attr]
    assert place is not None
    manifest = schedule.store.manifest_at(*place)
    assert manifest is not None
    assert (manifest["summary"]["rows"], manifest["summary"]["seen"]) == (2, 2)


def test_an_entry_that_was_deleted_makes_its_files_new_and_is_not_mistaken_for_another(schedule: Schedule) -> None:
    schedule.tick()
    schedule.store.store.delete("schedules/tiny/ticks/000001.json")
    schedule.rates = [0.1]
    done = schedule.tick()
    assert (done["tick"], done["outcome"]) == (2, "refused")
    assert schedule.tick()["outcome"] == "nothing"


def test_another_host_s_end_of_the_same_tick_is_no_person_s_doing(schedule: Schedule) -> None:
    schedule.tick()
    schedule.pairs("two.jsonl", 10)

    def other(plan: Plan) -> int:
        begin = schedule.ledger.open
        assert begin is not None
        schedule.champions.move("aa", "bb", "the other host", evidence={"began": begin.began.isoformat()})
        return 0

    schedule.trouble = other
    done = schedule.tick()
    assert (done["outcome"], done["champion"]) == ("promoted", 2)


def test_what_a_tick_promoted_before_it_was_killed_is_not_refused_afterwards(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise SystemError

    with monkeypatch.context() as patched:
        patched.setattr(ticking.Ledger, "end", die)
        with pytest.raises(SystemError):
            schedule.tick()
    workspace.spec(schedule.folder, SPEC + "train: {beta: 0.3}\n")
    schedule.rates = [0.1]
    assert schedule.tick()["outcome"] == "promoted"
    assert len(schedule.champions.history) == 1


def test_data_of_a_champion_that_was_rolled_back_is_not_replayed(schedule: Schedule) -> None:
    workspace.spec(schedule.folder, SPEC + "iterate: {replay: 0.5}\n")
    for name, start in (("two.jsonl", 10), ("three.jsonl", 20)):
        schedule.tick()
        schedule.pairs(name, start)
    schedule.champions.roll_back(1, "two is bad")
    schedule.tick()

    def replayed(plan: Plan) -> set[str]:
        past = [step for name, step in plan.rounds[0].prepare.inputs.items() if name.startswith("past.")]
        return {step.fingerprint for step in past}

    def tokens(plan: Plan) -> str:
        return plan.rounds[0].prepare.inputs["selected.0"].fingerprint

    first, second, third = schedule.plans
    assert replayed(second) == {tokens(first)}
    assert replayed(third) == {tokens(first)}
    schedule.pairs("four.jsonl", 30)
    schedule.tick()
    assert replayed(schedule.plans[3]) == {tokens(first), tokens(third)}


def test_a_due_time_of_a_clock_that_was_ahead_does_not_stop_the_schedule(schedule: Schedule) -> None:
    assert schedule.tick(START.replace(year=2999))["outcome"] == "promoted"
    schedule.pairs("two.jsonl", 10)
    assert schedule.tick()["outcome"] == "promoted"


def test_without_a_due_time_one_is_always_due(schedule: Schedule) -> None:
    for _ in range(2):
        document, _ = ticking.tick(schedule.loaded(), schedule.store, None, ticking.Options(lease=30), print)
    assert document["outcome"] == "nothing"


def test_an_artifact_of_an_earlier_tick_that_is_gone_is_named(
    schedule: Schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule.tick()
    fingerprint, inputs = schedule.ledger.ticks[0].end.made.records[0]  # type: ignore[union-attr]
    schedule.store.store.remove(f"artifacts/{fingerprint}")
    schedule.pairs("two.jsonl", 10)
    done = schedule.tick()
    assert done["outcome"] == "failed"
    assert f"artifacts/{fingerprint}/{inputs}, an input, is not in" in done["reason"]


def test_files_that_were_used_may_go(schedule: Schedule) -> None:
    schedule.tick()
    (schedule.folder / "pairs" / "one.jsonl").unlink()
    loaded = load.load(str(schedule.folder / "spec.yaml"), growing=True)
    schedule.loaded = lambda: loaded  # type: ignore[method-assign]
    assert schedule.tick()["outcome"] == "nothing"
    schedule.pairs("two.jsonl", 10)
    assert schedule.tick()["outcome"] == "promoted"


def test_a_file_of_pairs_may_be_prompts_later(schedule: Schedule) -> None:
    schedule.tick()
    workspace.spec(schedule.folder, SPEC.replace("{heldout", "{train: pairs, heldout"))
    done = schedule.tick()
    assert (done["outcome"], done["files"]) == ("promoted", ["one.jsonl"])


def test_the_record_of_a_run_keeps_all_else(schedule: Schedule) -> None:
    schedule.tick()
    record = schedule.store.read_run("run-1")
    assert record is not None
    assert {"rounds", "steps", "tick", "log"} <= record.keys()
