"""The configuration's YAML: its values, the line of each, and messages that say where.

Read by config.py with PyYAML alone, on controllers and GPU nodes; a key given twice is a fault, as
it hides what was meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from slurm_mig.adapters import trust
from slurm_mig.errors import ConfigError

Place = tuple[str | int, ...]
Faults = list[tuple[Place, str]]

NO_TEXT = "should be a text"
NO_LIST = "should be a list"
NO_SECTION = "should be keys and values"
NO_NUMBER = "should be a number"
NO_COUNT = "should be a whole number"


class _NotedError(Exception):
    """The value is faulty; its fault is noted."""


class Document:
    """A YAML file with the line of each key, and the faults of YAML itself."""

    def __init__(self, path: Path, root: yaml.Node | None) -> None:
        self.path = path
        self.faults: Faults = []
        self._lines: dict[Place, int] = {(): 1}
        self._around: list[yaml.Node] = []
        self.data: dict[str, Any] = {}
        try:
            data = None if root is None else self._value(root, ())
        except _NotedError:
            return
        if isinstance(data, dict):
            self.data = data
        elif data is not None:
            self.faults.append(((), NO_SECTION))

    @classmethod
    def read(cls, path: Path) -> Document:
        trust.refuse_writable(
            "the configuration", path, trust.slurms_own(path.with_name("slurm.conf"))
        )
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"cannot read {path}: {error.strerror}",
                hint="Copy etc/slurm-mig.yaml there, or name another file with --config.",
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text") from error
        try:
            return cls(path, yaml.compose(text, yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML: {error}") from error

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest thing around it."""
        while place not in self._lines:
            place = place[:-1]
        return self._lines[place]

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._lines.setdefault(place, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if node in self._around:
            self.faults.append((place, "contains itself"))
            raise _NotedError
        self._around.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return dict(self._items(node, place))
            return list(self._sequence(node, place))
        finally:
            self._around.pop()

    def _scalar(self, node: yaml.ScalarNode, place: Place) -> Any:
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            # An unknown tag, or a date such as 2026-13-40, which YAML takes for one.
            reason = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            self.faults.append((place, f"is no value: {reason}"))
            raise _NotedError from error

    def _sequence(self, node: yaml.Node, place: Place) -> Iterator[Any]:
        for n, item in enumerate(node.value):
            try:
                yield self._value(item, (*place, n))
            except _NotedError:
                continue

    def _items(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append((place, f"a key should be one word (line {line})"))
                continue
            key = str(key_node.value)
            where = (*place, key)
            self._lines[where] = line
            if key in seen:
                self.faults.append((where, f"given twice (first at line {seen[key]})"))
            seen.setdefault(key, line)
            try:
                yield key, self._value(value_node, where)
            except _NotedError:
                continue


def bad(document: Document, faults: Faults) -> ConfigError:
    lines = sorted(
        (document.line(place), f"{document.path}:{document.line(place)}: {_dotted(place)}{what}")
        for place, what in faults
    )
    return ConfigError(
        "\n".join(["bad configuration; nothing was changed", *(text for _, text in lines)]),
        hint="etc/slurm-mig.yaml documents every key.",
    )


def _dotted(place: Place) -> str:
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    return f"{text}: " if text else ""
