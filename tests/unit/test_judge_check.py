"""``rondo judge-check`` with judges that need neither Ray nor a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests import peoples, specs

OWN = """
from stages.judge.protocol import NoVerdict, Verdict


class Careful:
    '''Prefers the shorter answer in either order; of bees it says nothing.'''

    def __call__(self, rows):
        for row in rows:
            one, two = (response.text for response in row.responses)
            if "bees" in row.messages[0]["content"]:
                yield NoVerdict(row.prompt_id, (0, 1), "bees are not for me")
            else:
                better = 1.0 if len(one) < len(two) else 0.0
                yield Verdict(row.prompt_id, 0, 1, better, shown=better, swapped=better)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    peoples.verdicts(tmp_path / "verdicts.json")
    peoples.votes(tmp_path / "votes.json")
    (tmp_path / "judge.yaml").write_text("judge: {use: rules, max_words: 8}\n")
    return tmp_path


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["judge-check", *arguments])
    return result.exit_code, result.output


def report(*arguments: str) -> dict[str, Any]:
    code, out = check(*arguments, "--json")
    assert code == 0, out
    value: dict[str, Any] = json.loads(out.splitlines()[-1])
    return value


def test_rules_against_verdicts_by_hand() -> None:
    """Of 12 pairs, 3 have a longer worse answer with more than 8 words; the other 9 keep the rule on both sides."""
    found = report("judge.yaml", "verdicts.json")
    assert (found["pairs"], found["prompts"], found["judged"], found["unjudged"]) == (12, 12, 12, 0)
    assert found["ties"] == {"people": 0, "judge": 9, "both": 0}
    accuracy = found["accuracy"]
    assert accuracy["with_ties"]["mean"] == pytest.approx(3 / 12)
    assert (accuracy["without_ties"]["mean"], accuracy["without_ties"]["pairs"]) == (1, 3)
    assert accuracy["half_ties"]["mean"] == pytest.approx((3 + 4.5) / 12)
    assert found["people"] is found["position"] is None
    assert found["length"]["longer"]["mean"] == 0


def test_votes_show_how_far_people_agree() -> None:
    found = report("judge.yaml", "votes.json")
    assert found["people"]["agreement"]["mean"] == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert found["ties"]["people"] == 0  # two ties and a vote: the one that chose decides
    assert 0 < found["people"]["alpha"] < 1


def test_a_judge_that_compares_and_cannot_judge_all(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "careful_judge.py").write_text(OWN)
    (folder / "own.yaml").write_text('judge: {use: "careful_judge:Careful", compares: true}\n')
    found = report("own.yaml", "verdicts.json")
    assert (found["judged"], found["unjudged"]) == (11, 1)
    assert list(found["reasons"].values()) == [1]
    assert found["position"]["changed"]["mean"] == 0
    assert found["position"]["first"]["mean"] == 0.5
    capfd.readouterr()
    code, _ = check("own.yaml", "verdicts.json")
    shown = capfd.readouterr().out
    assert code == 0
    assert "11 of 12 pairs judged" in shown
    assert "unjudged: 1" in shown
    code, _ = check("own.yaml", "verdicts.json", "--set", "data.max_bad_share=0.05")
    assert code == 1
    assert "more than max_bad_share 0.05" in capfd.readouterr().out


def test_the_second_time_everything_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert not report("judge.yaml", "verdicts.json", "--limit", "5")["cached"]
    assert report("judge.yaml", "verdicts.json", "--limit", "5")["cached"]
    found = report("judge.yaml", "verdicts.json", "--limit", "5", "--seed", "1")
    assert not found["cached"]
    assert found["pairs"] == 5


def test_the_judge_of_a_whole_spec_with_a_setting_changed(folder: Path) -> None:
    spec = {"name": "x", "policy": {"model": "nowhere"}, "judge": {"use": "rules", "max_words": 8}, "rounds": 2}
    specs.write(folder, spec)
    assert report("spec.yaml", "verdicts.json")["ties"]["judge"] == 9
    assert report("spec.yaml", "verdicts.json", "--set", "judge.max_words=100")["ties"]["judge"] == 12


def test_columns_are_named_with_read(folder: Path) -> None:
    rows = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in specs.pairs(5)]
    specs.jsonl(folder / "odd.jsonl", rows)
    named = [f"fields.{name}={column}" for name, column in (("prompt", "q"), ("chosen", "good"), ("rejected", "bad"))]
    assert report("judge.yaml", "odd.jsonl", *(part for each in named for part in ("--read", each)))["pairs"] == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.yaml", "verdicts.json"), "no such file or recipe"),
        (("empty.yaml", "verdicts.json"), "empty.yaml judge: required, but missing"),
        (("judge.yaml", "nowhere.json"), "does not exist"),
        (("judge.yaml", "verdicts.json", "--set", "judge.max_word=3"), "did you mean 'max_words'"),
        (("judge.yaml", "verdicts.json", "--set", "judge.jsn=true"), "did you mean 'json'"),
        (("judge.yaml", "verdicts.json", "--set", "train.beta=3"), "expected a key in judge, resources, data"),
        (("judge.yaml", "verdicts.json", "--set", "judge.use=rule"), "unknown judge; valid"),
        (("trained.yaml", "verdicts.json"), "is trained with rondo train-reward"),
        (("judge.yaml", "verdicts.json", "--read", "formatt=votes"), "did you mean 'format'"),
        (("own.yaml", "verdicts.json"), "cannot be imported"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    (folder / "empty.yaml").write_text("name: x\n")
    (folder / "trained.yaml").write_text("judge: {use: reward_model, model: reward}\n")
    (folder / "own.yaml").write_text('judge: {use: "no_such_module:Judge"}\n')
    code, out = check(*arguments)
    assert code == 2
    assert says in out.replace("\n", " ")
