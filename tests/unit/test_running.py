"""Joining a Ray cluster that is running."""

from __future__ import annotations

import pytest
import ray

from clusters import running
from stages.base import StageError


@pytest.mark.parametrize(
    ("gcs", "said"),
    [(ray.exceptions.AuthenticationError("RPC error: InvalidAuthToken: it is missing"), "wants a token: it is"),
     (ConnectionError("nobody"), "no Ray cluster can be joined at 127.0.0.1:1: Failed to connect")],
)  # fmt: skip
def test_a_missing_token_is_said_of_which_ray_speaks_only_in_its_log(
    gcs: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr("ray.init", lambda **_: fail(ConnectionError("Failed to connect to Ray cluster")))
    monkeypatch.setattr("ray._raylet.GcsClient", lambda **_: fail(gcs))
    with pytest.raises(StageError, match=said):
        running.join("127.0.0.1:1")
