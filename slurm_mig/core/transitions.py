"""The order of one node's reshape: which step comes next, from what is seen.

GPU, files, slurmctld and slurmd cannot change at once. `next_step` names the one step that is
right in a given situation; the executor does it, looks, and asks again. Re-entered after any step,
or after a crash between any two, it names the steps that remain: there is no other recovery.

Invariant: no step other than FENCE is named while the node is not fenced by us, and RELEASE is
named only when GPU, files, slurmctld and slurmd say the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    """What the executor can do to a node."""

    FENCE = "fence"
    RESHAPE = "reshape"
    WRITE = "write files"
    REGISTER = "register"
    RELEASE = "release"
    DONE = "done"


@dataclass(frozen=True)
class Situation:
    """What is known of a node in transition. Each flag was seen, not assumed."""

    fenced: bool = False
    """The node is in DRAIN with our reason, and quiet: read again after the drain."""
    reshaped: bool = False
    """The instances are those of the target layout."""
    written: bool = False
    """gres.conf and the node's line say what the slots are."""
    registered: bool = False
    """slurmd registered with these slots, and slurmctld shows them."""
    released: bool = False
    """Resumed, registered again, responding."""


def next_step(seen: Situation) -> Step:
    """The step that is right now."""
    if seen.released:
        return Step.DONE
    if not seen.fenced:
        return Step.FENCE
    if not seen.reshaped:
        return Step.RESHAPE
    if not seen.written:
        return Step.WRITE
    if not seen.registered:
        return Step.REGISTER
    return Step.RELEASE
