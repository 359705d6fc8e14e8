"""Identity: equal content, equal hash; what has no exact form is refused."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from pipelines.fingerprint import canonical, fingerprint, hash_path


def test_the_hash_is_sha256_of_sorted_compact_json() -> None:
    """Written down so that a change, which would lose every user's results, cannot go unseen."""
    assert fingerprint({"b": [1, 2.5, None], "a": "ä"}) == (
        hashlib.sha256('{"a":"ä","b":[1,2.5,null]}'.encode()).hexdigest()
    )


def test_order_of_keys_and_kind_of_sequence_do_not_count() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint(OrderedDict(b=[1, 2], a=1))


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [2, 1]), ("1", 1), (True, 1), (None, "null"), ({}, []), ("", None), (0.1, 0.1 + 1e-16), ([[]], [])],
)
def test_other_content_has_another_hash(one: Any, other: Any) -> None:
    assert fingerprint({"x": one}) != fingerprint({"x": other})


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": float("nan")}, "payload.a"),
        ({"a": [0, float("inf")]}, r"payload.a\[1\]"),
        ({"a": {"b": {1, 2}}}, "payload.a.b"),
        ({"a": Path("x")}, "payload.a"),
        ({"a": b"x"}, "payload.a"),
        ({"a": {1: 2}}, "payload.a"),
        ({"a": object()}, "payload.a"),
    ],
)
def test_what_has_no_deterministic_form_is_refused_by_its_path(value: dict[str, Any], where: str) -> None:
    with pytest.raises(TypeError, match=where):
        fingerprint(value)


def test_canonical_keeps_plain_values() -> None:
    value = {"a": [1, "x", None, True, 0.5], "b": {"c": []}}
    assert canonical(value) == value


def test_a_file_is_known_by_its_content_alone(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"content")
    (tmp_path / "two.txt").write_bytes(b"content")
    (tmp_path / "three").write_bytes(b"Content")
    assert hash_path(tmp_path / "one") == hash_path(tmp_path / "two.txt") == hashlib.sha256(b"content").hexdigest()
    assert hash_path(tmp_path / "one") != hash_path(tmp_path / "three")


def test_a_folder_is_known_by_names_and_contents_and_not_by_its_place(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        for file, content in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return hash_path(tmp_path / name)

    first = folder("first", a="1", deep__b="2")
    assert folder("deep/place/second", deep__b="2", a="1") == first
    assert folder("renamed", a="1", deep__c="2") != first
    assert folder("moved", a="1", b="2") != first
    assert folder("edited", a="1", deep__b="3") != first
    assert folder("swapped", a="2", deep__b="1") != first
    assert folder("more", a="1", deep__b="2", c="") != first


def test_a_linked_file_counts_as_what_it_links_to(tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    (tmp_path / "blob").write_text("weights")
    for name in ("linked", "plain"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked" / "model").symlink_to(tmp_path / "blob")
    (tmp_path / "plain" / "model").write_text("weights")
    assert hash_path(tmp_path / "linked") == hash_path(tmp_path / "plain")
