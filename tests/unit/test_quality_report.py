from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from stages.base import StageError
from stages.catalog import QUALITY
from stages.core.records import PreferencePair
from stages.data.config import QualityConfig
from stages.data.quality.report import text
from stages.io.artifact import Artifact
from stages.io.filenames import REPORT_HTML, REPORT_JSON
from tests import artifacts, tiny
from tests.unit.quality import pair, sentence, write, write_prompts


def report(
    folder: Path,
    *files: list[PreferencePair],
    heldout: list[str] | None = None,
    policy: Path | None = None,
    **config: Any,
) -> dict[str, Any]:
    """The JSON report on some files; the HTML is ``folder / "report.html"``."""
    place = Path(mkdtemp(dir=folder))
    inputs: dict[str, Artifact | Path] = {f"pairs.{n}": write(place, f"in{n}", pairs) for n, pairs in enumerate(files)}
    if heldout is not None:
        inputs["heldout"] = write_prompts(place, "held", heldout)
    if policy is not None:
        inputs["policy"] = policy
    made = artifacts.run(QUALITY, place, QualityConfig(**config), inputs)
    for name in (REPORT_JSON, REPORT_HTML):
        shutil.copy(made.path(name), folder)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def finding(value: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in value["findings"] if item["name"] == name)


def named(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["source"], row["note"]) for row in found["rows"]]


def lined(file: str, pairs: list[PreferencePair]) -> list[PreferencePair]:
    """The pairs as if read from the lines of a file."""
    return [PreferencePair(**{**vars(item), "source": f"{file}:{line}"}) for line, item in enumerate(pairs, 1)]


CLEAN = [pair(sentence(3 * i), sentence(3 * i + 1), sentence(3 * i + 2)) for i in range(4)]


def test_rows_are_counted_by_file_task_and_kind(tmp_path: Path) -> None:
    first = lined("a.jsonl", [pair("A", "b", "c", kind="style"), pair("a", "b", "d"), pair("B", "c", "")])
    second = [pair("B", "c", "d", source="b.parquet:group 0 row 7", kind="style")]
    value = report(tmp_path, first, second, tasks=("chat", "code"))
    assert [value[name] for name in ("rows", "paired", "unpaired", "prompts")] == [4, 3, 1, 2]
    assert value["files"] == [
        {"input": 0, "file": "a.jsonl", "task": "chat", "rows": 3, "paired": 2, "unpaired": 1},
        {"input": 1, "file": "b.parquet", "task": "code", "rows": 1, "paired": 1, "unpaired": 0},
    ]
    assert value["tasks"] == {"chat": 3, "code": 1}
    assert value["kinds"] == {"": 2, "style": 2}


def test_clean_data_has_nothing_to_look_at(tmp_path: Path) -> None:
    value = report(tmp_path, lined("a", CLEAN), heldout=["Something quite different"])
    levels = {item["name"]: item["level"] for item in value["findings"]}
    assert set(levels.values()) <= {"fine", "unknown"}
    unknown = {name for name, level in levels.items() if level == "unknown"}
    assert unknown == {"length_bias", "label_noise", "balance", "languages"}
    assert all(item["count"] == 0 and item["rows"] == [] for item in value["findings"])


def test_duplicates_name_the_row_that_they_repeat(tmp_path: Path) -> None:
    again = pair(sentence(0), sentence(1), sentence(2).replace("w2x39", "new"))
    value = report(tmp_path, lined("a", [*CLEAN, CLEAN[1]]), lined("b", [CLEAN[1], again]))
    assert named(finding(value, "duplicates")) == [("a:5", "same as a:2"), ("b:1", "same as a:2")]
    assert named(finding(value, "near_duplicates")) == [("b:2", "like a:1")]
    assert finding(value, "duplicates")["share"] == 2 / 7


