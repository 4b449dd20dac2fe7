"""YAML (and so JSON) with the line of every value, for messages that say where.

Standard YAML types only; a key given twice is refused, as it hides what was meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from slurm_mig.core.layoutfile import Located
from slurm_mig.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
"""Aliases may repeat parts: a file of a few lines must not become a machine's memory."""


def read(path: Path) -> Located:
    """The file's tree. Raises ConfigError with file, line and reason."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is too long ({len(data)} bytes)")
    try:
        root = yaml.compose(data.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error
    if root is None:
        raise ConfigError(f"{path} is empty")
    return _Reader(path).located(root)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0

    def located(self, node: Any) -> Located:
        self._seen += 1
        line = node.start_mark.line + 1
        if self._seen > MAX_VALUES:
            raise ConfigError(f"{self._path}:{line}: too many values (repeated aliases?)")
        if isinstance(node, yaml.MappingNode):
            return Located(self._mapping(node), line)
        if isinstance(node, yaml.SequenceNode):
            return Located([self.located(item) for item in node.value], line)
        return Located(self._scalar(node, line), line)

    def _mapping(self, node: Any) -> dict[str, Located]:
        found: dict[str, Located] = {}
        for key, value in node.value:
            name = str(self._scalar(key, key.start_mark.line + 1))
            if name in found:
                raise ConfigError(f"{self._path}:{key.start_mark.line + 1}: {name} is given twice")
            found[name] = self.located(value)
        return found

    def _scalar(self, node: Any, line: int) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{self._path}:{line}: a key must be a plain word")
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or error
            raise ConfigError(f"{self._path}:{line}: {reason}") from error
