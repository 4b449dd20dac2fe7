"""Slurm's host lists: `gpu[001-128,130]` to names and back.

Names are checked strictly before ClusterShell sees them, because it would also take set operators,
spaces and groups. The order of names is kept: NodeAddr, NodeHostname and Port go by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from ClusterShell.RangeSet import RangeSet, RangeSetException

from slurm_mig.errors import ConfigError

MOST_NAMES = 65536
"""Slurm's own limit for one host list (MAX_RANGE in src/common/hostlist.c)."""

_RANGES = r"\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\]"
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_ELEMENT = re.compile(rf"(?:[A-Za-z0-9_.:-]|{_RANGES})+")
_BRACKETS_LAST = re.compile(r"[^\[\]]+(?:\[[^\[\]]+\])?")


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
    nodes = NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP)
    nodes.fold_axis = (-1,)
    text = str(nodes)
    simple = all(_BRACKETS_LAST.fullmatch(element) for element in elements(text))
    # ClusterShell sorts, and may fold where Slurm would not unfold: then plain names are right.
    if simple and expand(text, "folded") == list(names):
        return text
    return ",".join(names)


def fold_set(names: Iterable[str]) -> str:
    """A host list of these names, each once, in ClusterShell's order (n2 before n10)."""
    return fold([str(name) for name in NodeSet.fromlist(names, resolver=RESOLVER_NOGROUP)])


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
        try:
            numbers.extend(str(number) for number in RangeSet(part).striter())
        except RangeSetException as error:
            raise _refusal(where, value, str(error)) from error
    return numbers


def _refusal(where: str, value: str, why: str) -> ConfigError:
    shown = value if len(value) <= 80 else f"{value[:77]}..."
    return ConfigError(
        f"{where}: {shown!r} is not understood as a list of nodes: {why}; nothing was changed",
        hint="Write plain names and ranges of one width, as in gpu[001-128,130].",
    )
