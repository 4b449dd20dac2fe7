"""What of a plan may be done now: cool-down, patience, and how many nodes at once.

Every refusal has a reason that `status` and `plan` show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core import geometry
from slurm_mig.core.changes import NodeChange, Plan, Refusal
from slurm_mig.core.conditions import RESHAPE_S
from slurm_mig.core.model import Gpu, JobRequest, Layout, NodeView, Patience
from slurm_mig.core.planning.limits import Limits
from slurm_mig.core.planning.rules import Caps, Rules
from slurm_mig.core.records import ManagedNode
from slurm_mig.core.windows import Window, closed
from slurm_mig.core.withhold import patience


@dataclass(frozen=True)
class GroupRules:
    """What a node group has of its own; None: as everywhere."""

    label: str = ""
    """As people know the group: its name, or its nodes."""
    reshape: bool = True
    """No: its nodes stay as they are."""
    min_wait_s: float | None = None
    cooldown_s: float | None = None
    withhold_s: float | None = None
    fence_wait_s: float | None = None
    baseline_after_s: float | None = None
    windows: tuple[Window, ...] | None = None
    max_nodes: int = 0
    """How many of its nodes may be in transition at once; 0: as many as in the cluster."""
    max_gpus: int = 0
    """How many of its GPUs one cycle may change; 0: any number."""
    exclude_users: frozenset[str] = frozenset()
    """Besides those that are excluded everywhere."""
    exclude_partitions: frozenset[str] = frozenset()
    least: Mapping[str, int] = field(default_factory=dict)
    """Instances by profile that the group keeps."""
    most: Mapping[str, int] = field(default_factory=dict)
    """Instances by profile that it has at most."""
    baseline: Mapping[str, int] | None = None
    """Instances by profile of each GPU's baseline; None: the layout found at enrolment."""
    soon_s: float | None = None
    """How soon a job starts by itself on its nodes that causes no change anywhere."""
    per_user: int = 0
    """How many jobs of one user may cause changes on its nodes; 0: as many as everywhere."""
    per_account: int = 0
    free_for: str = ""
    """`waiting` or `baseline`: for what room is used that a change leaves; empty: as everywhere."""


