"""Which of the jobs that wait may cause changes, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.looks import ending, where
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.units import Pools, Unit, units_of

Refuse = Callable[[Unit, str], None]
"""Notes why a unit causes no change."""


def demand(
    units: Sequence[Unit], fleet: Fleet, pools: Pools, rules: Rules, now: float, refuse: Refuse
) -> list[Unit]:
    """The units that may cause changes, in their order: neither those that start by themselves
    soon, nor what is excluded or beyond a cap."""
    kept = _capped(_not_soon(units, fleet, pools, rules, now, refuse), rules, refuse)
    return _apart(kept, fleet, rules)


def barred(rules: Rules, name: str, request: JobRequest) -> str:
    """Why the job may cause no change on the node, where its group says so."""
    users, partitions = rules.barred.get(name, ((), ()))
    if request.user in users:
        return f"{name}: policy: jobs of user {request.user} cause no reshape"
    if request.partition in partitions:
        return f"{name}: policy: jobs of partition {request.partition} cause no reshape"
    return ""


def _not_soon(
    units: Sequence[Unit], fleet: Fleet, pools: Pools, rules: Rules, now: float, refuse: Refuse
) -> list[Unit]:
    """Without those that running jobs will have made room for in a while."""
    if not rules.soon_s:
        return list(units)
    soon = [ending(node, now + rules.soon_s) for node in fleet.nodes]
    kept = []
    for unit in units:
        at = None if unit.several else where(unit.sizes[0], pools, fleet, soon)
        if at is None:
            kept.append(unit)
            continue
        soon[at].subtract(unit.requests[0].gpus)
        refuse(unit, f"starts by itself within {rules.soon_s:g} s, when running jobs on "
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
        if excluded := _excluded(rules, request):
            refuse(unit, excluded)
            continue
        caps = {
            ("user", request.user): rules.per_user,
            ("account", request.account): rules.per_account,
        }
        over = next((who for who, cap in caps.items() if cap and count[who] >= cap), None)
        if over is None:
            count.update(caps.keys())
            kept.append(unit)
        else:
            cap = caps[over]
            refuse(unit, f"{cap} job(s) of {over[0]} {over[1]} may cause changes at once")
    return kept


def _excluded(rules: Rules, request: JobRequest) -> str:
    if request.user in rules.exclude_users:
        return f"policy: jobs of user {request.user} cause no reshape"
    if request.partition in rules.exclude_partitions:
        return f"policy: jobs of partition {request.partition} cause no reshape"
    return ""


def _apart(units: Sequence[Unit], fleet: Fleet, rules: Rules) -> list[Unit]:
    """The units without the nodes on which they may cause no change."""
    if not rules.barred:
        return list(units)
    requests = [
        replace(
            r,
            tasks=1,
            excluded_nodes=r.excluded_nodes
            | {name for name in rules.barred if barred(rules, name, r)},
        )
        for unit in units
        for r in unit.requests
    ]
    again = units_of(requests, fleet, rules.weights)
    values = {id(unit): value.value for unit, value in zip(again, units, strict=True)}
    return [replace(unit, value=values[id(unit)]) for unit in again]
