"""What a soak does, one action after the other: a sequence that its seed alone determines.

Nothing here depends on what becomes of an action, so two runs with one seed do the same things in
the same order (how far they come in a given time is the machine's business).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.testbed import faults
from tests.testbed.faults import Fault

NODES = ("a100-1", "a100-2", "a30-1")
A100_PROFILES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
A30_PROFILES = ("1g.6gb", "2g.12gb", "4g.24gb")
WEIGHTS = (4, 3, 3, 2, 1, 2, 2, 1)

SHAPES = ("plain", "plain", "plain", "several", "array", "wide", "suspended", "untyped")
"""`suspended` also resumes what an earlier one suspended."""

HANDS = ("drain", "resume", "reason", "cancel", "cancel", "restart slurmctld")
"""What people do to nodes and jobs. A drain is taken down again some actions later."""

FAULTS: tuple[Fault, ...] = (
    *faults.SLURMCTLD, *faults.SLURMDS[:4], *faults.NVML, *faults.REMOTE, *faults.DISKS,
    *faults.HANDS, *faults.CLOCK, *faults.OTHERS,
)  # fmt: skip


@dataclass(frozen=True)
class Submit:
    """A job: its profile, shape, and how long it computes and pauses, in seconds."""

    profile: str
    shape: str
    computes_s: float
    pause_s: float


@dataclass(frozen=True)
class Hand:
    """Somebody does this to a node, or, `cancel`, to the n-th last job."""

    what: str
    node: str
    job: int


@dataclass(frozen=True)
class Cycle:
    """`slurm-mig reconcile`; a fault strikes a node so many seconds after its start, and is healed
    after so many further cycles."""

    fault: Fault | None
    node: str
    after_s: float
    lasts: int


Action = Submit | Hand | Cycle


def actions(seed: int) -> Iterator[Action]:
    """For ever."""
    dice = random.Random(seed)
    while True:
        for _ in range(dice.choice((0, 1, 1, 2, 3))):
            yield _submit(dice)
        if dice.random() < 0.12:
            yield Hand(dice.choice(HANDS), dice.choice(NODES), dice.randint(1, 6))
        struck = dice.random() < 0.5
        yield Cycle(
            fault=dice.choice(FAULTS) if struck else None,
            node=dice.choice(NODES),
            after_s=round(dice.random() * 1.5, 2),
            lasts=dice.choice((0, 1, 1, 2, 4)),
        )


def _submit(dice: random.Random) -> Submit:
    return Submit(
        profile=dice.choices((*A100_PROFILES, *A30_PROFILES), WEIGHTS)[0],
        shape=dice.choice(SHAPES),
        computes_s=dice.choice((0.5, 1.0, 3.0, 6.0)),
        pause_s=dice.choice((0, 0.5, 2)),
    )
