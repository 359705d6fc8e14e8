from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.base import StageError
from stages.catalog import REVISE
from stages.core.records import Rollout
from stages.io.artifact import Artifact
from stages.io.filenames import CRITIQUES, RECORDS
from stages.judge.judges.llm.config import ReviseConfig
from tests import artifacts
from tests.llm_server import Answer, LlmServer, Script, serving
from tests.unit.test_judges import rollout, sampled

KIND = "Be kind."
ANSWER = re.compile(r"\[ANSWER [0-9a-f]{8}\]\n(.*?)\n\[END OF ANSWER", re.DOTALL)


def kinder(question: str, _: int) -> Answer:
    """Says please before it, unless that is there already."""
    (text,) = ANSWER.findall(question)
    revised = text if text.startswith("Please") else f"Please, {text}"
    return Answer(json.dumps({"critique": "too curt", "revision": revised}))


def revise(folder: Path, server: LlmServer, *parts: list[Rollout], **settings: Any) -> Artifact:
    endpoint = {"url": server.url, "model": "m", "attempts": 1}
    config = ReviseConfig.model_validate({"endpoint": endpoint, "constitution": [KIND], **settings})
    return artifacts.run(REVISE, folder, config, {"rollouts": sampled(folder, "rollouts", parts)})


def made(folder: Path, script: Script, *parts: list[Rollout], **settings: Any) -> tuple[Artifact, LlmServer]:
    with serving(script) as server:
        return revise(folder, server, *parts, **settings), server


def texts(artifact: Artifact) -> list[tuple[str, str]]:
    rows = artifacts.rows(artifact, RECORDS)
    return [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows]


def test_the_revised_answer_is_preferred_to_the_original(tmp_path: Path) -> None:
    parts = [[rollout("go", 0), rollout("stop", 1)], [rollout("", 0, "q"), rollout("wait", 1, "q")]]
    found, server = made(tmp_path, kinder, *parts)
    assert texts(found) == [("Please, go", "go"), ("Please, wait", "wait")]
    row = artifacts.rows(found, RECORDS)[0]
    assert row["source"] == "prompt p sample 0, revised by principle 1"
    assert row["ids"] is None  # the revised text was not sampled from the policy
    assert KIND in server.requests[0]["messages"][0]["content"]
    lines = [json.loads(line) for part in found.parts for line in _critiques(found, part.place)]
    assert lines[0] == {"prompt_id": "p", "sample": 0, "principle": KIND, "critique": "too curt"}
    assert found.summary == {
        "pairs": 2, "asked": 2, "unchanged": 0, "quarantined": 0, "quarantine_reasons": {}, "input_tokens": 200.0,
        "output_tokens": 20.0, "seconds": found.summary["seconds"], "paid": {"tokens": 220, "cost": 0.0},
    }  # fmt: skip


def _critiques(found: Artifact, place: str) -> list[str]:
    return (found.store.local(place) / CRITIQUES).read_text().splitlines()


def test_an_answer_that_needs_no_revision_makes_no_pair(tmp_path: Path) -> None:
    found, _ = made(tmp_path, kinder, [rollout("Please  do", 0), rollout("go", 0, "q")])
    assert texts(found) == [("Please, go", "go")]
    assert found.summary["unchanged"] == 1


def test_several_answers_each_text_once(tmp_path: Path) -> None:
    answers = [rollout(text, sample) for sample, text in enumerate(["a", "b", " a ", "c"])]
    found, server = made(tmp_path, kinder, answers, answers=2)
    assert (texts(found), server.asked) == ([("Please, a", "a"), ("Please, b", "b")], 2)


def test_principles_are_drawn_by_chance_and_always_the_same(tmp_path: Path) -> None:
    answers = [rollout(f"answer {n}", 0, f"p{n}") for n in range(40)]
    principles = ["First.", "Second.", "Third."]
    _, server = made(tmp_path / "a", kinder, answers, constitution=principles)
    asked = [each["messages"][0]["content"].split("principle: ")[1].split("\n")[0] for each in server.requests]
    assert {name: asked.count(name) for name in principles}.keys() == set(principles)
    assert min(asked.count(name) for name in principles) > 4
    _, again = made(tmp_path / "b", kinder, answers, constitution=principles)
    texts = [{each["messages"][0]["content"] for each in one.requests} for one in (server, again)]
    assert texts[0] == texts[1]
    _, other = made(tmp_path / "c", kinder, answers, constitution=principles, seed=1)
    assert {each["messages"][0]["content"] for each in other.requests} != texts[0]


def test_what_has_no_revision_goes_to_quarantine_and_is_asked_again(tmp_path: Path) -> None:
    broken = [True]

    def script(question: str, before: int) -> Answer:
        return Answer("gone", status=500) if broken[0] and "answer 3" in question else kinder(question, before)

    answers = [rollout(f"answer {n}", 0, f"p{n}") for n in range(4)]
    with serving(script) as server:
        with pytest.raises(StageError, match=r"revise: 1 of 4 answers have no revision.*status 500"):
            revise(tmp_path, server, answers)
        broken[0], before = False, server.asked
        found = revise(tmp_path, server, answers)
        assert (found.summary["pairs"], server.asked - before) == (4, 1)


@pytest.mark.parametrize("text", ['{"critique": "x"}', '{"critique": "x", "revision": " "}', '{"revision": 3}'])
def test_a_reply_without_a_revision_makes_no_sense(text: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="has no revision"):
        made(tmp_path, lambda *_: Answer(text), [rollout("go", 0)])


def test_answers_that_all_keep_the_constitution_are_no_failure(tmp_path: Path) -> None:
    found, _ = made(tmp_path, kinder, [rollout("Please do", 0)])
    assert (found.summary["pairs"], found.summary["unchanged"]) == (0, 1)


def test_a_constitution_is_needed() -> None:
    with pytest.raises(ValidationError, match="constitution"):
        ReviseConfig.model_validate({"endpoint": {"url": "http://host/v1", "model": "m"}, "constitution": []})
