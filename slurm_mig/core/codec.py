"""Frozen dataclasses to plain JSON values and back, checked.

Used for the journal and for what crosses the remote command. What comes from a node is not
trusted: a wrong type or an unknown field is refused with its path, never guessed at.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from slurm_mig.errors import ConfigError

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A value of the model as dicts, lists, strings and numbers; sets are sorted."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return [encode(v) for v in sorted(value)]
    if hasattr(value, "_asdict"):
        return encode(value._asdict())
    if isinstance(value, (list, tuple)):
        return [encode(v) for v in value]
    return value


def decode(kind: type[T], data: Any, where: str = "value") -> T:
    """The inverse of `encode`. Raises ConfigError naming the place of the first fault."""
    return typing.cast("T", _decode(kind, data, where))


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _decode(next(a for a in args if a is not type(None)), data, where)
    if origin in (tuple, list, frozenset):
        return _sequence(origin, args, data, where)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(args, data, where)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _fields(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, data, where)
    if kind is Any:
        return data
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ConfigError(f"{where}: expected {kind.__name__}, found {type(data).__name__}")
    return data


def _sequence(origin: Any, args: tuple[Any, ...], data: Any, where: str) -> Any:
    if not isinstance(data, list):
        raise ConfigError(f"{where}: expected a list, found {type(data).__name__}")
    if origin is tuple and len(args) == 2 and args[1] is not Ellipsis:
        if len(data) != 2:
            raise ConfigError(f"{where}: expected 2 items, found {len(data)}")
        return tuple(_decode(a, v, f"{where}[{n}]") for n, (a, v) in enumerate(zip(args, data)))  # noqa: B905
    return origin(_decode(args[0], v, f"{where}[{n}]") for n, v in enumerate(data))


def _mapping(args: tuple[Any, ...], data: Any, where: str) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, found {type(data).__name__}")
    return {_key(args[0], k, where): _decode(args[1], v, f"{where}.{k}") for k, v in data.items()}


def _key(kind: Any, key: str, where: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError as error:
        raise ConfigError(f"{where}: expected a number as key, found {key[:40]!r}") from error


def _fields(kind: Any, data: Any, where: str) -> Any:
    """A dataclass, or a named tuple, all of whose fields are required."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, found {type(data).__name__}")
    hints, required = _declared(kind)
    unknown = data.keys() - hints.keys()
    if unknown:
        raise ConfigError(f"{where}: unknown field {', '.join(sorted(map(str, unknown)))}")
    missing = required - data.keys()
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(sorted(missing))}")
    return kind(**{k: _decode(hints[k], v, f"{where}.{k}") for k, v in data.items()})


@cache
def _declared(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Type of each field, and the fields without a default. Worked out once: it is slow."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints, frozenset(kind._fields)
    required = (
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return hints, frozenset(required)


def _enum(kind: Any, data: Any, where: str) -> Any:
    try:
        return kind(data)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