def test_contradictions_name_the_other_row(tmp_path: Path) -> None:
    texts = [("Q", "yes", "no"), ("Q", "maybe", "no"), ("Q", "NO", "yes"), ("R", "no", "yes"), ("q", "yes", "no")]
    pairs = lined("a", [pair(*text) for text in texts])
    found = finding(report(tmp_path, pairs), "contradictory")
    assert named(found) == [("a:1", "against a:3"), ("a:3", "against a:1"), ("a:5", "against a:3")]
    assert found["level"] == "look"


def test_answers_that_differ_in_case_only_are_the_same(tmp_path: Path) -> None:
    pairs = lined("a", [pair("Q", "Yes  sir", "yes sir"), pair("Q", "Yes", "Yes!"), pair("Q", "yes", "")])
    found = finding(report(tmp_path, pairs), "same_answers")
    assert (named(found), found["of"]) == ([("a:1", "")], 2)


def test_length_bias_is_the_share_and_the_correlation(tmp_path: Path) -> None:
    long, short = "one two three four", "one"
    pairs = [pair(f"Q{i}", long, short) for i in range(3)] + [
        pair("Q3", short, "one two"),
        pair("Q4", long, short, probability=0.0),  # the short one wins
        pair("Q5", long, short, probability=0.5),
        pair("Q6", long, ""),
        pair("Q7", "a b", "c d"),
    ]
    found = finding(report(tmp_path, lined("a", pairs)), "length_bias")
    measures = found["measures"]
    assert (measures["pairs"], measures["longer_wins"], measures["share"]) == (5, 3, 0.6)
    # differences 3, 3, 3, -1 with preference 1, and 3 with -1; a pair of equal lengths counts in the preferences
    assert measures["correlation"] == pytest.approx((3 * 3 - 1 - 3) / (((4 * 9 + 1) * 6) ** 0.5), abs=1e-6)
    assert named(found) == [("a:1", "4 against 1 words"), ("a:2", "4 against 1 words"), ("a:3", "4 against 1 words")]
    assert found["level"] == "fine"  # five pairs prove nothing


@pytest.mark.parametrize(("longer", "level"), [(75, "look"), (65, "fine"), (50, "fine"), (35, "fine"), (25, "look")])
def test_length_bias_is_looked_at_when_it_is_sure(tmp_path: Path, longer: int, level: str) -> None:
    pairs = [pair(f"Q{i}", *(("a b", "c") if i < longer else ("c", "a b"))) for i in range(100)]
    assert finding(report(tmp_path, pairs), "length_bias")["level"] == level


def test_held_out_prompts_are_named_with_the_words_they_share(tmp_path: Path) -> None:
    held = sentence(9, 20)
    part = " ".join(held.split()[3:16])
    pairs = lined("a", [pair(f"So: {part}.", "a", "b"), pair("Hello there", "a", "b"), pair("Else", "a", "b")])
    value = report(tmp_path, pairs, heldout=[held, "hello  THERE", "unseen"])
    found = finding(value, "contamination")
    assert [row["source"] for row in found["rows"]] == ["a:1", "a:2"]
    assert found["rows"][0]["note"].startswith("held.jsonl:1: “w9x3 w9x4 w9x5")
    assert found["rows"][1]["note"] == "held.jsonl:2: the same prompt"
    assert found["measures"] == {"heldout_prompts": 3, "heldout_touched": 2, "ngram": 13}
    assert finding(report(tmp_path, pairs), "contamination")["level"] == "unknown"


