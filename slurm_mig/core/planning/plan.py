"""The planner: from views and waiting jobs to a plan, proven as far as it can be.

Called by the reconciler, by `slurm-mig plan` and by the benchmark, with the same answer for the
same question. In order: what is held for a job that waited already; what starts as it is, now or
soon; the programme over classes for the rest; the second stage on nodes; then, for each job that
gets nothing, why, and what is withheld for it.
"""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from slurm_mig.core import conditions, geometry, planner, withhold
from slurm_mig.core.draft import NodeDraft, never
from slurm_mig.core.model import (
    Gpu,
    JobRequest,
    Layout,
    NodeChange,
    NodeView,
    Patience,
    Plan,
    Quality,
    Refusal,
)
from slurm_mig.core.planning import highs, reasons
from slurm_mig.core.planning.classes import APART, CLOSE, problem
from slurm_mig.core.planning.filling import fill, waiting_mix
from slurm_mig.core.planning.fleet import Fleet, Node, uses
from slurm_mig.core.planning.looks import ending, urgency, where
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.programme import Programme, Solution
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.stage import Staged, Task, close_stage, stage
from slurm_mig.core.planning.units import (
    Pools,
    Size,
    Unit,
    pools_of,
    slices_of,
    units_of,
)
from slurm_mig.errors import ArrangementError

LOOKED_AT = 4
"""How many nodes are looked at for a reason, or for a place to withhold, in a large cluster."""

EXPLAINED = 200
"""So many times a node is looked at for reasons; then jobs that wait are only counted."""


