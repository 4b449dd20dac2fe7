"""What of a job's bad end the soak has to blame itself for: a slurmd that it killed under a launch.

Slurm does not begin a step again whose launch request was on its way to a slurmd that is killed,
stopped or away. Such a job is excused only where srun says so of a node whose slurmd the soak had
struck at that time; any other failed step is a violation.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from tests.testbed import faults
from tests.testbed.faults import Fault

AWAY = frozenset(fault.name for fault in (*faults.SLURMDS, faults.OTHERS[1]))
"""Faults that take a slurmd away."""

LAUNCH = re.compile(r"Task launch for StepId=\S+ failed on node (\S+):")

SLACK_S = 10.0
"""How long after a slurmd was struck, or came back, srun may still say so."""


@dataclass
class Blame:
    """When the soak took slurmds away."""

    away: list[tuple[str, float, float]] = field(default_factory=list)
    """Node, and from when to when, in seconds since the epoch."""

    def struck(self, fault: Fault, node: str) -> None:
        if fault.name in AWAY:
            now = time.time()
            self.away.append((node, now, now + SLACK_S))

    def healed(self, fault: Fault, node: str) -> None:
        """It comes back from now on; it was away ever since it was struck."""
        if fault.name in AWAY and (mine := [a for a in self.away if a[0] == node]):
            self.away.append((node, mine[-1][1], time.time() + SLACK_S))

    def of_launch(self, said: str, ended: float) -> bool:
        """Did a job that said this, and ended then, lose a launch to the soak?"""
        nodes = set(LAUNCH.findall(said))
        return any(node in nodes and begin <= ended <= end for node, begin, end in self.away)