def test_label_noise_comes_from_votes_repetitions_and_near_duplicates(tmp_path: Path) -> None:
    near = pair(sentence(0) + " indeed", sentence(2), sentence(1))  # CLEAN[0] the other way round
    pairs = lined("a", [
        *CLEAN,
        near,
        pair("V", "x", "y", votes=[1.0, 1.0, 0.0, None]),
        pair("W", "x", "y", votes=[1.0, 1.0]),
        pair("R", "yes", "no"), pair("R", "yes", "no"), pair("R", "yes", "no"), pair("R", "no", "yes"),
    ])  # fmt: skip
    found = finding(report(tmp_path, pairs), "label_noise")
    measures = found["measures"]
    assert measures["votes"] == {"comparisons": 3, "disagreeing": round(2 * 2 / 3, 6)}
    assert measures["repeated_rows"] == {"comparisons": 3, "disagreeing": 1.5}
    assert measures["near_duplicates"] == {"comparisons": 1, "disagreeing": 1.0}
    disagreement = (2 * 2 / 3 + 1.5 + 1) / 7
    assert measures["rate"] == pytest.approx((1 - max(0, 1 - 2 * disagreement) ** 0.5) / 2, abs=1e-6)
    notes = dict(named(found))
    assert notes["a:5"] == "nearly a:1, flipped"
    assert notes["a:6"] == "votes 1, 1, 0"
    assert "a:7" not in notes
    assert notes["a:11"] == "contradicted"


def test_agreement_is_a_rate_of_zero(tmp_path: Path) -> None:
    found = finding(report(tmp_path, [pair("V", "x", "y", votes=[1.0, 1.0])]), "label_noise")
    assert (found["measures"]["rate"], found["level"], found["rows"]) == (0.0, "fine", [])


def test_rows_in_another_language_than_most_are_named(tmp_path: Path) -> None:
    english = ["The weather in the north is quite cold this year.", "I think that she should see a doctor about it."]
    german = "Das ist ein ganz gewöhnlicher Satz über das Wetter im Norden."
    answers = [(english[0], "x"), (german, "x"), ("", english[1]), ("7", "x")]
    pairs = lined("a", [pair("?", *answer) for answer in answers])
    value = report(tmp_path, pairs)
    assert value["languages"] == {"en": 2, "?": 1, "de": 1}
    assert named(finding(value, "languages")) == [("a:2", f"de: {german}")]


def test_missing_thin_and_unnamed_kinds_are_found(tmp_path: Path) -> None:
    kinds = ["safety"] * 8 + ["style"] * 2 + [""]
    pairs = lined("a", [pair(f"Q{i}", "a", "b", kind=kind) for i, kind in enumerate(kinds)])
    found = finding(report(tmp_path, pairs), "balance")
    assert (found["measures"]["thin"], named(found)) == (["style"], [("a:11", "no kind")])
    found = finding(report(tmp_path, pairs[:10], kinds=("safety", "factuality")), "balance")
    assert (found["measures"]["thin"], found["count"]) == (["factuality"], 2)
    even = [pair(f"Q{i}", "a", "b", kind=("safety", "style")[i % 2]) for i in range(10)]
    assert finding(report(tmp_path, even), "balance")["level"] == "fine"


def test_lengths_are_in_the_policys_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    tiny.tokenizer().save_pretrained(folder / "model")
    pairs = [pair("ab", "abc", "d" * 9)] * 300 + [pair("ab cd", "abc", "")]
    value = report(tmp_path, pairs, policy=folder)
    assert value["unit"] == "tokens"
    assert value["lengths"]["prompt"]["max"] == 5
    assert value["lengths"]["chosen"] == {
        "count": 301, "mean": 3.0, "p50": 3, "p90": 3, "p99": 3, "max": 3,
        "histogram": [{"from": 0, "to": 0, "count": 0}, {"from": 1, "to": 1, "count": 0},
                      {"from": 2, "to": 3, "count": 301}],
    }  # fmt: skip
    assert value["lengths"]["rejected"]["count"] == 300
    assert value["lengths"]["rejected"]["histogram"][-1] == {"from": 8, "to": 15, "count": 300}
    assert report(tmp_path, pairs)["lengths"]["prompt"]["max"] == 2


def test_many_rows_are_named_up_to_a_number(tmp_path: Path) -> None:
    found = finding(report(tmp_path, lined("a", [CLEAN[0]] * 10), named=3), "duplicates")
    assert [row["source"] for row in found["rows"]] == ["a:2", "a:3", "a:4"]
    assert (found["count"], found["more"]) == (9, 6)


