"""Running a plan: skip, run, commit, fail, go on."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipelines.fingerprint import hash_path
from pipelines.plan.steps import Source, Step, walk
from pipelines.run.explain import Explain
from pipelines.run.runner import Committed, StepFailed
from pipelines.run.store import ArtifactStore, Manifest
from stages.base import Resources, StageError, resolve
from stages.io.context import StageContext
from stages.io.store import StoreError
from tests.unit.steps import COUNT, FAIL, FAIL_ONCE, SLOW, CountConfig, Inner, LogConfig, counted, runner


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def manifest_of(store: ArtifactStore, step: Step) -> Manifest:
    found = Committed(store)(step)
    assert found is not None
    return found


def chain(last: int = 3) -> list[Step]:
    first = counted("first", CountConfig(add=1))
    second = counted("second", CountConfig(add=2), left=first)
    return [first, second, counted("third", CountConfig(add=last), left=first, right=second)]


def test_steps_get_the_results_of_the_steps_before(store: ArtifactStore) -> None:
    runs, told = runner(store)
    results = runs.run(chain())
    assert [result.cached for result in results] == [False, False, False]
    assert [store.open(manifest_of(store, result.step)).summary["total"] for result in results] == [1, 3, 7]
    assert told.told[:3] == [("first", "started: new"), ("first", "1/1 counted"), ("first", "done")]


def test_a_users_file_is_an_input_like_any_other(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("40")
    given = Source("given", tmp_path / "given", hash_path(tmp_path / "given"))
    step = counted("sum", CountConfig(add=2), **{"files.0": given})
    runner(store)[0].run([step])
    assert manifest_of(store, step)["summary"] == {"total": 42}


def test_a_file_that_changed_after_it_was_hashed_is_not_committed_under_its_old_hash(
    store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "given").write_text("40")
    given = Source("given", tmp_path / "given", hash_path(tmp_path / "given"))
    (tmp_path / "given").write_text("41")
    step = counted("sum", CountConfig(add=2), **{"files.0": given})
    with pytest.raises(StepFailed, match="was changed while it was being read"):
        runner(store)[0].run([step])
    assert Committed(store)(step) is None


def test_what_an_unfinished_run_has_made_of_a_users_file_is_made_anew(store: ArtifactStore, tmp_path: Path) -> None:
    """The file may have been another for a while."""
    (tmp_path / "given").write_text("40")
    given = Source("given", tmp_path / "given", hash_path(tmp_path / "given"))
    step = counted("sum", CountConfig(add=2), **{"files.0": given})
    with store.output(step.fingerprint, {}).part("number") as part:
        (part.folder / "number").write_text("41")
    runner(store)[0].run([step])
    assert store.open(manifest_of(store, step)).path("number").read_text() == "42"


def test_what_was_made_from_an_artifact_that_was_made_anew_is_made_anew(store: ArtifactStore) -> None:
    steps = chain()
    runner(store)[0].run(steps)
    shutil.rmtree(store.scratch / "artifacts" / steps[1].fingerprint)
    again, told = runner(store)
    again.run(steps)
    assert [name for name, what in told.told if what == "cached"] == ["first"]
    assert all(result.cached for result in runner(store)[0].run(steps))


def test_the_second_time_nothing_is_run_and_nothing_is_connected(store: ArtifactStore) -> None:
    first, told = runner(store)
    done = first.run(chain())
    assert told.connected == 1
    again, told = runner(store)
    results = again.run(chain())
    assert told.told == [("first", "cached"), ("second", "cached"), ("third", "cached")]
    assert told.connected == 0
    assert [result.seconds for result in results] == [result.seconds for result in done]


def test_only_what_changed_is_run(store: ArtifactStore) -> None:
    runner(store)[0].run(chain())
    runs, told = runner(store)
    assert [result.cached for result in runs.run(chain(last=5))] == [True, True, False]
    assert told.connected == 1
    assert ("third", "started: add 3 -> 5") in told.told


def test_the_manifest_says_what_was_run(store: ArtifactStore) -> None:
    step = counted("first", CountConfig(add=1))
    runner(store)[0].run([step])
    manifest = manifest_of(store, step)
    assert manifest["payload"] == step.payload
    assert (manifest["key"], manifest["produces"], manifest["summary"]) == ("first", "number", {"total": 1})


def test_a_failed_step_keeps_what_was_committed_before(store: ArtifactStore) -> None:
    first = counted("first", CountConfig(add=1))
    broken = Step("broken", FAIL, CountConfig(), {"left": first})
    after = counted("after", left=first)
    runs, told = runner(store)
    with pytest.raises(StepFailed, match="broken: it always fails") as caught:
        runs.run([first, broken, after])
    assert isinstance(caught.value.__cause__, StageError)
    assert caught.value.step is broken
    assert [result.step.key for result in runs.results] == ["first"]
    assert [Committed(store)(step) is None for step in (first, broken, after)] == [False, True, True]
    assert ("after", "done") not in told.told


def test_a_failed_step_goes_on_from_its_work(store: ArtifactStore) -> None:
    step = Step("step", FAIL_ONCE, CountConfig(), {})
    with pytest.raises(StepFailed):
        runner(store)[0].run([step])
    assert list(store.output(step.fingerprint, {}).done()) == ["left"]
    runner(store)[0].run([step])
    assert manifest_of(store, step)["summary"] == {"found": "so far"}
    assert not store.output(step.fingerprint, {}).done()


def test_what_a_failed_try_wrote_is_no_part_of_the_artifact(store: ArtifactStore) -> None:
    step = Step("step", FAIL_ONCE, CountConfig(), {})
    with pytest.raises(StepFailed):
        runner(store)[0].run([step])
    runner(store)[0].run([step])
    (part,) = store.open(manifest_of(store, step)).parts
    assert [path for path in store.store.local(part.place).parent.iterdir() if path.is_dir()] == [
        store.store.local(part.place)
    ]
    assert set(part.files) == {"left"}


def test_a_damaged_input_fails_the_step_that_needs_it(store: ArtifactStore) -> None:
    steps = chain()
    runner(store)[0].run(steps[:1])
    store.open(manifest_of(store, steps[0])).path("number").unlink()
    with pytest.raises(StepFailed, match=r"second: artifact .* is damaged"):
        runner(store)[0].run(steps)


def test_a_step_that_another_machine_has_committed_meanwhile_does_not_fail(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has deleted what this one continues from."""
    step = counted("once", CountConfig(add=1))

    def lost(config: CountConfig, inputs: Any, context: StageContext) -> None:
        made = runner(store)[0]
        monkeypatch.setattr("tests.unit.steps.count", count)
        monkeypatch.setattr(ArtifactStore, "lock", lambda self, name, timeout=-1: nullcontext(True))
        made.run([step])
        with context.output.part("mine") as part:
            (part.folder / "number").write_text("1")
        raise KeyError("policy")

    count = resolve(COUNT.run)
    monkeypatch.setattr("tests.unit.steps.count", lost)
    (result,) = runner(store)[0].run([step])
    assert result.cached
    assert result.summary == {"total": 1}
    there = store.store.names(f"artifacts/{step.fingerprint}/{store.output(step.fingerprint, {}).inputs}")
    assert there == sorted([*(part.place.rpartition("/")[2] for part in result.artifact.parts), "manifest.json"])


