"""Frozen dataclasses to plain JSON values and back, checked.

Used for the journal and for what crosses the remote command. What comes from a node is not
trusted: a wrong type or an unknown field is refused with its path, never guessed at.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Hashable, Mapping
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
    try:
        return typing.cast("T", _decoder(typing.cast("Hashable", kind))(data))
    except _MisfitError as misfit:
        place = "".join(reversed(misfit.path))
        raise ConfigError(f"{where}{place}: {misfit.fault}") from None


Decoder = Callable[[Any], Any]


class _MisfitError(Exception):
    """What does not fit, and its place, the innermost part first: put together only when needed."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.path: list[str] = []

    def at(self, part: str) -> _MisfitError:
        self.path.append(part)
        return self


@cache
def _decoder(kind: Any) -> Decoder:
    """What decodes a kind. Made once: a cycle decodes the records and facts of every node."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _optional(_decoder(next(a for a in args if a is not type(None))))
    if origin is tuple and len(args) == 2 and args[1] is not Ellipsis:
        return _pair(_decoder(args[0]), _decoder(args[1]))
    if origin in (tuple, list, frozenset):
        return _sequence(origin, _decoder(args[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(args[0], _decoder(args[1]))
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _fields(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind)
    return (lambda data: data) if kind is Any else _plain(kind)


def _plain(kind: Any) -> Decoder:
    def decoded(data: Any) -> Any:
        if type(data) is kind:
            return data
        if kind is float and type(data) is int:
            return float(data)
        raise _MisfitError(f"expected {kind.__name__}, found {type(data).__name__}")

    return decoded


def _optional(inner: Decoder) -> Decoder:
    return lambda data: None if data is None else inner(data)


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise _MisfitError(f"expected a list, found {type(data).__name__}")
    return data


def _object(data: Any) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise _MisfitError(f"expected an object, found {type(data).__name__}")
    return data


def _pair(first: Decoder, second: Decoder) -> Decoder:
    def decoded(data: Any) -> Any:
        if len(_list(data)) != 2:
            raise _MisfitError(f"expected 2 items, found {len(data)}")
        found = []
        for number, item in enumerate((first, second)):
            try:
                found.append(item(data[number]))
            except _MisfitError as misfit:
                raise misfit.at(f"[{number}]") from None
        return tuple(found)

    return decoded


def _sequence(origin: Any, item: Decoder) -> Decoder:
    def decoded(data: Any) -> Any:
        found: list[Any] = []
        values = _list(data)
        try:
            for value in values:
                found.append(item(value))
        except _MisfitError as misfit:
            raise misfit.at(f"[{len(found)}]") from None
        return origin(found)

    return decoded


def _mapping(key_kind: Any, item: Decoder) -> Decoder:
    def decoded(data: Any) -> Any:
        found = {}
        for key, value in _object(data).items():
            name = _key(key_kind, key)
            try:
                found[name] = item(value)
            except _MisfitError as misfit:
                raise misfit.at(f".{key}") from None
        return found

    return decoded


def _key(kind: Any, key: str) -> Any:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError as error:
        raise _MisfitError(f"expected a number as key, found {key[:40]!r}") from error


def _fields(kind: Any) -> Decoder:
    """A dataclass, or a named tuple, all of whose fields are required."""
    hints, required = _declared(kind)
    decoders = {name: _decoder(hint) for name, hint in hints.items()}

    def decoded(data: Any) -> Any:
        if _object(data).keys() != decoders.keys():
            if unknown := data.keys() - decoders.keys():
                raise _MisfitError(f"unknown field {', '.join(sorted(map(str, unknown)))}")
            if missing := required - data.keys():
                raise _MisfitError(f"missing {', '.join(sorted(missing))}")
        found, name = {}, ""
        try:
            for name, value in data.items():
                found[name] = decoders[name](value)
        except _MisfitError as misfit:
            raise misfit.at(f".{name}") from None
        return kind(**found)

    return decoded


def _declared(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Type of each field, and the fields without a default."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints, frozenset(kind._fields)
    required = (
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return hints, frozenset(required)


def _enum(kind: Any) -> Decoder:
    def decoded(data: Any) -> Any:
        try:
            return kind(data)
        except ValueError as error:
            raise _MisfitError(str(error)) from error

    return decoded
