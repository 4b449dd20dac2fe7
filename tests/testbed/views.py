"""Do all views of a node say the same? Asked from outside: slurmctld's words, the files that slurmd
reads, the simulator's state and the jobs' own reports; never slurm-mig's records or its code's
opinion of them.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from slurm_mig.core import demand
from tests.testbed.product import ManagedCluster

GRES_CONF = "/etc/slurm/slurm-mig/gres.conf"
FILLER = re.compile(r"off\d*|guard")


@dataclass(frozen=True)
class Line:
    """One device of gres.conf."""

    type: str
    minors: tuple[int, ...]
    """Of capability nodes."""


def lines_of(text: str, node: str) -> list[Line]:
    """The node's devices in gres.conf's order."""
    found = []
    for line in text.splitlines():
        if not line.startswith(f"NodeName={node} Name=gpu "):
            continue
        words = dict(word.split("=", 1) for word in line.split())
        files = words.get("File") or words.get("MultipleFiles") or ""
        found.append(Line(words["Type"], tuple(_minors(files))))
    return found


def _minors(files: str) -> list[int]:
    found = []
    for inside, single in re.findall(r"nvidia-cap(?:\[([\d,]+)\]|(\d+))", files):
        found += [int(n) for n in (inside or single).split(",")]
    return found


@dataclass(frozen=True)
class Seen:
    """One look at a node."""

    state: frozenset[str]
    reason: str
    gres: dict[str, int]
    lines: tuple[Line, ...]
    instances: tuple[tuple[int, str, int], ...]
    """(capability minor, profile, GPU) of each instance that is there."""
    changes: int
    """Instances ever made or destroyed."""


def look(cluster: ManagedCluster, node: str) -> Seen:
    """Every view of the node, read one after the other."""
    shown = cluster.node(node)
    state: dict[str, Any] = cluster.sim(node)
    return Seen(
        state=frozenset(re.split(r"[+*]+", shown["State"].replace("*", "+NOT_RESPONDING"))),
        reason=shown.get("Reason", ""),
        gres=demand.parse_gres(shown["Gres"]),
        lines=tuple(lines_of(cluster.read(GRES_CONF), node)),
        instances=tuple(
            (i["minor"], i["profile"], index)
            for index, gpu in enumerate(state["gpus"])
            for i in gpu["instances"]
        ),
        changes=state["created"] + state["destroyed"],
    )


def differences(seen: Seen) -> list[str]:
    """What of a node that is open to jobs does not agree; empty when all does."""
    found = []
    types = [line.type for line in seen.lines]
    wanted = [t for t, n in seen.gres.items() for _ in range(n)]
    if types != wanted:
        found.append(f"slurmctld shows {seen.gres}, gres.conf has {dict(Counter(types))}")
    there = {minor: profile for minor, profile, _ in seen.instances}
    for number, line in enumerate(seen.lines):
        if FILLER.fullmatch(line.type):
            continue
        profiles = [there[m] for m in line.minors if m in there]
        if line.minors and profiles != [line.type]:
            found.append(f"slot {number} is offered as {line.type}; its device is {profiles}")
    if "INVALID_REG" in seen.state:
        found.append(f"its registration was refused: {seen.reason}")
    return found


def checked(cluster: ManagedCluster, node: str, *, total: int) -> Seen:
    """The node, open to jobs, with every view in agreement and as many slots as ever."""
    seen = look(cluster, node)
    assert not seen.state & {"DRAIN", "DRAINED", "DRAINING", "DOWN"}, (seen.state, seen.reason)
    assert not differences(seen), "\n".join(differences(seen))
    assert sum(seen.gres.values()) == total
    return seen
