"""Configuration files: YAML of plain values in sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from recgrela.system.errors import ConfigError, one_line
from recgrela.system.suggest import near_file
from recgrela.system.text import quote

MAX_BYTES = 1 << 20  # of a file
MAX_DEPTH = 20  # of nested sections and lists
MAX_NODES = 10_000  # keys and values, with aliases replaced by what they refer to
MAX_SCALAR = 10_000  # characters of a key or value


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as nested dictionaries.

    Raises:
        ConfigError: The file is missing, is not YAML, has no sections, or is larger or nested deeper than a
            file of settings can be.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: more than {MAX_BYTES:,} bytes, too long for a file of settings")
        content = yaml.load(content.decode("utf-8"), _Loader)  # a SafeLoader
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file{near_file(path)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigError(f"{path}: {where}not YAML: {one_line(problem or error)}") from error
    except (ValueError, OverflowError) as error:  # such as a date in month 13
        raise ConfigError(f"{path}: not YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: expected the sections model, data and train")
    return content


def flatten(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        nested = isinstance(value, Mapping) and len(value) > 0
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


class _Loader(yaml.SafeLoader):
    """A loader of plain values, whose time and memory are bounded by the length of the text.

    It rejects tags, deep nesting, aliases that expand to many values or contain themselves, and a duplicate
    key, of which SafeLoader keeps the last. Only true and false are booleans, as in YAML 1.2; on, off, yes
    and no, which are too in YAML 1.1, are values of settings and names of columns.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._sizes: dict[yaml.Node | None, int] = {}  # nodes below each finished one, itself included

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if node not in self._sizes:
                raise _fault("an alias (*) refers to a node that contains it", event)
            self._count(self._sizes[node], event)
            return node
        if getattr(event, "tag", None) is not None:
            raise _fault(f"the tag {quote(event.tag)}; values have no tags", event)
        if len(getattr(event, "value", "")) > MAX_SCALAR:
            raise _fault(f"a value of {len(event.value):,} characters; the most is {MAX_SCALAR:,}", event)
        if self._depth == MAX_DEPTH:
            raise _fault(f"nested deeper than {MAX_DEPTH} levels", event)
        self._depth += 1
        before = self._nodes
        self._count(1, event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        self._sizes[node] = self._nodes - before
        return node

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise _fault(f"more than {MAX_NODES:,} values, with aliases (*) expanded", event)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {quote(key.value)} occurs twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_BOOL, _TRUE_FALSE = "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _TRUE_FALSE if tag == _BOOL else pattern) for tag, pattern in resolvers]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _fault(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
