"""Runs with a store in a bucket: that is out of reach for a while, and that two machines use at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.run.store import ArtifactStore
from tests import s3, specs, tiny
from tests.ray import processes


@pytest.fixture(scope="module")
def bucket() -> Iterator[s3.Bucket]:
    with s3.bucket() as made:
        yield made


def spec(folder: Path, count: int, **resources: Any) -> Path:
    train = {"learning_rate": 1e-3, "batch_size": 256, "epochs": 1, "precision": "fp32"}
    return specs.offline(folder, tiny.save(folder / "model"), count, train=train, resources=resources)


def finished(bucket: s3.Bucket, store: str, rows: str) -> Callable[[], bool]:
    """Whether a part of so many rows is finished."""
    return lambda: any("/parts/" in key and key.endswith(rows) for key in bucket.keys(f"{store}/work/"))


def test_a_store_out_of_reach_costs_nothing_that_was_finished(
    bucket: s3.Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than it is tried again: the run fails, and the same command continues. For less: the run goes on."""
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "cache"))
    path, store = spec(tmp_path, 3000), "s3://rondo/away"
    process = processes.start(path, store, RONDO_STORE_PATIENCE="2")
    processes.wait_for(finished(bucket, "away", "-1000-2000"), process)
    bucket.stop()
    _, errors = process.communicate(timeout=120)
    bucket.start()
    assert process.returncode == 1, errors
    assert "failed at " in errors
    assert "store s3://rondo/away cannot be used" in errors
    assert "Traceback" not in errors
    records = [key for key in bucket.keys("away/work/") if "/parts/" in key]
    opened = ArtifactStore(store)
    before = {json.loads(opened.store.read(key.removeprefix("away/")) or b"")["place"] for key in records}

    process = processes.start(path, store, RONDO_STORE_PATIENCE="60")
    processes.wait_for(finished(bucket, "away", "-256-512"), process)
    bucket.stop()
    time.sleep(5)
    bucket.start()
    assert processes.summary_of(process)["status"] == "done"
    made = [part["place"] for manifest in opened.manifests() for part in manifest["parts"]]
    assert before <= set(made)
    assert {key.rpartition("/")[0] for key in bucket.keys("away/artifacts/") if key.endswith(".arrow")} <= {
        f"away/{place}" for place in made
    }


def test_two_machines_that_do_the_same_at_once_end_with_one_result(bucket: s3.Bucket, tmp_path: Path) -> None:
    """Each has its own cache, and with it its own locks: neither sees that the other is at it."""
    one_each = {"cpus": 1}  # two runs with as many threads as cores would wait for each other without end
    path, store = spec(tmp_path, 1200, train=one_each, reference=one_each), "s3://rondo/race"
    both = [processes.start(path, store, RONDO_CACHE=str(tmp_path / name)) for name in ("one", "two")]
    summaries = [processes.summary_of(process) for process in both]
    assert summaries[0]["policy"] == summaries[1]["policy"]
    assert any(not first["cached"] and not second["cached"]
               for first, second in zip(*(each["steps"] for each in summaries), strict=True))  # fmt: skip
    manifests = ArtifactStore(store).manifests()
    assert len(manifests) == len(summaries[0]["steps"])
    made = {f"race/{part['place']}/" for manifest in manifests for part in manifest["parts"]}
    files = [key for key in bucket.keys("race/artifacts/") if not key.endswith("manifest.json")]
    assert {f"{key.rpartition('/')[0]}/" for key in files if "/model/" not in key} <= made
    assert all(any(key.startswith(place) for key in files) for place in made)
    assert not bucket.keys("race/work/")
