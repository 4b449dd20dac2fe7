"""The order of one node's reshape: which step comes next, from what is seen.

GPU, files, slurmctld and slurmd cannot change at once. `steps` names one step after the other and
is told after each what is seen then. Begun anew after any step, or after a crash between any two,
with what is seen by then, it names the steps that remain: there is no other recovery.

Invariant, checked after every step (`broken`): the node is fenced by us for as long as GPU, files,
slurmctld and slurmd may differ; it is released by RELEASE alone, when all of them say the same; and
a step counts only when its own effect was seen.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum

from slurm_mig.errors import InvariantError


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

    @property
    def agreed(self) -> bool:
        """GPU, files, slurmctld and slurmd say the same."""
        return self.reshaped and self.written and self.registered


def steps(seen: Situation) -> Generator[Step, Situation, None]:
    """The steps that remain, one at a time, DONE last.

    Send what is seen after each. Raises InvariantError when that is what must never be.
    """
    while not seen.released:
        step = next_step(seen)
        after = yield step
        if fault := broken(step, seen, after):
            raise InvariantError(f"after the step `{step.value}`: {fault}")
        seen = after
    yield Step.DONE


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


def broken(step: Step, before: Situation, after: Situation) -> str:
    """What must never be, and is after this step; empty when all is well."""
    if after.released and not (before.agreed and after.agreed):
        return "the node was released while GPU, files, slurmctld and slurmd differ"
    if after.released and step is not Step.RELEASE:
        return "the node was released by another step than the release"
    if not after.fenced:
        return "the node is not fenced by us"
    if next_step(after) is step:
        return "its effect was not seen"
    return ""
