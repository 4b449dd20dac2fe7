"""What of a plan may be done now: cool-down, patience, and how many nodes at once.

Every refusal has a reason that `status` and `plan` show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slurm_mig.core.model import JobRequest, NodeChange, Plan, Refusal
from slurm_mig.core.records import Transaction


@dataclass(frozen=True)
class Policy:
    """The rules, in seconds and counts."""

    min_wait_s: float = 0.0
    """How long a job must have waited before a node is reshaped for it."""
    cooldown_s: float = 0.0
    """How long a node is left alone after a reshape."""
    max_nodes_in_transition: int = 1
    reservations: frozenset[str] = frozenset()
    """Reservations whose nodes may be reshaped, for the jobs submitted into them."""


def review(
    plan: Plan,
    requests: Sequence[JobRequest],
    last: Mapping[str, Transaction],
    policy: Policy,
    now: float,
) -> Plan:
    """The plan without what policy forbids now; each change left out refuses its jobs."""
    waited = {r.job_id: now - r.submit_time for r in requests}
    labels = {r.job_id: r.label for r in requests}
    allowed: list[NodeChange] = []
    refused: list[Refusal] = []
    for change in plan.changes:
        reason = _objection(change, waited, last.get(change.node), policy, now)
        if not reason and len(allowed) >= policy.max_nodes_in_transition:
            reason = f"{policy.max_nodes_in_transition} node(s) in transition at once: next cycle"
        if reason:
            refused.extend(Refusal(j, reason, labels.get(j, "")) for j in change.serves)
        else:
            allowed.append(change)
    return replace(plan, changes=tuple(allowed), refusals=(*plan.refusals, *refused))


def _objection(
    change: NodeChange,
    waited: Mapping[int, float],
    last: Transaction | None,
    policy: Policy,
    now: float,
) -> str:
    if last is not None and now - last.finished < policy.cooldown_s:
        left = policy.cooldown_s - (now - last.finished)
        return f"{change.node} was reshaped lately: cool-down for {left:.0f} s more"
    if all(waited.get(job, 0.0) < policy.min_wait_s for job in change.serves):
        return f"waits less than min_wait_s ({policy.min_wait_s:g} s) so far"
    return ""
