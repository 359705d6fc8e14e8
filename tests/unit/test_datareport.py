"""``rondo data``: a report on files, and on the preferences of a spec, without Ray and without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests import specs, tiny


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = specs.pairs(20)
    flipped = {**rows[1], "chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}
    specs.jsonl(tmp_path / "pairs.jsonl", [*rows, rows[0], flipped, "broken"])
    return tmp_path


def data(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments])
    return result.exit_code, result.output


def report(*arguments: str) -> dict[str, Any]:
    code, out = data(*arguments, "--json")
    assert code == 0, out
    value: dict[str, Any] = json.loads(out.splitlines()[-1])
    return value


def test_a_file_alone_is_reported_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, _ = data("pairs.jsonl", "--html", "out/report.html")
    assert code == 0
    shown = capfd.readouterr().out
    assert "note: 1 unusable rows of pairs.jsonl will go to quarantine; first: pairs.jsonl:23" in shown
    assert "22 rows: 22 pairs, 20 prompts" in shown
    assert "Exact duplicates: 1 row stood before" in shown
    assert "pairs.jsonl:21  (same as pairs.jsonl:1)" in shown
    assert "Contradictory pairs: 2 rows" in shown
    assert (folder / "out" / "report.html").read_text().startswith("<!doctype html>")


def test_as_json_the_report_is_all_that_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out = data("pairs.jsonl", "--json")
    assert code == 0
    value = json.loads(out)
    assert (value["rows"], value["prompts"], value["unit"]) == (22, 20, "words")


def test_a_second_report_reads_nothing_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data("pairs.jsonl")
    capfd.readouterr()
    data("pairs.jsonl")
    assert capfd.readouterr().out.count("committed") == 2


def test_columns_are_named_as_in_a_specs_entry(folder: Path) -> None:
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in specs.pairs(5)]
    specs.jsonl(folder / "odd.jsonl", rows)
    code, out = data("odd.jsonl")
    assert code == 2
    assert "1 problem found" in out
    assert "the row has q, good, bad" in out
    named = [f"fields.{name}={column}" for name, column in (("prompt", "q"), ("chosen", "good"), ("rejected", "bad"))]
    assert report("odd.jsonl", *(part for each in named for part in ("--set", each)))["rows"] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.jsonl",), "does not exist"),
        (("pairs.jsonl", "--set", "formatt=ranked"), "did you mean 'format'"),
        (("pairs.jsonl", "--set", "format=rank"), "format"),
        (("spec.yaml",), "no such file or recipe"),
        (("quickstart",), "no preferences to look at"),
    ],
)
def test_what_cannot_be_looked_at_says_why(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    code, out = data(*arguments)
    assert code == 2
    assert says in out


def test_the_preferences_of_a_spec_with_their_tasks_and_in_tokens(folder: Path) -> None:
    model = tiny.save(folder / "model")
    preferences = [{"path": "pairs.jsonl", "task": "stones"}]
    specs.jsonl(folder / "heldout.jsonl", [{"prompt": specs.pairs(1)[0]["prompt"]}])
    spec = {"name": "t", "policy": {"model": str(model)}, "preferences": preferences,
            "prompts": {"heldout": "heldout.jsonl"}, "judge": {"use": "rules", "max_words": 9}}  # fmt: skip
    found = report(str(specs.write(folder, spec)))
    assert found["unit"] == "tokens"
    assert found["tasks"] == {"stones": 22}
    (overlap,) = [each for each in found["findings"] if each["name"] in ("contaminated", "contamination", "overlap")]
    assert overlap["count"] == 2
