"""What of a plan may be done now: cool-down, patience, and how many nodes at once.

Every refusal has a reason that `status` and `plan` show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core.model import JobRequest, NodeChange, Patience, Plan, Refusal
from slurm_mig.core.planning.plan import Rules
from slurm_mig.core.records import ManagedNode

SKEW_S = 60.0
"""What the clocks of two hosts may differ by."""


def ago(then: float, now: float) -> float:
    """Seconds since a recorded moment. One that lies ahead was written before the clock was set
    back: it counts as long past, lest a cool-down last until the clock gets there again."""
    return max(0.0, now - then) if then <= now + SKEW_S else math.inf


@dataclass(frozen=True)
class Policy:
    """The rules, in seconds and counts."""

    min_wait_s: float = 0.0
    """How long a job must have waited before a node is reshaped for it."""
    cooldown_s: float = 0.0
    """How long a GPU is left alone after a reshape."""
    max_nodes_in_transition: int = 1
    withhold_s: float = 0.0
    """How long idle instances may be withheld for a job that running jobs are in the way of."""
    fence_wait_s: float = 0.0
    """How long a node may then stay fenced for it."""
    reconfigure_interval_s: float = 0.0
    """The least time between two publications that reconfigure the whole cluster; nodes whose
    change becomes due meanwhile then share one. 0 where no publication does."""
    reservations: frozenset[str] = frozenset()
    """Reservations whose nodes may be reshaped, for the jobs submitted into them."""
    cooldowns: Mapping[str, float] = field(default_factory=dict)
    """By node, instead of `cooldown_s`."""
    baseline_after_s: float = 0.0
    """How long after its last reshape an idle GPU gets its baseline back; 0: never."""
    baselines_after: Mapping[str, float] = field(default_factory=dict)
    """By node, instead of `baseline_after_s`."""
    left_alone: frozenset[str] = frozenset()
    """Nodes that the site wants to stay as they are."""
    repair: bool = True
    """What another hand has changed is mended; else it is only reported."""
    repairs: Mapping[str, bool] = field(default_factory=dict)
    """By node, instead of `repair`."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The name of each node's group, where it has one."""
    paused: Mapping[str, str] = field(default_factory=dict)
    """Nodes that an administrator has paused, and the words for it."""
    planning: Rules = field(default_factory=Rules)
    """What the planner itself goes by."""

    def cooldown(self, node: str) -> float:
        return self.cooldowns.get(node, self.cooldown_s)

    def mends(self, node: str) -> bool:
        """What another hand has changed on the node may be mended."""
        return self.repairs.get(node, self.repair)

    def rules(self, managed: Mapping[str, ManagedNode], now: float) -> Rules:
        """The planner's rules now: what may not change, and what may go back to its baseline."""
        frozen: dict[tuple[str, int], str] = {}
        back: set[tuple[str, int]] = set()
        for name, node in managed.items():
            after = self.baselines_after.get(name, self.baseline_after_s)
            for gpu, last in node.reshaped.items():
                left = self.cooldown(name) - ago(last, now)
                if left > 0:
                    frozen[name, gpu] = f"was reshaped lately: cool-down for {left:.0f} s more"
                elif after and ago(last, now) >= after:
                    back.add((name, gpu))
        return replace(
            self.planning,
            frozen={
                **dict.fromkeys(self.left_alone, "the site's groups say reshape: false"),
                **self.paused,
            },
            frozen_gpus=frozen,
            to_baseline=frozenset(back),
        )

    def patience(self, unserved_s: float) -> Patience:
        """What may be done for a job that could not be served for this long.

        Instances are withheld; if others took every slot that became free all the while, the node
        is fenced; then, lest one job keep a node for ever, nothing is done for as long again.
        """
        period = 2 * (self.withhold_s + self.fence_wait_s)
        at = unserved_s % period if period else 0.0
        if at < self.withhold_s:
            return Patience.WITHHOLD
        return Patience.FENCE if at < self.withhold_s + self.fence_wait_s else Patience.NONE


def review(
    plan: Plan,
    requests: Sequence[JobRequest],
    managed: Mapping[str, ManagedNode],
    policy: Policy,
    now: float,
) -> Plan:
    """The plan without what policy forbids now; each change left out refuses its jobs."""
    waited = {r.job_id: ago(r.submit_time, now) for r in requests}
    labels = {r.job_id: r.label for r in requests}
    allowed: list[NodeChange] = []
    refused: list[Refusal] = []
    interval = _interval(managed, policy, now)
    for change in plan.changes:
        reason = _objection(change, waited, managed.get(change.node), policy, now) or interval
        if not reason and len(allowed) >= policy.max_nodes_in_transition:
            reason = f"{policy.max_nodes_in_transition} node(s) in transition at once: next cycle"
        if reason:
            refused.extend(Refusal(j, reason, labels.get(j, "")) for j in _for_whom(change))
        else:
            allowed.append(change)
    return replace(plan, changes=tuple(allowed), refusals=(*plan.refusals, *refused))


def _for_whom(change: NodeChange) -> list[int]:
    """The jobs that a change serves, or withholds instances for."""
    kept = [job for w in change.withheld for job in w.jobs]
    return list(dict.fromkeys((*change.serves, *kept)))


def _interval(managed: Mapping[str, ManagedNode], policy: Policy, now: float) -> str:
    """Why the cluster may not be reconfigured yet."""
    published = max((node.published for node in managed.values()), default=0.0)
    left = policy.reconfigure_interval_s - ago(published, now)
    return f"the cluster was reconfigured lately: again in {left:.0f} s" if left > 0 else ""


def _objection(
    change: NodeChange,
    waited: Mapping[int, float],
    node: ManagedNode | None,
    policy: Policy,
    now: float,
) -> str:
    if change.node in policy.paused:
        return f"{change.node} is {policy.paused[change.node]}"
    reshaped = node.reshaped if node else {}
    last = max((reshaped.get(part.gpu, 0.0) for part in change.gpus), default=0.0)
    left = policy.cooldown(change.node) - ago(last, now)
    if left > 0:
        return f"{change.node} was reshaped lately: cool-down for {left:.0f} s more"
    jobs = _for_whom(change)
    # A change for nobody offers again what was withheld.
    if jobs and all(waited.get(job, 0.0) < policy.min_wait_s for job in jobs):
        return f"waits less than min_wait_s ({policy.min_wait_s:g} s) so far"
    return ""
