from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

from stages.base import StageError
from stages.core.records import PreferencePair
from stages.data.config import FilterConfig
from stages.data.quality import near
from stages.data.quality.filters import Filters, Found
from stages.io.artifact import Artifact, Table
from stages.io.filenames import RECORDS
from tests.unit.quality import pair, sentence, write, write_prompts

OFF = {"duplicates": "keep"}


def records(*artifacts: Artifact) -> list[Table]:
    return [table for artifact in artifacts for table in artifact.tables(RECORDS)]


def examined(folder: Path, pairs: list[PreferencePair], *heldout: Artifact, **config: Any) -> Found:
    file = write(Path(mkdtemp(dir=folder)), "pairs", pairs)
    return Filters(FilterConfig(**{**OFF, **config}), records(*heldout)).examine([records(file)])


def factors(folder: Path, pairs: list[PreferencePair], *heldout: Artifact, **config: Any) -> list[float]:
    (found,) = examined(folder, pairs, *heldout, **config).factors
    assert found.dtype == np.float32
    return [round(float(value), 6) for value in found]


def test_the_first_of_duplicates_stays(tmp_path: Path) -> None:
    pairs = [
        pair("Q", "yes", "no", source="a:1"),
        pair("Q", "no", "yes"),  # the other way round is no duplicate
        pair("Q", "yes", "no", source="a:3"),
        pair("q", "yes", "no"),  # nor is another spelling
        pair("Q", "yes", "no", kind="other"),
    ]
    assert factors(tmp_path, pairs, duplicates="drop") == [1, 1, 0, 1, 0]
    assert factors(tmp_path, pairs, duplicates=0.25) == [1, 1, 0.25, 1, 0.25]
    assert factors(tmp_path, pairs) == [1] * 5


def test_both_sides_of_a_contradiction_are_found(tmp_path: Path) -> None:
    pairs = [
        pair("Is it so?", "yes", "no"),
        pair("is it  SO?", "No", "yes"),
        pair("Is it so?", "yes", "maybe"),
        pair("Is it not so?", "no", "yes"),
        pair("Good?", "fine answer", ""),
        pair("Good?", "", "fine answer"),
        pair("Good?", "", "another answer"),
    ]
    assert factors(tmp_path, pairs, contradictory="drop") == [0, 0, 1, 1, 0, 0, 1]


def test_probability_and_votes_say_which_answer_is_preferred(tmp_path: Path) -> None:
    pairs = [
        pair("A?", "yes", "no"),
        pair("A?", "yes", "no", probability=0.2),
        pair("B?", "yes", "no"),
        pair("B?", "no", "yes", probability=0.2),
        pair("C?", "yes", "no"),
        pair("C?", "no", "yes", probability=0.5),
        pair("D?", "yes", "no"),
        pair("D?", "no", "yes", votes=[1.0, None, 0.0, 0.0]),
        pair("E?", "yes", "no"),
        pair("E?", "yes", "no", votes=[1.0, 0.0, 0.0]),
    ]
    assert factors(tmp_path, pairs, contradictory=0.5) == [0.5, 0.5, 1, 1, 1, 1, 1, 1, 0.5, 0.5]


def test_nearly_the_same_words_are_found_and_the_first_stays(tmp_path: Path) -> None:
    prompt, good, bad = sentence(1), sentence(2), sentence(3)
    changed = good.replace("w2x39", "other")
    pairs = [
        pair(prompt, good, bad),
        pair(prompt, sentence(4), bad),  # same prompt, another answer
        pair(prompt, changed, bad),
        pair(prompt, bad, changed),  # flipped
        pair(sentence(5), good, bad),  # another prompt
        pair(prompt.upper(), good, bad + "!"),
    ]
    assert factors(tmp_path, pairs, near_duplicates="drop") == [1, 1, 0, 1, 1, 0]
    assert factors(tmp_path, pairs, near_duplicates=0.5, similarity=1.0) == [1, 1, 1, 1, 1, 0.5]


def test_what_is_like_a_repetition_but_not_like_its_first_stays(tmp_path: Path) -> None:
    words = sentence(1, 44).split()  # 40 shingles; three other words at an end make three others
    second = [*words[:41], "x", "y", "z"]
    third = ["x", "y", "z", *second[3:]]
    pairs = [pair("Q", " ".join(answer), "no") for answer in (words, second, third, third)]
    assert factors(tmp_path, pairs, near_duplicates="drop") == [1, 0, 1, 0]


