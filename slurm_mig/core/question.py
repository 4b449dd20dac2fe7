"""What the planner is asked, and its answer: the same in a cycle and from a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from slurm_mig.core import demand
from slurm_mig.core.changes import Plan, Refusal
from slurm_mig.core.model import JobRequest, Layout, NodeView
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules


@dataclass(frozen=True)
class Question:
    """Everything that a plan depends on."""

    views: tuple[NodeView, ...]
    requests: tuple[JobRequest, ...]
    """Every pending job that asks for gpus."""
    baselines: Mapping[str, Mapping[int, Layout]]
    rules: Rules
    now: float
    notes: tuple[str, ...] = ()
    """What is to be said of the baselines."""

    def answer(self) -> Plan:
        """The plan, before what policy leaves for a later cycle."""
        waiting, blocked = demand.waiting(self.requests), demand.blocked(self.requests)
        later = [r for r in self.requests if r.job_id in blocked]
        preempting = demand.by_preemption(waiting, self.views, self.now)
        wanted = [r for r in waiting if r.job_id not in preempting]
        made = plan(self.views, wanted, self.baselines, self.rules, self.now, later)
        left = (Refusal(job, reason) for job, reason in preempting.items())
        return replace(made, notes=(*made.notes, *self.notes), refusals=(*made.refusals, *left))
