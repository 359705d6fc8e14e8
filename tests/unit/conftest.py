"""Loading a spec makes the modules beside it importable; no test leaves that behind."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _own_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
