"""What of a job's bad end a random run has to blame itself for: a daemon it killed under a step.

Slurm does not begin a step again whose launch request was on its way to a slurmd that is killed,
stopped or away, or whose srun was just asking a slurmctld that ends or hangs. Such a job is excused
only where srun says so of a daemon that the run had struck at that time; any other failed step is
a violation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.testbed import faults
from tests.testbed.faults import Fault
from tests.testbed.product import ManagedCluster

AWAY = frozenset(fault.name for fault in (*faults.SLURMDS, faults.OTHERS[1]))
"""Faults that take a slurmd away."""

UNCONFIGURED = "replaced by configuration management"
"""Faults upon which a slurmd that is just being reloaded reads the site's GPU lines of before the
enrolment: slurmctld refuses it, and a slurmd that was refused hangs while steps are launched
(docs/facts.md). It is told of none: any node may be in the middle of a reshape."""

ASKED = frozenset(fault.name for fault in faults.SLURMCTLD)
"""Faults that take slurmctld away."""

LAUNCH = re.compile(r"Task launch for StepId=\S+ failed on node (\S+):")
CONFIRM = re.compile(
    r"Unable to confirm allocation for job \d+: (Connection reset|Socket timed out)"
)

SLURMCTLD, EVERY = "slurmctld", "*"

SLACK_S = 10.0
"""How long after a slurmd was struck, or came back, srun may still say so."""

HANGS_S = 30.0
"""The same of slurmctld, which may hang for 14 s; srun waits 10 s for an answer. A slurmd that was
refused hangs as long."""


@dataclass
class Blame:
    """When the run took daemons away."""

    away: list[tuple[str, float, float]] = field(default_factory=list)
    """Node, slurmctld or every node, and from when to when, in seconds since the epoch."""

    def struck(self, fault: Fault, node: str) -> None:
        now = time.time()
        if fault.name in AWAY:
            self.away.append((node, now, now + SLACK_S))
        if fault.name in ASKED:
            self.away.append((SLURMCTLD, now, now + HANGS_S))
        if UNCONFIGURED in fault.name:
            self.away.append((EVERY, now, now + HANGS_S))

    def healed(self, fault: Fault, node: str) -> None:
        """It comes back from now on; it was away ever since it was struck."""
        if fault.name in AWAY and (mine := [a for a in self.away if a[0] == node]):
            self.away.append((node, mine[-1][1], time.time() + SLACK_S))

    def of_step(self, said: str, ended: float) -> bool:
        """Did a job that said this, and ended then, lose a step to the run?"""
        names = set(LAUNCH.findall(said))
        names |= {EVERY} if names else {SLURMCTLD} if CONFIRM.search(said) else set()
        return any(name in names and begin <= ended <= end for name, begin, end in self.away)

    def lost(self, cluster: ManagedCluster, jobs: Iterable[int]) -> set[int]:
        """Those of the jobs that failed as they lost a step to the run."""
        found = set()
        for job in jobs:
            shown = cluster.job(job)
            if shown.get("JobState") == "FAILED" and self.of_step(
                cluster.output(job), epoch(shown["EndTime"])
            ):
                found.add(job)
        return found


def epoch(text: str) -> float:
    """A time of squeue's, in seconds since the epoch."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return time.time()
