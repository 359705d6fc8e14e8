"""YAML read safely, with the line of every key, duplicate keys refused, and ``5e-7`` read as a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.spec.problems import Problem, SpecError

_MAX_NODES = 10_000  # aliases can multiply without limit; no real spec comes near

_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 wants a dot and a sign in ``5.0e-7``; people write ``5e-7``."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class Document:
    path: Path
    value: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def where(self, path: Sequence[str | int]) -> str:
        """``file:line key.path``, with the line of the nearest key that is in the file."""
        key = ".".join(map(str, path))
        known = tuple(path)
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known else ""
        return f"{self.path.name}{line} {key}".rstrip()


def scalar(text: str) -> Any:
    """The value of ``text`` as YAML."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with one more number form


def read(path: Path) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        SpecError: not UTF-8, not YAML, or not a mapping.
    """
    document = Document(path)
    try:
        loader = _Loader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
    except UnicodeDecodeError as error:
        raise SpecError([Problem(path.name, f"not UTF-8 text (byte {error.start})")]) from None
    except OSError as error:
        raise SpecError([Problem(path.name, f"cannot be read: {error.strerror}")]) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise SpecError([Problem(f"{path.name}{line}", f"not valid YAML: {problem}")]) from None
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise SpecError([Problem(path.name, f"expected a mapping (key: value lines) at the top, found {found}")])
    try:
        document.value = _build(loader, node, (), document, [_MAX_NODES])
    except RecursionError:
        raise SpecError([Problem(path.name, "nested too deeply, or an alias that contains itself")]) from None
    return document


def _build(
    loader: yaml.SafeLoader, node: yaml.Node, path: tuple[str | int, ...], document: Document, budget: list[int]
) -> Any:
    budget[0] -= 1
    if budget[0] < 0:
        raise SpecError([Problem(document.path.name, f"more than {_MAX_NODES} values; a spec is not a data file")])
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        document.problems.append(Problem(document.where(path), f"the tag {node.tag} is not allowed; use plain values"))
        return None
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = item.start_mark.line + 1
        return [_build(loader, item, (*path, index), document, budget) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            message = getattr(error, "problem", None) or str(error)
            document.problems.append(Problem(document.where(path), f"not a plain value: {message}"))
            return None
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        here = (*path, key)
        line = key_node.start_mark.line + 1
        if key in result:
            first = document.lines[here]
            where = f"{document.path.name}:{line} {'.'.join(map(str, here))}"
            document.problems.append(Problem(where, f"duplicate key, first given on line {first}; keep one"))
            continue
        document.lines[here] = line
        result[key] = _build(loader, value_node, here, document, budget)
    return result