def test_a_sample_is_chosen_by_content_and_said(tmp_path: Path) -> None:
    pairs = [pair(sentence(i % 200, 9), sentence(1), sentence(2)) for i in range(400)]
    value = report(tmp_path, lined("a", pairs), sample=100)
    assert 40 < value["sample"]["rows"] < 160
    assert value["sample"]["rows"] % 2 == 0  # a prompt is in it with all its rows
    assert value["sample"]["complete"] is False
    assert value["lengths"]["prompt"]["count"] == value["sample"]["rows"]
    for name in ("near_duplicates", "length_bias"):
        assert f"in a sample of {value['sample']['rows']}" in finding(value, name)["says"]
    assert finding(value, "duplicates")["count"] == 200  # what is cheap is counted over all
    other = report(tmp_path, lined("a", pairs)[:130], lined("a", pairs)[130:], sample=100)
    assert other["sample"] == value["sample"]


def test_the_cut_into_files_changes_nothing_but_the_files(tmp_path: Path) -> None:
    pairs = lined("a", [pair(sentence(i % 4, 12), sentence(i % 3), sentence(5 + i % 2)) for i in range(15)] + CLEAN)
    pairs += lined("b", [pair(sentence(i % 4, 12), sentence(5), sentence(0), votes=[1.0, 0.0]) for i in range(3)])
    whole = report(tmp_path, pairs, heldout=[sentence(1, 12)])
    parts = report(tmp_path, pairs[:3], pairs[3:4], pairs[4:], heldout=[sentence(1, 12)])
    assert len(parts.pop("files")) == 4
    whole.pop("files")
    assert parts == whole


NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "{{ 7 * 7 }}", "\x1b[31mred"]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


@pytest.mark.parametrize("nasty", NASTY)
def test_text_from_data_stays_text(tmp_path: Path, nasty: str) -> None:
    item = pair(nasty, nasty, nasty + "!", kind=nasty, source=f"{nasty}:1", votes=[1.0, 0.0])
    value = report(tmp_path, [item, item], heldout=[nasty], tasks=(nasty,))
    page = Page()
    page.feed((tmp_path / "report.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "a", "base"}
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    attributes = {name for _, attrs in page.tags for name in attrs}
    assert not any(name.startswith("on") or name in ("style", "href", "src") for name in attributes)
    shown = nasty.replace("\x1b", "�")
    assert sum(shown in piece for piece in page.seen) >= 4
    assert "\x1b" not in text(value) + (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_lets_nothing_in_but_its_own_style(tmp_path: Path) -> None:
    report(tmp_path, CLEAN)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert not re.search(r"https?:|url\(|@import", page)
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_long_text_is_cut(tmp_path: Path) -> None:
    long = "x" * 5000
    value = report(tmp_path, [pair(long, long + "1", long + "2", kind=long, source=f"{long}:1")] * 2)
    assert max(map(len, (tmp_path / "report.json").read_text(encoding="utf-8").split('"'))) < 500
    assert "x" * 200 not in (tmp_path / "report.html").read_text(encoding="utf-8") + text(value)


def test_the_terminal_names_counts_rows_and_the_page(tmp_path: Path) -> None:
    value = report(tmp_path, lined("a.jsonl", [CLEAN[0]] * 6))
    summary = text(value, tmp_path / "report.html")
    assert "6 rows: 6 pairs, 1 prompts" in summary
    assert "look  Exact duplicates: 5 rows stood before" in summary
    assert "a.jsonl:2  (same as a.jsonl:1)" in summary
    assert "and 2 more" in summary
    assert summary.endswith(str(tmp_path / "report.html"))


def test_no_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no usable row"):
        report(tmp_path, [])


def test_a_pill_grows_with_its_word() -> None:
    css = (files("stages.data.quality") / "report.css").read_text(encoding="utf-8")
    rule = css[css.index(".badge {") :].partition("}")[0]
    assert "flex: none" in rule
    assert "min-width" in rule
    assert " width" not in rule.replace("min-width", "")