def test_why_a_step_failed_is_said_also_when_the_store_is_away(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: CountConfig, inputs: Any, context: StageContext) -> None:
        def away(self: ArtifactStore, fingerprint: str, made_from: Any) -> None:
            raise StoreError("the store is away")

        monkeypatch.setattr(ArtifactStore, "manifest", away)
        raise StageError("the judge has no key")

    monkeypatch.setattr("tests.unit.steps.count", fails)
    with pytest.raises(StepFailed, match="the judge has no key"):
        runner(store)[0].run([counted("once", CountConfig(add=1))])


def test_a_stage_that_cannot_be_imported_fails_its_step(store: ArtifactStore) -> None:
    nowhere = dataclasses.replace(COUNT, run="tests.unit.steps:nowhere")
    with pytest.raises(StepFailed, match=r"first: .*nowhere"):
        runner(store)[0].run([Step("first", nowhere, CountConfig(), {})])


def test_an_interrupt_passes_and_frees_the_step(store: ArtifactStore) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    step = counted("first")
    runs, _ = runner(store)
    runs.connect = interrupt
    with pytest.raises(KeyboardInterrupt):
        runs.run([step])
    assert Committed(store)(step) is None
    assert not runner(store)[0].run([step])[0].cached


def test_concurrent_threads_run_a_step_once(store: ArtifactStore, tmp_path: Path) -> None:
    step = Step("slow", SLOW, LogConfig(log=str(tmp_path / "log"), seconds=0.2), {})
    pairs = [runner(ArtifactStore(store.location)) for _ in range(4)]
    threads = [threading.Thread(target=runs.run, args=([step],)) for runs, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "log").read_text() == "run\n"
    assert sorted(runs.results[0].cached for runs, _ in pairs) == [False, True, True, True]


