"""What a change is for, in words: for the plan that people read, and for the history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from slurm_mig.core.changes import NodeChange, Plan
from slurm_mig.core.model import JobRequest


def purpose(change: NodeChange) -> str:
    """What the change is for."""
    if change.why:
        return change.why
    jobs = ", ".join(map(str, change.serves))
    if change.behind_fence:
        return f"fenced until job {jobs} can be served"
    if jobs:
        return f"for job {jobs}"
    waiting = sorted({job for held in change.withheld for job in held.jobs})
    if waiting:
        return f"kept for job {', '.join(map(str, waiting))}"
    return "back to its baseline" if change.gpus else "what was withheld is offered again"


def signed(plan: Plan, requests: Iterable[JobRequest], ident: str) -> Plan:
    """The plan with its changes saying what they are for, and which plan they are of."""
    labels = {request.job_id: request.label for request in requests}
    return replace(
        plan,
        changes=tuple(
            replace(change, why=_in_full(change, labels), plan=ident) for change in plan.changes
        ),
    )


def _in_full(change: NodeChange, labels: dict[int, str]) -> str:
    """`for job 9 (3g.20gb)`: what the job wanted is forgotten by Slurm one day."""
    if not change.serves or change.behind_fence:
        return purpose(change)
    return "for " + ", ".join(labels.get(job, f"job {job}") for job in change.serves)
