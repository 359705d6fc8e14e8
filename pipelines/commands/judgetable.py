"""What a judge's check came to, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table


def table(report: Mapping[str, Any]) -> Table:
    """The figures that say how far to trust the judge, for people."""
    made = Table(title=f"Judge {report['judge']} and people: {report['judged']} of {report['pairs']} pairs judged")
    made.add_column("")
    made.add_column("value", justify="right")
    made.add_column(f"{report['confidence']:.0%} interval", justify="right")
    made.add_column("what it is")

    def add(
        name: str, found: Mapping[str, Any] | None, text: str, form: Callable[[float], str] = "{:.1%}".format
    ) -> None:
        if found is None or found["mean"] is None:
            return
        low, high = found["low"], found["high"]
        interval = "" if low is None or high is None else f"{form(low)} to {form(high)}"
        made.add_row(name, form(found["mean"]), interval, text)

    def of(name: str, key: str) -> Any:
        return (report[name] or {}).get(key)

    without = of("accuracy", "without_ties")
    add("accuracy", of("accuracy", "with_ties"), "says what people say; a tie is a label")
    add("  without ties", without, f"the {without['pairs'] if without else 0} pairs on which neither ties")
    add("  ties as half", of("accuracy", "half_ties"), "pairs on which people do not tie; a tie counts half")
    if report["kappa"] is not None:
        made.add_row("Cohen's kappa", f"{report['kappa']:.2f}", "", "agreement beyond chance; 0 is chance, 1 perfect")
    add("two people", of("people", "agreement"), "say the same: what can be asked of a judge")
    add("judge and one person", of("people", "judge"), "say the same")
    if (alpha := of("people", "alpha")) is not None:
        made.add_row("Krippendorff's alpha", f"{alpha:.2f}", "", "agreement of all people beyond chance")
    add("changed by order", of("position", "changed"), "verdicts that are others when the answers change places")
    add("for the first place", of("position", "first"), "of its verdicts in both orders; 50% is no bias")
    add("for the longer answer", of("length", "longer"), "of its verdicts")
    add("people for the longer", of("length", "people"), "of theirs, on the same pairs")
    return made


def remarks(report: Mapping[str, Any]) -> list[str]:
    """What was counted beside the figures."""
    ties, spent = report["ties"], report["spent"]
    lines = [f"ties: {ties['judge']} by the judge, {ties['people']} by people, {ties['both']} by both"]
    if report["unjudged"]:
        lines.append(f"unjudged: {report['unjudged']} {report['reasons']}")
    if report["repeated"]:
        lines.append(f"repeated pairs, counted once: {report['repeated']}")
    lines += [f"left out: {count}, {why}" for why, count in report["left_out"].items()]
    if spent.get("input_tokens"):
        cost = f", cost {spent['cost']:.4g}" if spent.get("cost") else ""
        lines.append(f"tokens: {spent['input_tokens']} asked, {spent.get('output_tokens', 0)} answered{cost}")
    return lines