def test_the_same_words_with_another_preference_or_a_short_other_prompt_stay(tmp_path: Path) -> None:
    good, bad = sentence(1, 100), sentence(2, 100)
    pairs = [
        pair(sentence(3, 8), good, bad),
        pair(sentence(4, 8), good, bad),
        pair(sentence(3, 8), good, bad, probability=0.1),
        pair(sentence(3, 8), bad, good, probability=0.1),
    ]
    assert factors(tmp_path, pairs, near_duplicates="drop") == [1, 1, 1, 0]


def test_near_duplicates_are_told_apart_in_a_crowd_that_looks_alike(tmp_path: Path) -> None:
    """A long prompt that all share must neither make duplicates of other answers nor hide real ones."""
    prompt = sentence(0, 400)
    pairs = [pair(prompt, sentence(2 * i + 1, 12), sentence(2 * i + 2, 12)) for i in range(60)]
    again = [pair(prompt + " indeed", sentence(2 * i + 1, 12), sentence(2 * i + 2, 12)) for i in (57, 58, 59)]
    assert factors(tmp_path, pairs + again, near_duplicates="drop") == [1] * 60 + [0] * 3


def test_near_duplicates_are_found_across_the_calls_that_sign_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near, "_WAITING", 2)
    pairs = [pair(sentence(3 * n), sentence(3 * n + 1), sentence(3 * n + 2)) for n in range(4)]
    again = pair(sentence(3) + " indeed", sentence(4), sentence(5))
    assert factors(tmp_path, [*pairs, again], near_duplicates="drop") == [1, 1, 1, 1, 0]


def test_short_and_empty_texts_have_near_duplicates_too(tmp_path: Path) -> None:
    pairs = [
        pair("Rate it", "👍", ""), pair("Rate it", "👎", ""), pair("rate it.", "👍", ""), pair("Rate it", "", "👍"),
    ]  # fmt: skip
    assert factors(tmp_path, pairs, near_duplicates="drop") == [1, 1, 0, 1]


def test_a_prompt_that_shares_an_ngram_with_a_held_out_one_is_found(tmp_path: Path) -> None:
    text = sentence(1, 20)
    words = text.split()
    system = sentence(7, 30)
    heldout = write_prompts(tmp_path, "heldout", [text, "What is it?"], system)
    plain = write_prompts(tmp_path, "plain", ["What is it?"])
    with_system = pair("Something else", "a", "b")
    with_system = PreferencePair(
        [{"role": "system", "content": system}, *with_system.prompt], with_system.chosen, with_system.rejected
    )
    pairs = [
        pair("Well, " + " ".join(words[4:17]).upper() + "?", "a", "b"),  # thirteen words
        pair("Well, " + " ".join(words[4:16]) + "?", "a", "b"),  # twelve
        pair(" ".join([*words[4:10], "gap", *words[10:17]]), "a", "b"),
        pair("Other", text, "b"),  # answers do not count
        with_system,  # system messages do not either
        pair("what IS it?", "a", "b"),
        pair("What is it then?", "a", "b"),
    ]
    assert factors(tmp_path, pairs, heldout, plain, contaminated="drop") == [0, 1, 1, 1, 1, 0, 1]
    assert factors(tmp_path, pairs, heldout, contaminated="drop", ngram=12)[:3] == [0, 0, 1]
    assert factors(tmp_path, pairs, contaminated="drop") == [1] * 7


@pytest.mark.parametrize(("prompts", "expected"), [(10, 0), (11, 1)])
def test_a_template_of_many_held_out_prompts_is_no_contamination(tmp_path: Path, prompts: int, expected: int) -> None:
    template = sentence(1, 15)
    heldout = write_prompts(tmp_path, "heldout", [f"{template} {sentence(i + 2, 3)}" for i in range(prompts)])
    assert factors(tmp_path, [pair(template, "a", "b")], heldout, contaminated="drop") == [expected]


def test_only_wanted_languages_stay_and_what_cannot_be_told_does(tmp_path: Path) -> None:
    english = "This is a rather ordinary sentence about the weather in the north of the country."
    german = "Das ist ein ganz gewöhnlicher Satz über das Wetter im Norden des Landes."
    chinese = "这是一个关于天气的普通句子，没有什么特别的地方，只是用来测试的。"
    pairs = [
        pair("?", english, german),
        pair("?", german, english),
        pair("?", chinese, english),
        pair("?", "", german),
        pair("?", "42", english),
    ]
    assert factors(tmp_path, pairs, languages=("en",)) == [1, 0, 0, 0, 1]
    assert factors(tmp_path, pairs, languages=("de", "zh")) == [0, 1, 1, 1, 1]


