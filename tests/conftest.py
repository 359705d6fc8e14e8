"""No test remembers its jobs among those of the person who runs it, and threads that have nothing to do sleep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# OpenMP's threads spin while they wait for each other. Of two test processes, each with as many threads as there are
# cores, most then wait for threads that do not run: small products took forty times as long. Read when torch is
# imported; the processes that a test starts inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def _own_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