NO_RULES = GroupRules()

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
    """How long a job must have waited, and must have been seen waiting, before a node is reshaped
    for it."""
    cooldown_s: float = 0.0
    """How long a GPU is left alone after a reshape."""
    max_nodes_in_transition: int = 1
    withhold_s: float = 0.0
    """How long idle instances may be withheld for a job that running jobs are in the way of."""
    fence_wait_s: float = 0.0
    """How long a node may then stay fenced for it."""
    reconfigure_interval_s: float = 0.0
    """The least time between two publications that reconfigure the whole cluster; nodes whose
    change becomes due meanwhile then share one."""
    by_reconfigure: bool = False
    """Every publication is one; otherwise only those of nodes without slots are."""
    reservations: frozenset[str] = frozenset()
    """Reservations whose nodes may be reshaped, for the jobs submitted into them."""
    baseline_after_s: float = 0.0
    """How long after its last reshape an idle GPU gets its baseline back; 0: never."""
    repair: bool = True
    """What another hand has changed is mended; else it is only reported."""
    repairs: Mapping[str, bool] = field(default_factory=dict)
    """By node, instead of `repair`."""
    max_gpus: int = 0
    """How many GPUs one cycle may change; 0: any number."""
    windows: tuple[Window, ...] = ()
    """When reshapes may begin; none: at any time."""
    free_for: str = "waiting"
    of_group: Mapping[str, GroupRules] = field(default_factory=dict)
    """By node, its group's rules; the same object for all of a group."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """The name of each node's group, where it has one."""
    paused: Mapping[str, str] = field(default_factory=dict)
    """Nodes that an administrator has paused, and the words for it."""
    planning: Rules = field(default_factory=Rules)
    """What the planner itself goes by."""

    def group(self, node: str) -> GroupRules:
        return self.of_group.get(node, NO_RULES)

    def mends(self, node: str) -> bool:
        """What another hand has changed on the node may be mended."""
        return self.repairs.get(node, self.repair)

    def cooldown(self, node: str) -> float:
        return _first(self.group(node).cooldown_s, self.cooldown_s)

    def min_wait(self, node: str) -> float:
        return _first(self.group(node).min_wait_s, self.min_wait_s)

    def baseline_after(self, node: str) -> float:
        return _first(self.group(node).baseline_after_s, self.baseline_after_s)

    def rules(
        self, managed: Mapping[str, ManagedNode], now: float, week_s: float | None = None
    ) -> Rules:
        """The planner's rules now: what may not change, and what may go back to its baseline.

        `week_s` is the time since Monday 00:00 on the site's clock; without it no window counts.
        """
        frozen: dict[tuple[str, int], str] = {}
        back: set[tuple[str, int]] = set()
        for name, node in managed.items():
            after = self.baseline_after(name)
            named = node.baseline if self.group(name).baseline else ()
            for gpu in {*node.reshaped, *named}:
                since = ago(node.reshaped.get(gpu, 0.0), now)
                left = self.cooldown(name) - since
                if left > 0:
                    frozen[name, gpu] = f"was reshaped lately: cool-down for {left:.0f} s more"
                elif after and since >= after:
                    back.add((name, gpu))
        return replace(
            self.planning,
            frozen=self._frozen([*managed, *self.of_group], week_s),
            frozen_gpus=frozen,
            to_baseline=frozenset(back),
            limits=self._limits(),
            only_baseline=frozenset(n for n in managed if self._free_for(n) == "baseline"),
            patience={
                name: (
                    _first(rules.withhold_s, self.withhold_s),
                    _first(rules.fence_wait_s, self.fence_wait_s),
                )
                for name, rules in self.of_group.items()
                if rules.withhold_s is not None or rules.fence_wait_s is not None
            },
            soon={n: own.soon_s for n, own in self.of_group.items() if own.soon_s is not None},
            caps=self._caps(),
            barred={
                name: (rules.exclude_users, rules.exclude_partitions)
                for name, rules in self.of_group.items()
                if rules.exclude_users or rules.exclude_partitions
            },
        )

    def _frozen(self, names: Sequence[str], week_s: float | None) -> dict[str, str]:
        """Nodes on which nothing may change now, and why."""
        found = {}
        for name in names:
            rules = self.group(name)
            windows = self.windows if rules.windows is None else rules.windows
            if not rules.reshape:
                found[name] = "the site's groups say reshape: false"
            elif week_s is not None and (why := closed(windows, week_s, RESHAPE_S)):
                found[name] = why
        return {**found, **self.paused}

    def _limits(self) -> dict[str, Limits]:
        known: dict[int, Limits] = {}
        for rules in self.of_group.values():
            if (rules.least or rules.most) and id(rules) not in known:
                known[id(rules)] = Limits(rules.label, rules.least, rules.most)
        return {n: known[id(r)] for n, r in self.of_group.items() if id(r) in known}

    def _caps(self) -> dict[str, Caps]:
        known: dict[int, Caps] = {}
        for rules in self.of_group.values():
            if (rules.per_user or rules.per_account) and id(rules) not in known:
                known[id(rules)] = Caps(rules.label, rules.per_user, rules.per_account)
        return {n: known[id(r)] for n, r in self.of_group.items() if id(r) in known}

    def _free_for(self, node: str) -> str:
        return self.group(node).free_for or self.free_for

    def baselines(self, managed: Mapping[str, ManagedNode], views: Sequence[NodeView]) -> Baselines:
        """By node and GPU, the layout that room nobody asked for is filled from."""
        found = Baselines({name: node.baselines for name, node in managed.items()})
        for view in views:
            wanted = self.group(view.name).baseline
            for gpu in view.gpus if wanted else ():
                if layout := baseline_of(gpu, wanted or {}):
                    found.layouts.setdefault(view.name, {})[gpu.index] = layout
                elif gpu.mig:
                    found.notes.append(
                        f"{view.name} GPU {gpu.index} ({gpu.model}) cannot have the baseline of "
                        f"group {self.group(view.name).label}: its layout at enrolment counts"
                    )
        return found

    def patience(self, unserved_s: float) -> Patience:
        """What may be done for a job that could not be served for this long."""
        return patience(unserved_s, self.withhold_s, self.fence_wait_s)