def plan(
    views: Sequence[NodeView],
    requests: Iterable[JobRequest],
    baselines: Mapping[str, Mapping[int, Layout]] | None = None,
    rules: Rules | None = None,
    now: float = 0.0,
    later: Iterable[JobRequest] = (),
) -> Plan:
    """The plan for `requests`, which are in the order in which Slurm would start them.

    `baselines` gives, per node and GPU index, the layout that fills room nobody asked for. `later`
    are jobs that wait for something else: room is kept in their shapes too.
    """
    asked = list(requests)
    with _uncollected():
        planning = _Planning(views, asked, baselines or {}, rules or Rules(), now)
        return planning.plan(list(later))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector of reference cycles: a plan makes none to speak of, and looking
    for them among all GPUs of a large cluster takes a third of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class _Planning:
    """One run of the planner."""

    def __init__(
        self,
        views: Sequence[NodeView],
        requests: Sequence[JobRequest],
        baselines: Mapping[str, Mapping[int, Layout]],
        rules: Rules,
        now: float,
    ) -> None:
        self._views = views
        self._requests = requests
        self._rules = rules
        self._now = now
        self._baselines = baselines
        self._drafts = {v.name: NodeDraft.of(v, self._filling(v.name)) for v in views}
        self._fences: dict[str, NodeChange] = {}
        self._held: dict[int, str] = {}
        self._given: set[int] = set()
        counted = {view.name: why for view in views if (why := conditions.counted(view))}
        self._still = {**counted, **rules.frozen}
        """Nodes on which nothing may change now, and why."""
        self._fleet = Fleet(views, baselines, self._still, rules.frozen_gpus, rules.limits)
        self._pools = Pools((), (), {})
        self._nodes: dict[str, Node] = {}
        self._impossible: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}
        self._looks = EXPLAINED
        self._why = reasons.Reasons()
        self._refusals: dict[int, Refusal] = {}

    def _filling(self, name: str) -> Mapping[int, Layout]:
        """A node's baselines, as far as room may be filled from them: a profile of which its group
        has at most so many comes by demand only."""
        limits = self._rules.limits.get(name)
        known = self._baselines.get(name, {})
        if limits is None or not limits.most:
            return known
        return {
            gpu: frozenset(p for p in layout if p.profile not in limits.most)
            for gpu, layout in known.items()
        }

    def plan(self, later: Sequence[JobRequest]) -> Plan:
        self._holdings()
        for node in self._fleet.nodes:
            if not self._drafts[node.name].untouched or self._drafts[node.name].goals:
                node.keep(self._drafts[node.name])
        units = self._units()
        pools = self._pools = pools_of(self._fleet, units)
        places = Places(self._fleet, pools)
        startable = [unit for unit in units if places.place(unit)]
        for node in self._fleet.nodes:
            node.offer_again()
        started = {id(unit) for unit in startable}
        demand = self._capped(
            self._not_soon([unit for unit in units if id(unit) not in started], pools)
        )
        demand = self._apart(demand)
        if self._rules.barred:
            pools = self._pools = pools_of(self._fleet, demand)
        staged, quality = self._best(demand, pools)
        self._fleet = staged.fleet
        self._fill(staged, [*later, *(r for u in units for r in u.requests)], startable)
        for node in self._fleet.nodes:
            if node.touched:
                node.give(self._drafts[node.name])
        self._nodes = {node.name: node for node in self._fleet.nodes}
        self._release(staged.served)
        self._explain(staged.left)
        self._to_baseline()
        changes = [change for v in self._views if (change := self._change(v.name))]
        order: dict[int, int] = {}
        for n, request in enumerate(self._requests):
            order.setdefault(request.job_id, n)
        changes.sort(key=lambda change: urgency(change, order))
        return Plan(
            tuple(changes),
            tuple(self._refusals.values()),
            tuple(dict.fromkeys(r.job_id for unit in startable for r in unit.requests)),
            quality=quality,
        )

    def _units(self) -> list[Unit]:
        most = sum(len(view.slots) for view in self._views)
        wanted = [r for r in self._requests if r.job_id not in self._given]
        return units_of(wanted, self._fleet, self._rules.weights, most)

    def _holdings(self) -> None:
        """Serve the jobs for which instances are withheld if that is possible now; else go on
        withholding, before anybody else may want them."""
        holding = {
            job: [v.name for v in self._views if any(job in w.jobs for w in v.withheld)]
            for v in self._views
            for w in v.withheld
            for job in w.jobs
        }
        for request in self._requests:
            names = [
                name
                for name in holding.get(request.job_id, ())
                if self._patience(name, request) is Patience.WITHHOLD
                and not self._barred(name, request)
            ]
            if not names or request.het_job:
                continue
            here = {name: self._drafts[name] for name in names if not self._frozen(name)}
            able = here and planner.reshape_for(here, request) is None
            if able and not self._within_limits(here):
                continue
            if able:
                self._drafts.update(here)
                if request.tasks == 1:
                    self._given.add(request.job_id)
            else:
                self._held[request.job_id] = self._keep(list(self._drafts), request)

    def _within_limits(self, changed: Mapping[str, NodeDraft]) -> bool:
        """Do the groups' limits allow these drafts, beside what was decided before?"""
        taken: dict[int, list[int]] = {}
        drafts = {**self._drafts, **changed}
        for node in self._fleet.nodes:
            for use in uses(node.budget, drafts[node.name]) if node.budget else ():
                known = taken.setdefault(id(node.budget), [0] * len(use))
                taken[id(node.budget)] = [a + b for a, b in zip(known, use, strict=True)]
        budgets = {id(budget): budget for budget in self._fleet.budgets}
        return all(budgets[key].allows(use) for key, use in taken.items())

    def _fill(
        self, staged: Staged, waiting: Sequence[JobRequest], startable: Sequence[Unit]
    ) -> None:
        """Give room that is left on changed GPUs to what still waits."""
        if not any(d.target for node in self._fleet.nodes for d in node.drafts):
            return
        mix = waiting_mix({id(r): r for r in waiting}.values())
        for unit in (*staged.served, *startable):
            for request in unit.requests:
                mix.subtract({t: n * request.nodes for t, n in request.gpus.items()})
        wanted = Counter({t: n for t, n in mix.items() if n > 0})
        fill(self._fleet, wanted, slices_of(self._fleet), self._rules.only_baseline)

    def _frozen(self, name: str) -> str:
        return self._still.get(name, "")

    def _may_wait_at(self, name: str, request: JobRequest) -> bool:
        """Without slots nothing can be withheld, but behind a fence every gpu job ends."""
        if not self._drafts[name].view.slotted:
            fenced = self._patience(name, request) is Patience.FENCE
            return fenced and name not in self._rules.frozen
        return not self._frozen(name)

    def _not_soon(self, units: Sequence[Unit], pools: Pools) -> list[Unit]:
        """Without those that running jobs will have made room for in a while."""
        if not self._rules.soon_s:
            return list(units)
        until = self._now + self._rules.soon_s
        soon = [ending(node, until) for node in self._fleet.nodes]
        kept = []
        for unit in units:
            request = unit.requests[0]
            at = None if unit.several else where(unit.sizes[0], pools, self._fleet, soon)
            if at is None:
                kept.append(unit)
                continue
            soon[at].subtract(request.gpus)
            self._refuse(unit, f"starts by itself within {self._rules.soon_s:g} s, when running "
                               f"jobs on {self._fleet.nodes[at].name} have ended")  # fmt: skip
        return kept

    def _capped(self, units: Sequence[Unit]) -> list[Unit]:
        """Without what is excluded, or beyond the caps per user and account."""
        rules = self._rules
        if not (rules.per_user or rules.per_account or rules.excluded_users
                or rules.excluded_partitions):  # fmt: skip
            return list(units)
        count: Counter[tuple[str, str]] = Counter()
        kept = []
        for unit in units:
            request = unit.requests[0]
            if excluded := self._excluded(request):
                self._refuse(unit, excluded)
                continue
            caps = (
                (("user", request.user), self._rules.per_user),
                (("account", request.account), self._rules.per_account),
            )
            over = next((who for who, cap in caps if cap and count[who] >= cap), None)
            if over is None:
                count.update(who for who, _ in caps)
                kept.append(unit)
            else:
                cap = dict(caps)[over]
                self._refuse(unit, f"{cap} job(s) of {over[0]} {over[1]} may cause changes at once")
        return kept

    def _excluded(self, request: JobRequest) -> str:
        if request.user in self._rules.excluded_users:
            return f"policy: jobs of user {request.user} cause no reshape"
        if request.partition in self._rules.excluded_partitions:
            return f"policy: jobs of partition {request.partition} cause no reshape"
        return ""

    def _best(self, units: Sequence[Unit], pools: Pools) -> tuple[Staged, Quality]:
        """The programme, and its best realisation on nodes."""
        gpus = sum(len(node.drafts) for node in self._fleet.nodes)
        if not units:
            return Staged(self._fleet), Quality(0, 0, proven=True, gpus=gpus)
        weights = self._rules.weights
        coarse = problem(self._fleet, pools, units, weights)
        bound = self._solve(coarse.programme, 0.0)
        task = Task(pools, units, coarse, bound, weights, self._solve)
        best, most = self._staged(task)
        worth = sum(unit.value for unit in best.served)
        quality = Quality(
            best.value,
            max(best.value, most),
            bound.gap == 0,
            worth,
            worth - best.value,
            best.terms(weights),
            len(coarse.programme.classes),
            gpus,
            best.refused_by_hulls,
        )
        return best, quality

    def _staged(self, task: Task) -> tuple[Staged, int]:
        """The best realisation on nodes, and what no plan can be worth more than."""
        count, bound = len(self._fleet.nodes), task.bound
        most = round(bound.value * (1 + bound.gap))
        if count > CLOSE:
            return stage(self._fleet, task, hard_first=False), most
        best = stage(self._fleet.copy(), task, hard_first=False)
        if best.value < most and any(unit.several for unit in task.units):
            other = stage(self._fleet.copy(), task, hard_first=True)
            best = max(best, other, key=lambda staged: staged.value)
        if best.value < most and count <= APART:
            other, solution = close_stage(self._fleet.copy(), task)
            best = max(best, other, key=lambda staged: staged.value)
            most = min(most, round(solution.value * (1 + solution.gap)))
        return best, most

    def _solve(self, programme: Programme, rel_gap: float) -> Solution:
        return highs.solve(programme, self._rules.time_limit_s, rel_gap)

    def _release(self, served: Iterable[Unit]) -> None:
        """What was withheld for a job that is served elsewhere now is free again."""
        done = {unit.job_id for unit in served}
        for draft in self._drafts.values():
            draft.goals = [goal for goal in draft.goals if not done.issuperset(goal.jobs)]

    def _explain(self, left: Sequence[Unit]) -> None:
        """Why each job gets nothing, and what is withheld for it until it can."""
        known: dict[tuple[Size, ...], str] = {}
        order: dict[int, int] = {}
        for n, asked in enumerate(self._requests):
            order.setdefault(asked.job_id, n)
        waiting = len(self._held)
        for unit in sorted(left, key=lambda u: order[u.job_id]):
            request = unit.requests[0]
            if request.job_id in self._refusals:
                continue
            if unit.sizes not in known:
                known[unit.sizes] = self._reason(unit)
            waits = self._held.get(request.job_id, "")
            if not waits and waiting < self._rules.withhold_jobs and not request.het_job:
                waits = self._wait(unit.sizes[0], request)
                waiting += bool(waits)
            self._refuse(unit, "; ".join(filter(None, (known[unit.sizes], waits))))

    def _reason(self, unit: Unit) -> str:
        """Why one job of its kind gets nothing."""
        found: list[str] = []
        for request, size in zip(unit.requests, unit.sizes, strict=True):
            key = (request.partition, size.gpus)
            if key not in self._impossible:
                some = self._pools.eligible(size)
                self._impossible[key] = "" if some else reasons.impossible(self._views, request)
            if self._impossible[key]:
                return self._impossible[key]
            names = self._near(size)
            if self._looks < len(names):
                return "no room: jobs of more weight come first"
            self._looks -= len(names)
            for name in names:
                draft, node = self._drafts[name], self._nodes.get(name)
                why = self._barred(name, request) or (
                    self._why.on_node(node, draft, request, self._frozen(name))
                    if node
                    else never(draft.view, request)
                )
                found.append(why)
        said = list(dict.fromkeys(filter(None, found)))
        if not all(found) or not said:
            said.append(
                "what could be changed for it costs more than it is worth, or is not enough"
            )
        return "; ".join(said)

    def _near(self, size: Size) -> list[str]:
        """The nodes to look at: all, or the first ones that the job could run on."""
        if len(self._views) <= CLOSE:
            return [v.name for v in self._views]
        able = (
            self._fleet.nodes[at].name
            for pool in self._pools.eligible(size)
            for at in self._pools.nodes[pool]
        )
        return list(itertools.islice(able, LOOKED_AT)) or [self._views[0].name]

    def _wait(self, size: Size, request: JobRequest) -> str:
        """Withhold for the job where it can run first, or fence; why it waits."""
        return self._keep([n for n in self._near(size) if self._may_wait_at(n, request)], request)

    def _keep(self, names: Sequence[str], request: JobRequest) -> str:
        """The same among these nodes, each as patient as its group is."""
        for patience in (Patience.WITHHOLD, Patience.FENCE):
            nearby = {
                n: self._drafts[n]
                for n in names
                if self._patience(n, request) is patience and not self._barred(n, request)
            }
            waits = planner.wait_for(nearby, replace(request, patience=patience), self._fences)
            if waits:
                self._drafts.update(nearby)
                return waits
        return ""

    def _patience(self, name: str, request: JobRequest) -> Patience:
        own = self._rules.patience.get(name)
        if own is None or request.unserved_s < 0:
            return request.patience
        return withhold.patience(request.unserved_s, *own)

    def _barred(self, name: str, request: JobRequest) -> str:
        """Why the job may cause no change on the node, where its group says so."""
        users, partitions = self._rules.barred.get(name, ((), ()))
        if request.user in users:
            return f"{name}: policy: jobs of user {request.user} cause no reshape"
        if request.partition in partitions:
            return f"{name}: policy: jobs of partition {request.partition} cause no reshape"
        return ""

    def _apart(self, units: Sequence[Unit]) -> list[Unit]:
        """The units without the nodes on which they may cause no change."""
        if not self._rules.barred:
            return list(units)
        requests = [
            replace(
                r,
                tasks=1,
                excluded_nodes=r.excluded_nodes
                | {name for name in self._rules.barred if self._barred(name, r)},
            )
            for unit in units
            for r in unit.requests
        ]
        again = units_of(requests, self._fleet, self._rules.weights)
        values = {id(unit): value.value for unit, value in zip(again, units, strict=True)}
        return [replace(unit, value=values[id(unit)]) for unit in again]

    def _refuse(self, unit: Unit, reason: str) -> None:
        for request in unit.requests:
            refusal = Refusal(request.job_id, reason, request.label)
            self._refusals.setdefault(request.job_id, refusal)

    def _to_baseline(self) -> None:
        """Give idle GPUs their baseline back, if nothing else is to be done on their node."""
        for node in self._fleet.nodes:
            draft = self._drafts[node.name]
            if not draft.untouched or draft.view.withheld or node.frozen:
                continue
            baseline = self._baselines.get(node.name, {})
            for mine in node.drafts:
                idle = mine.gpu.mig and not mine.fixed & ~mine.foreign and not mine.frozen
                wanted = baseline.get(mine.gpu.index)
                if idle and wanted and (node.name, mine.gpu.index) in self._rules.to_baseline:
                    self._back(node, draft, mine.gpu, wanted)

    def _back(self, node: Node, draft: NodeDraft, gpu: Gpu, wanted: Layout) -> None:
        """One GPU's baseline, where slots and limits allow it."""
        wanted = gpu.foreign | geometry.fill(gpu, gpu.foreign, wanted)
        trial = draft.copy()
        trial.destroyed |= {(gpu.index, p) for p in gpu.layout - wanted}
        trial.created |= {(gpu.index, p) for p in wanted - gpu.layout}
        use = []
        if node.budget:
            created = Counter(p.profile for p in wanted - gpu.layout)
            use = node.budget.use_of(created, Counter(p.profile for p in gpu.layout - wanted))
            if not node.budget.allows(use):
                return
        try:
            trial.arranged()
        except ArrangementError:
            return
        draft.take(trial)
        if node.budget:
            node.budget.spend(use)

    def _change(self, name: str) -> NodeChange | None:
        draft = self._drafts[name]
        if name in self._fences:
            return self._fences[name]
        if draft.untouched and not draft.view.withheld:
            return None
        return planner.change_of(draft)
