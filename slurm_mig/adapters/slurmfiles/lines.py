"""The lines of slurm.conf and gres.conf as Slurm reads them, each with its exact text.

Mirrors src/common/parse_config.c (read at 26.05; the same rules in 24.11): a comment is cut from
each physical line before continuation is looked for, escapes are removed from the joined line, and
Include counts only at the very start of a line. Pure: text in, lines out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.errors import ConfigError

_SPACE = " \t\n\v\f\r"
_WS = r"[ \t\n\v\f\r]"
_PAIR = re.compile(
    rf"{_WS}*(?P<key>[A-Za-z0-9_.]+){_WS}*(?P<op>[-*+/]?)={_WS}*"
    rf'(?:"(?P<quoted>[^"]*)"|(?P<bare>[^ \t\n\v\f\r]+))(?={_WS}|\Z)'
)
_INCLUDE = re.compile(rf"include{_WS}+(?P<file>[^ \t\n\v\f\r]+){_WS}*\Z", re.IGNORECASE)
_FIRST_ONLY = frozenset({"nodename", "partitionname"})


@dataclass(frozen=True)
class Pair:
    """One `key=value`; key and value as spelled, without quotes.

    `start` and `end` are the value's place in its line's `raw`.
    """

    key: str
    value: str
    op: str
    start: int
    end: int


@dataclass(frozen=True)
class Line:
    """One logical line: `raw` is its exact physical text, line ends, comments and all.

    `number` counts physical lines from 1. `include` is the file an Include names. A blank or
    comment line has neither pairs nor include.
    """

    path: Path
    number: int
    raw: str
    pairs: tuple[Pair, ...] = ()
    include: str | None = None

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self.number}"

    @property
    def kind(self) -> str:
        """The first key in lower case (it decides what Slurm takes the line for), or ''."""
        return self.pairs[0].key.lower() if self.pairs else ""

    def pair(self, key: str) -> Pair | None:
        """The pair that counts for `key` (any case): the last one, as in Slurm."""
        found = [pair for pair in self.pairs if pair.key.lower() == key.lower()]
        return found[-1] if found else None

    def value(self, key: str) -> str | None:
        """The value of `key` (any case), or None."""
        pair = self.pair(key)
        return pair.value if pair else None

    def replaced(self, values: Mapping[Pair, str]) -> str:
        """`raw` with other values for these pairs and not a byte changed elsewhere."""
        raw = self.raw
        for pair in sorted(values, key=lambda p: p.start, reverse=True):
            raw = raw[: pair.start] + values[pair] + raw[pair.end :]
        return raw


def physical_lines(text: str) -> list[str]:
    """`text` cut after each newline, and nowhere else (str.splitlines knows more line ends)."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def parse(text: str, path: Path, numbers: Sequence[int] | None = None) -> list[Line]:
    """The logical lines of `text`; their `raw` joined is `text` again.

    `numbers` gives the number of each physical line where it is not its place in `text`. Raises
    ConfigError for a line that Slurm would not take.
    """
    lines: list[Line] = []
    pending: list[str] = []
    chars: list[tuple[str, int]] = []
    first = length = 0
    physical = physical_lines(text)
    for n, part in enumerate(physical):
        if not pending:
            first = numbers[n] if numbers is not None else n + 1
            chars, length = [], 0
        pending.append(part)
        code, goes_on = _code(part)
        chars.extend((char, length + i) for i, char in enumerate(code))
        length += len(part)
        if not goes_on or n == len(physical) - 1:
            lines.append(_line(path, first, "".join(pending), chars))
            pending = []
    return lines


def _code(part: str) -> tuple[str, bool]:
    """A physical line without comment and continuation mark, and whether it goes on."""
    backslashes = 0
    for i, char in enumerate(part):
        if char == "#" and backslashes % 2 == 0:
            part = part[:i]
            break
        backslashes = backslashes + 1 if char == "\\" else 0
    stripped = part.rstrip(_SPACE)
    if (len(stripped) - len(stripped.rstrip("\\"))) % 2:
        return stripped[:-1], True
    return part, False


def _unescape(chars: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    kept: list[tuple[str, int]] = []
    i = 0
    while i < len(chars):
        if chars[i][0] == "\\":
            i += 1
        kept.extend(chars[i : i + 1])
        i += 1
    return kept


def _line(path: Path, number: int, raw: str, chars: Sequence[tuple[str, int]]) -> Line:
    kept = _unescape(chars)
    text = "".join(char for char, _ in kept)
    line = Line(path, number, raw)
    if "\0" in raw:
        raise _not_understood(line, "a NUL byte")
    include = _INCLUDE.match(text)
    if include:
        return Line(path, number, raw, include=include["file"])
    pairs = tuple(_pairs(line, text, [offset for _, offset in kept]))
    for pair in pairs[1:]:
        if pair.key.lower() in _FIRST_ONLY:
            raise _not_understood(line, f"{pair.key}= is not the first key of its line")
    return Line(path, number, raw, pairs)


def _pairs(line: Line, text: str, offsets: Sequence[int]) -> list[Pair]:
    pairs = []
    at = 0
    while match := _PAIR.match(text, at):
        group = "bare" if match["quoted"] is None else "quoted"
        start, end = match.span(group)
        # An empty "" has no character of its own: it sits at its closing quote.
        raw_start = offsets[start]
        raw_end = offsets[end - 1] + 1 if end > start else raw_start
        pairs.append(Pair(match["key"], match[group], match["op"], raw_start, raw_end))
        at = match.end()
    rest = text[at:].strip(_SPACE)
    if rest:
        raise _not_understood(line, f"not key=value: {rest[:60]!r}")
    return pairs


def _not_understood(line: Line, why: str) -> ConfigError:
    return ConfigError(
        f"{line.where}: line not understood ({why}); nothing was changed",
        hint="Slurm would not take this line either: correct it, then try again.",
    )