@dataclass
class Baselines:
    """Layouts by node and GPU index, and what is to be said of them."""

    layouts: dict[str, dict[int, Layout]]
    notes: list[str] = field(default_factory=list)


def baseline_of(gpu: Gpu, wanted: Mapping[str, int]) -> Layout:
    """So many instances on one GPU, placed the same way whatever is on it now; empty when it cannot
    have them."""
    return next(geometry.ways_to_add(gpu, frozenset(), wanted), frozenset())


def _first(own: float | None, general: float) -> float:
    return general if own is None else own


def review(
    plan: Plan,
    requests: Sequence[JobRequest],
    managed: Mapping[str, ManagedNode],
    policy: Policy,
    now: float,
    seen_since: Mapping[int, float] | None = None,
) -> Plan:
    """The plan without what policy forbids now; each change left out refuses its jobs.

    `seen_since` is when each job was first seen unserved; one that is not in it was never.
    """
    waited = {r.job_id: ago(r.submit_time, now) for r in requests}
    if seen_since is not None:
        waited = {j: min(s, ago(seen_since.get(j, now), now)) for j, s in waited.items()}
    labels = {r.job_id: r.label for r in requests}
    allowed: list[NodeChange] = []
    refused: list[Refusal] = []
    interval = _interval(managed, policy, now)
    for change in plan.changes:
        node = managed.get(change.node)
        reason = _objection(change, waited, node, policy, now)
        if node and _reconfigures(node, policy):
            reason = reason or interval
        reason = reason or _too_many(change, allowed, policy)
        if reason:
            refused.extend(Refusal(j, reason, labels.get(j, "")) for j in _for_whom(change))
        else:
            allowed.append(change)
    return replace(plan, changes=tuple(allowed), refusals=(*plan.refusals, *refused))


def _too_many(change: NodeChange, allowed: Sequence[NodeChange], policy: Policy) -> str:
    """Why one more change is too many for this cycle."""
    if len(allowed) >= policy.max_nodes_in_transition:
        return f"{policy.max_nodes_in_transition} node(s) in transition at once: next cycle"
    if _beyond(change, allowed, policy.max_gpus):
        return f"{policy.max_gpus} GPU(s) in transition at once: next cycle"
    rules = policy.group(change.node)
    own = [other for other in allowed if policy.group(other.node) is rules]
    if rules.max_nodes and len(own) >= rules.max_nodes:
        return f"group {rules.label}: {rules.max_nodes} node(s) in transition at once: next cycle"
    if _beyond(change, own, rules.max_gpus):
        return f"group {rules.label}: {rules.max_gpus} GPU(s) in transition at once: next cycle"
    return ""


def _beyond(change: NodeChange, allowed: Sequence[NodeChange], most: int) -> bool:
    """More GPUs than may be; a node is changed as a whole, so that the first is never too many."""
    gpus = sum(len(other.gpus) for other in allowed)
    return bool(most and allowed and gpus + len(change.gpus) > most)


def _for_whom(change: NodeChange) -> list[int]:
    """The jobs that a change serves, or withholds instances for."""
    kept = [job for w in change.withheld for job in w.jobs]
    return list(dict.fromkeys((*change.serves, *kept)))


def _interval(managed: Mapping[str, ManagedNode], policy: Policy, now: float) -> str:
    """Why the cluster may not be reconfigured yet."""
    reconfiguring = (node for node in managed.values() if _reconfigures(node, policy))
    published = max((node.published for node in reconfiguring), default=0.0)
    left = policy.reconfigure_interval_s - ago(published, now)
    return f"the cluster was reconfigured lately: again in {left:.0f} s" if left > 0 else ""


def _reconfigures(node: ManagedNode, policy: Policy) -> bool:
    return policy.by_reconfigure or not node.slotted


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
    least = policy.min_wait(change.node)
    if jobs and all(waited.get(job, 0.0) < least for job in jobs):
        return f"waits less than min_wait_s ({least:g} s) so far"
    return ""
