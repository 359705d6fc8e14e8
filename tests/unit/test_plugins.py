"""The user's own code: how it is known, and what of it travels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipelines.plugins import module_names, plugin_hash, plugins, travelling


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_plugin_is_known_by_its_source(modules: Path) -> None:
    source = modules / "identity_judge.py"
    source.write_text("class A: pass\n")
    first = plugin_hash("identity_judge:A")
    source.write_text("class A: better = True\n")
    assert plugin_hash("identity_judge:A") != first
    source.write_text("class A: pass\n")
    assert plugin_hash("identity_judge:A") == first


def test_a_plugin_is_not_imported_to_be_known(modules: Path) -> None:
    (modules / "identity_silent.py").write_text("raise RuntimeError('imported')\n")
    plugin_hash("identity_silent:A")
    assert "identity_silent" not in sys.modules


def test_a_plugin_package_is_known_by_all_its_modules(modules: Path) -> None:
    """A judge's rules may stand in a module next to the one that is named."""
    package = modules / "identity_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .rules import A\n")
    (package / "rules.py").write_text("class A: pass\n")
    first = plugin_hash("identity_package:A")
    (package / "rules.py").write_text("class A: better = True\n")
    assert plugin_hash("identity_package:A") != first


@pytest.mark.parametrize("use", ["identity_nowhere:A", "time:sleep"])
def test_a_plugin_without_source_is_refused(use: str) -> None:
    with pytest.raises(ImportError, match=use.partition(":")[0]):
        plugin_hash(use)


def test_plugins_are_found_at_any_depth(modules: Path) -> None:
    (modules / "identity_deep.py").write_text("class A: pass\nclass B: pass\n")
    config = {"judge": {"use": "identity_deep:A"}, "more": [{"use": "identity_deep:B"}], "use": "sentiment"}
    assert set(plugins(config)) == {"identity_deep:A", "identity_deep:B"}
    assert plugins({"use": "sentiment", "text": "a:b", "judge": {"use": "rules"}}) == {}


def test_a_module_beside_the_spec_travels_with_the_files_next_to_it(modules: Path) -> None:
    for name in ("identity_sent.py", "identity_helper.py", "notes.txt"):
        (modules / name).write_text("A = 1\n")
    names = module_names({"judge": {"use": "identity_sent:A"}})
    assert names == ["identity_sent"]
    assert travelling(names, [Path("/nowhere"), modules]) == [
        modules / "identity_helper.py",
        modules / "identity_sent.py",
    ]


def test_a_file_that_an_installed_module_hides_stays_at_home(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it would hide that, and no worker could start."""
    monkeypatch.setattr(sys, "path", [*(path for path in sys.path if path != str(modules)), str(modules)])
    for name in ("identity_kept.py", "queue.py", "yaml.py", "two-words.py", "__main__.py"):
        (modules / name).write_text("A = 1\n")
    names = module_names({"judge": {"use": "identity_kept:A"}})
    assert [path.name for path in travelling(names, [modules])] == ["identity_kept.py"]


def test_a_package_beside_the_spec_travels_whole(modules: Path) -> None:
    package = modules / "identity_pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("A = 1\n")
    names = module_names({"judge": {"use": "identity_pack.deep:A"}})
    assert travelling(names, [modules]) == [package]


def test_what_is_installed_does_not_travel(modules: Path) -> None:
    names = module_names({"judge": {"use": "stages.judge.judges.rules:Rules"}})
    assert names == ["stages"]
    assert travelling(names, [modules]) == []