def test_an_unknown_language_is_refused_before_the_work() -> None:
    with pytest.raises(StageError, match=r"filters\.languages: no language xx; known are .*\ben\b"):
        Filters(FilterConfig(languages=("en", "xx")))


def test_long_and_uneven_pairs_are_dropped(tmp_path: Path) -> None:
    pairs = [
        pair("a b", "c d e", "f"), pair("a b", "c", "d e f g"), pair("one", "好的吗谢", "x y"),
        pair("a", "b c d e", ""),
        pair("a", "b", "!"),
    ]  # fmt: skip
    assert factors(tmp_path, pairs, max_words=5) == [1, 0, 1, 1, 1]
    assert factors(tmp_path, pairs, max_length_ratio=3) == [0, 0, 1, 1, 1]
    assert factors(tmp_path, pairs, max_length_ratio=2) == [0, 0, 0, 1, 1]


def test_factors_multiply_and_every_dropped_row_is_counted_once(tmp_path: Path) -> None:
    pairs = [pair("Q", "yes", "no"), pair("Q", "yes", "no"), pair("Q", "no", "yes")]
    pairs.append(pair("Other", "so many words", "x"))
    found = examined(tmp_path, pairs, duplicates=0.5, contradictory=0.25, max_words=3, max_length_ratio=3)
    assert [float(f) for f in found.factors[0]] == [0.25, 0.125, 0.25, 0]
    assert found.dropped == {"max_words": 1, "max_length_ratio": 0}
    assert found.down_weighted == {"duplicates": 1, "contradictory": 3}


def test_the_cut_into_files_and_parts_changes_nothing(tmp_path: Path) -> None:
    pairs = [pair(sentence(i % 4, 12), sentence(i % 3), sentence(9 + i % 2)) for i in range(20)]
    pairs += [pair(sentence(i, 12), sentence(9), sentence(0)) for i in range(3)]
    pairs += [pair(sentence(i % 4, 12), sentence(i % 3).upper(), sentence(9 + i % 2)) for i in range(10)]
    config = FilterConfig(duplicates="drop", near_duplicates=0.5, contradictory=0.3)
    whole = Filters(config).examine([records(write(tmp_path, "whole", pairs))])
    cut = [pairs[:1], [], pairs[1:14], pairs[14:]]
    split = Filters(config).examine([records(write(tmp_path, f"{i}", file)) for i, file in enumerate(cut)])
    assert [len(file) for file in split.factors] == [1, 0, 13, 19]
    assert np.concatenate(split.factors).tolist() == whole.factors[0].tolist()
    assert (split.dropped, split.down_weighted) == (whole.dropped, whole.down_weighted)
    parts = Filters(config).examine([records(write(tmp_path, "parts", *cut))])
    assert [factors.tolist() for factors in parts.factors] == [whole.factors[0].tolist()]
    assert (parts.dropped, parts.down_weighted) == (whole.dropped, whole.down_weighted)
    assert len(set(whole.factors[0].tolist())) == 5  # 0, 0.15, 0.3, 0.5 and 1


def test_no_files_and_no_rows_are_fine(tmp_path: Path) -> None:
    config = FilterConfig(near_duplicates="drop", contradictory="drop", languages=("en",), max_words=3)
    assert [len(f) for f in Filters(config).examine([records(write(tmp_path, "a", []))]).factors] == [0]
    assert [len(f) for f in Filters(config).examine([[]]).factors] == [0]
    assert Filters(config).examine([]).factors == []


def test_filters_that_are_off_read_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.data.quality.rows import Records

    file = records(write(tmp_path, "a", [pair("Q", "yes", "no")]))
    asked: list[list[str]] = []
    stream = Records.stream
    monkeypatch.setattr(Records, "stream", lambda self, columns: asked.append(sorted(columns)) or stream(self, columns))
    assert Filters(FilterConfig(duplicates="keep")).examine([file]).factors[0].tolist() == [1]
    assert asked == []
    Filters(FilterConfig()).examine([file])
    assert asked == [["pair_id"]]
