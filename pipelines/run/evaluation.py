"""What a run's evaluations found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Round = Mapping[str, Any]


def against_table(rounds: Sequence[Round]) -> Table | None:
    """Each round against each baseline, and task by task; None where nothing was compared. LC is length-controlled,
    length is how long answers are beside the baseline's."""
    result = Table(title="Held-out prompts", title_justify="left")
    for name in ("round", "against", "prompts"):
        result.add_column(name)
    for name in ("win", "tie", "loss", "win rate [95%]", "LC win rate [95%]", "length"):
        result.add_column(name, justify="right")
    for row in rounds:
        for name, found in (row.get("against") or {}).items():
            ratio = found.get("length_ratio")
            result.add_row(
                str(row["round"]), name, str(found["win_rate"]["prompts"]),
                *(f"{found[share]:.2f}" for share in ("wins", "ties", "losses")),
                interval(found["win_rate"]),
                interval(found["length_controlled"]) if found["length_controlled"] else "-",
                "-" if ratio is None else f"{ratio:.2f}",
            )  # fmt: skip
            for task, part in found.get("tasks", {}).items():
                prompts, rate = str(part["win_rate"]["prompts"]), interval(part["win_rate"])
                result.add_row("", f"  {task}", prompts, "", "", "", rate, "", "")
        if kl := row.get("divergence"):
            title = f"KL {interval(kl)} nats per answer"
            result.add_row(str(row["round"]), "reference", "", "", "", "", title, "", "")
        if checks := row.get("checks"):
            change = interval(checks["change"], signed=True)
            result.add_row(str(row["round"]), "checks", str(checks["prompts"]), "", "", "", f"score {change}", "", "")
    return result if result.row_count else None


def answers_table(rounds: Sequence[Round]) -> Table | None:
    """What the answers of each round's policy are like beside the baselines'; None where there are none."""
    result = Table(title="Answers to held-out prompts", title_justify="left")
    for name in ("round", "policy"):
        result.add_column(name)
    for name in ("tokens", "distinct-1", "distinct-2", "repetition", "refusals"):
        result.add_column(name, justify="right")
    for row in rounds:
        for name, found in (row.get("answers") or {}).items():
            names = ("distinct_1", "distinct_2", "repetition", "refusals")
            shares = ("-" if found[each] is None else f"{found[each]:.3f}" for each in names)
            result.add_row(str(row["round"]), "new" if name == "policy" else name, f"{found['tokens']:.0f}", *shares)
    return result if result.row_count else None


def interval(found: Mapping[str, float], signed: bool = False) -> str:
    """A mean with its interval, as in 0.65 [0.58, 0.71]."""
    form = "+.3f" if signed else ".2f"
    return f"{found['mean']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"
