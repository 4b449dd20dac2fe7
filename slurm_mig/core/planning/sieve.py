"""Which of the jobs that wait may cause changes, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from slurm_mig.core import conditions
from slurm_mig.core.model import JobRequest, SlurmNode
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.looks import ending, where
from slurm_mig.core.planning.rules import Caps, Rules
from slurm_mig.core.planning.units import Pools, Size, Unit, units_of

Refuse = Callable[[Unit, str], None]
"""Notes why a unit causes no change."""


def demand(
    units: Sequence[Unit], fleet: Fleet, pools: Pools, rules: Rules, now: float, refuse: Refuse
) -> list[Unit]:
    """The units that may cause changes, in their order: neither those that start by themselves
    soon, nor what is excluded or beyond a cap."""
    kept = _capped(_not_soon(units, fleet, pools, rules, now, refuse), rules, refuse)
    return _apart(kept, fleet, pools, rules)


def excluded(rules: Rules, request: JobRequest) -> str:
    """Why the job may cause no change anywhere; empty where one of its partitions may."""
    if request.user in rules.exclude_users:
        return f"policy: jobs of user {request.user} cause no reshape"
    if rules.exclude_partitions.issuperset(request.partition.split(",")):
        return f"policy: jobs of partition {request.partition} cause no reshape"
    return ""


def barred(rules: Rules, node: SlurmNode, request: JobRequest) -> str:
    """Why the job may cause no change on the node: its group says so, or it could run there only
    as a job of a partition that is excluded."""
    users, partitions = rules.barred.get(node.name, ((), ()))
    if request.user in users:
        return f"{node.name}: policy: jobs of user {request.user} cause no reshape"
    if not (partitions or rules.exclude_partitions):
        return ""
    through = conditions.shared(node, request)
    if through and all(p in partitions or p in rules.exclude_partitions for p in through):
        return f"{node.name}: policy: jobs of partition {','.join(through)} cause no reshape"
    return ""


def _not_soon(
    units: Sequence[Unit], fleet: Fleet, pools: Pools, rules: Rules, now: float, refuse: Refuse
) -> list[Unit]:
    """Without those that running jobs will have made room for in a while, on any node: each says
    itself how long that is."""
    within = [rules.soon.get(node.name, rules.soon_s) for node in fleet.nodes]
    if not any(within):
        return list(units)
    soon = [
        ending(node, now + seconds) if seconds else Counter[str]()
        for node, seconds in zip(fleet.nodes, within, strict=True)
    ]
    kept = []
    for unit in units:
        at = None if unit.several else where(unit.sizes[0], pools, fleet, soon)
        if at is None:
            kept.append(unit)
            continue
        soon[at].subtract(unit.requests[0].gpus)
        refuse(unit, f"starts by itself within {within[at]:g} s, when running jobs on "
                     f"{fleet.nodes[at].name} have ended")  # fmt: skip
    return kept


def _capped(units: Sequence[Unit], rules: Rules, refuse: Refuse) -> list[Unit]:
    """Without what is excluded, or beyond the caps per user and account."""
    if not (rules.per_user or rules.per_account or rules.exclude_users
            or rules.exclude_partitions):  # fmt: skip
        return list(units)
    count: Counter[tuple[str, str]] = Counter()
    kept = []
    for unit in units:
        request = unit.requests[0]
        if why := excluded(rules, request):
            refuse(unit, why)
            continue
        if over := _over(count, request, rules.per_user, rules.per_account):
            refuse(unit, over)
        else:
            kept.append(unit)
    return kept


def _over(
    count: Counter[tuple[str, str]], request: JobRequest, per_user: int, per_account: int
) -> str:
    """Why the job is beyond a cap; else it is counted."""
    caps = {("user", request.user): per_user, ("account", request.account): per_account}
    for (what, name), cap in caps.items():
        if cap and count[what, name] >= cap:
            return f"{cap} job(s) of {what} {name} may cause changes at once"
    count.update(caps.keys())
    return ""


class _GroupCaps:
    """Counts each job for every group on whose nodes it may cause changes: which of them it gets is
    not known yet, and none may have more than its cap."""

    def __init__(self, fleet: Fleet, pools: Pools, rules: Rules) -> None:
        self._fleet = fleet
        self._pools = pools
        self._rules = rules
        self._nodes: dict[int, list[str]] = {}
        for name, caps in rules.caps.items():
            self._nodes.setdefault(id(caps), []).append(name)
        self._count: dict[int, Counter[tuple[str, str]]] = {}
        self._reached: dict[Size, list[tuple[Caps, list[SlurmNode]]]] = {}
        self._barred: dict[tuple[int, Size, str], bool] = {}
        self._said: dict[tuple[tuple[int, str], ...], dict[str, str]] = {}

    def capped(self, unit: Unit) -> Mapping[str, str]:
        """The nodes of groups whose cap is reached, and why; one object for the same."""
        found: list[tuple[int, str]] = []
        request = unit.requests[0]
        groups = {
            id(caps): caps
            for size in unit.sizes
            for caps, nodes in self._groups(size)
            if not self._all_barred(caps, nodes, size, request)
        }
        for caps in groups.values():
            count = self._count.setdefault(id(caps), Counter())
            if over := _over(count, request, caps.per_user, caps.per_account):
                found.append((id(caps), f"group {caps.group}: {over}"))
        if (key := tuple(found)) not in self._said:
            self._said[key] = {name: why for of, why in found for name in self._nodes[of]}
        return self._said[key]

    def _groups(self, size: Size) -> list[tuple[Caps, list[SlurmNode]]]:
        """The groups with nodes that such a job could use, and those nodes."""
        if size not in self._reached:
            found: dict[int, tuple[Caps, list[SlurmNode]]] = {}
            for pool in self._pools.eligible(size):
                for at in self._pools.nodes[pool]:
                    node = self._fleet.nodes[at]
                    if caps := self._rules.caps.get(node.name):
                        found.setdefault(id(caps), (caps, []))[1].append(node.view.slurm)
            self._reached[size] = list(found.values())
        return self._reached[size]

    def _all_barred(
        self, caps: Caps, nodes: Sequence[SlurmNode], size: Size, request: JobRequest
    ) -> bool:
        """The job may cause no change on any of these nodes of the group."""
        key = id(caps), size, request.user
        if key not in self._barred:
            self._barred[key] = all(barred(self._rules, node, request) for node in nodes)
        return self._barred[key]


def _apart(units: Sequence[Unit], fleet: Fleet, pools: Pools, rules: Rules) -> list[Unit]:
    """The units without the nodes on which they may cause no change."""
    if not rules.apart:
        return list(units)
    counting = _GroupCaps(fleet, pools, rules)
    capped = [counting.capped(unit) for unit in units]
    known: dict[Hashable, frozenset[str]] = {}
    nodes = [node.view.slurm for node in fleet.nodes]
    if not rules.exclude_partitions:
        nodes = [node for node in nodes if node.name in rules.barred]

    def left_out(request: JobRequest, over: Mapping[str, str]) -> frozenset[str]:
        key = request.excluded_nodes, id(over), request.user, request.partition
        if key not in known:
            named = (node.name for node in nodes if barred(rules, node, request))
            known[key] = request.excluded_nodes.union(over, named)
        return known[key]

    requests = [
        replace(r, tasks=1, excluded_nodes=left_out(r, over))
        for unit, over in zip(units, capped, strict=True)
        for r in unit.requests
    ]
    again = units_of(requests, fleet, rules.weights)
    return [
        replace(unit, value=before.value, capped=over)
        for unit, before, over in zip(again, units, capped, strict=True)
    ]
