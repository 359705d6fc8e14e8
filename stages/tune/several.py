"""A trial with several workers: Ray Train inside a trial of Ray Tune, joined as Ray's documentation joins them."""

from __future__ import annotations

from typing import Any

from ray.tune.integration.ray_train import TuneReportCallback

from stages.tune.told import Rungs, at_end, result


class Reporting(TuneReportCallback):  # type: ignore[misc]  # ray has no types
    """Tells Ray Tune what the workers have measured. The end is told by the trial itself, after all seeds."""

    def __init__(self, rungs: Rungs, first: bool) -> None:
        super().__init__()
        self._rungs, self._first = rungs, first

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        rows = metrics[0]["rows"]
        if self._first and not at_end(rows):
            super().after_report(run_context, [result(self._rungs, rows)], checkpoint)
