"""CPU limits as containers, services and batch systems set them, on a machine with eight cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clusters.cpus import usable_cpus


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def usable(folder: Path, membership: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "membership").write_text(membership)
    return usable_cpus(folder, folder / "membership")


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("max 100000", 8),
        ("", 8),
    ],
)
def test_a_containers_limit_counts(quota: str, expected: int, tmp_path: Path) -> None:
    assert usable(tmp_path, "0::/\n", {"cpu.max": f"{quota}\n"}) == expected


@pytest.mark.parametrize(
    ("own", "outer", "expected"), [("max", "300000", 3), ("200000", "300000", 2), ("400000", "max", 4)]
)
def test_the_lowest_limit_on_the_way_to_the_root_counts(own: str, outer: str, expected: int, tmp_path: Path) -> None:
    """A service or a batch job outside any container: the root itself has no such file."""
    files = {"a.slice/job/step/cpu.max": f"{own} 100000", "a.slice/cpu.max": f"{outer} 100000", "b/cpu.max": "1 1"}
    assert usable(tmp_path, "0::/a.slice/job/step\n", files) == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 8)])
@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../outside"])
def test_a_limit_of_version_1_counts(path: str, quota: str, expected: int, tmp_path: Path) -> None:
    """In a container the path is the host's, of which nothing is there."""
    membership = f"9:memory:/a\n4:cpu,cpuacct:{path}\n3:cpuset:/b\n0::/c:d\n"
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000", "b/cpu.max": "1 1"}
    assert usable(tmp_path, membership, files) == expected


def test_assigned_cores_count_without_control_groups(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path, tmp_path / "missing") == 8