def test_concurrent_processes_run_a_step_once(store: ArtifactStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.steps", store.location, str(tmp_path / "log")]
    root = Path(__file__).parents[2]
    programs = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    assert sorted(program.communicate()[0] for program in programs) == ["cached\n", "done\n"]
    assert (tmp_path / "log").read_text() == "run\n"


def test_a_run_that_finds_another_at_work_waits_and_takes_its_result(store: ArtifactStore) -> None:
    step = counted("first", CountConfig(add=1))
    runs, told = runner(store)
    thread = threading.Thread(target=runs.run, args=([step],))
    with store.lock(step.fingerprint):
        thread.start()
        while ("first", "waiting") not in told.told and thread.is_alive():
            thread.join(0.01)
        store.commit(
            store.output(step.fingerprint, {}),
            {"key": "first", "payload": step.payload, "summary": {"total": 1}, "seconds": 9.0},
        )
    thread.join()
    assert told.told == [("first", "waiting"), ("first", "cached")]
    assert runs.results[0].seconds == 9.0


def test_resources_reach_the_stage_and_do_not_run_it_again(store: ArtifactStore) -> None:
    narrow = Step("first", COUNT, CountConfig(), {})
    wide = Step("first", COUNT, CountConfig(), {}, Resources(workers=4))
    runner(store)[0].run([narrow])
    assert runner(store)[0].run([wide])[0].cached


# Why a step has to run


def reason(store: ArtifactStore, before: Step, now: Step) -> str:
    runner(store)[0].run(walk([before]))
    return Explain(store)(now)


def test_what_a_run_has_committed_counts_in_its_later_reasons(store: ArtifactStore) -> None:
    runs, told = runner(store)
    runs.run([counted("one", CountConfig(add=1)), counted("two", CountConfig(add=2))])
    assert ("two", "started: add 1 -> 2") in told.told


def test_a_first_time_is_new(store: ArtifactStore) -> None:
    assert reason(store, Step("slow", SLOW, LogConfig(log="/dev/null"), {}), counted("first")) == "new"


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        (CountConfig(add=1), CountConfig(add=2), "add 1 -> 2"),
        (CountConfig(), CountConfig(add=2), "add 0 -> 2"),
        (CountConfig(add=1), CountConfig(), "add 1 -> 0"),
        (CountConfig(add=1, label="a"), CountConfig(add=2, label="b"), "add 1 -> 2, label a -> b"),
        (CountConfig(inner=Inner(rank=1)), CountConfig(inner=Inner(rank=2)), "inner.rank 1 -> 2"),
    ],
)
def test_a_changed_setting_is_named(store: ArtifactStore, before: CountConfig, now: CountConfig, sentence: str) -> None:
    assert reason(store, counted("step", before), counted("step", now)) == sentence


def test_a_section_of_defaults_that_was_added_is_named(store: ArtifactStore) -> None:
    assert "inner" in reason(store, counted("step"), counted("step", CountConfig(inner=Inner())))


def test_a_new_version_is_named(store: ArtifactStore) -> None:
    now = Step("step", dataclasses.replace(COUNT, version=2), CountConfig(), {})
    assert reason(store, counted("step"), now) == "version 1 -> 2"


def test_changed_inputs_are_named(store: ArtifactStore) -> None:
    one, two = counted("one", CountConfig(add=1)), counted("two", CountConfig(add=2))
    assert reason(store, counted("step", left=one), counted("step", left=two)) == "left changed"
    assert reason(store, counted("step", left=one), counted("step", left=one, right=two)) == "right added"


def test_an_input_that_is_gone_is_named(store: ArtifactStore) -> None:
    one, two = counted("one", CountConfig(add=1)), counted("two", CountConfig(add=2))
    config = CountConfig(add=3, label="x", inner=Inner(rank=9))
    before = counted("step", config, left=one, right=two)
    assert reason(store, before, counted("step", config, left=one)) == "right gone"


def test_the_nearest_artifact_is_the_one_compared_with(store: ArtifactStore) -> None:
    runner(store)[0].run([counted("a", CountConfig(add=1, label="far"))])
    near = counted("b", CountConfig(add=1, label="near"))
    assert reason(store, near, counted("c", CountConfig(add=2, label="near"))) == "add 1 -> 2"


def test_a_run_reads_each_manifest_once_however_many_steps_there_are(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [counted("0", CountConfig(add=0))]
    for number in range(1, 30):
        steps.append(counted(f"{number}", CountConfig(add=number), left=steps[-1], right=steps[0]))
    runner(store)[0].run(steps)
    read: list[str] = []
    manifest = ArtifactStore.manifest
    monkeypatch.setattr(ArtifactStore, "manifest", lambda self, name, of: read.append(name) or manifest(self, name, of))
    results = runner(store)[0].run(steps)
    assert all(result.cached for result in results)
    assert sorted(read) == sorted(step.fingerprint for step in steps)
