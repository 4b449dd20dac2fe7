"""Slurm's host lists: `gpu[001-128,130]` to names and back.

Checked strictly: no set operators, spaces or groups. The order of names is kept: NodeAddr,
NodeHostname and Port go by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product

from slurm_mig.errors import ConfigError

MOST_NAMES = 65536
"""Slurm's own limit for one host list (MAX_RANGE in src/common/hostlist.c)."""

_RANGES = r"\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\]"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_ELEMENT = re.compile(rf"(?:[A-Za-z0-9_.:-]|{_RANGES})+")


def is_name(text: str) -> bool:
    """Is this one plain node name?"""
    return _NAME.fullmatch(text) is not None


def expand(value: str, where: str) -> list[str]:
    """All names of a host list, in its order.

    Raises ConfigError that begins with `where` (file:line) for anything but names with ranges.
    """
    names: list[str] = []
    for element in elements(value):
        if not _ELEMENT.fullmatch(element):
            raise _refusal(where, value, f"{element!r} is not a node name or range")
        names.extend(_expand_element(element, value, where))
        if len(names) > MOST_NAMES:
            raise _refusal(where, value, f"more than {MOST_NAMES} names")
    return names


def elements(value: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    return re.split(r",(?![^\[\]]*\])", value)


def fold(names: Sequence[str]) -> str:
    """A host list that `expand` turns into exactly these names, in this order."""
    if len(set(names)) < len(names):
        return ",".join(names)
    groups = groupby(map(_split, names), key=lambda part: (part[0], part[1] == ""))
    text = ",".join(_folded(stem, [part[1] for part in parts]) for (stem, _), parts in groups)
    return text if expand(text, "folded") == list(names) else ",".join(names)


def fold_set(names: Iterable[str]) -> str:
    """A host list of these names, each once, n2 before n10."""
    return fold(sorted(set(names), key=_natural))


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by value, the rest as text."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def _split(name: str) -> tuple[str, str]:
    """A name without its number at the end, and that number."""
    stem = name.rstrip("0123456789")
    return stem, name[len(stem) :]


def _folded(stem: str, numbers: Sequence[str]) -> str:
    if len(numbers) == 1 or sorted(numbers, key=int) != list(numbers):
        return ",".join(f"{stem}{number}" for number in numbers)
    runs: list[list[str]] = []
    for number in numbers:
        if runs and number == str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][-1])):
            runs[-1].append(number)
        else:
            runs.append([number])
    inside = (run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{stem}[{','.join(inside)}]"


def _expand_element(element: str, value: str, where: str) -> Iterator[str]:
    pieces = [p for p in re.split(r"(\[[^\]]*\])", element) if p]
    choices = [_numbers(p, value, where) if p.startswith("[") else [p] for p in pieces]
    size = 1
    for choice in choices:
        size *= len(choice)
    if size > MOST_NAMES:
        raise _refusal(where, value, f"more than {MOST_NAMES} names")
    return ("".join(parts) for parts in product(*choices))


def _numbers(brackets: str, value: str, where: str) -> list[str]:
    numbers: list[str] = []
    for part in brackets[1:-1].split(","):
        low, _, high = part.partition("-")
        if high and int(high) - int(low) >= MOST_NAMES:
            raise _refusal(where, value, f"more than {MOST_NAMES} names")
        high = high or low
        if len(low) != len(high) and "0" in (low[0], high[0]):
            raise _refusal(where, value, f"{part} has two widths")
        if int(low) > int(high):
            raise _refusal(where, value, f"{part} ends before it begins")
        numbers.extend(str(n).zfill(len(low)) for n in range(int(low), int(high) + 1))
    return numbers


def _refusal(where: str, value: str, why: str) -> ConfigError:
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return ConfigError(
        f"{where}: {shown!r} is not understood as a list of nodes: {why}; nothing was changed",
        hint="Write plain names and ranges of one width, as in gpu[001-128,130].",
    )
