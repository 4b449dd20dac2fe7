"""The planner: from views and waiting jobs to a plan, proven as far as it can be.

Called by the reconciler, by `slurm-mig plan` and by the benchmark, with the same answer for the
same question. In order: what is held for a job that waited already; what starts as it is, now or
soon; the programme over classes for the rest; the second stage on nodes; then, for each job that
gets nothing, why, and what is withheld for it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from slurm_mig.core import conditions, geometry, planner
from slurm_mig.core.changes import NodeChange, Plan, Refusal
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.model import Gpu, JobRequest, Layout, NodeView
from slurm_mig.core.planning import sieve
from slurm_mig.core.planning.best import best
from slurm_mig.core.planning.explaining import Explaining
from slurm_mig.core.planning.filling import fill, waiting_mix
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.keeping import Keeping
from slurm_mig.core.planning.looks import urgency
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.stage import Staged
from slurm_mig.core.planning.units import Pools, Unit, pools_of, slices_of, units_of
from slurm_mig.core.withhold import Kept
from slurm_mig.errors import ArrangementError


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
        counted = {view.name: why for view in views if (why := conditions.counted(view))}
        self._still = {**counted, **rules.frozen}
        """Nodes on which nothing may change now, and why."""
        self._fleet = Fleet(views, baselines, self._still, rules.frozen_gpus, rules.limits)
        self._keeping = Keeping(self._drafts, self._fleet, rules, self._still, now)
        self._order: dict[int, int] = {}
        """Each job's place in the queue."""
        for n, request in enumerate(requests):
            self._order.setdefault(request.job_id, n)
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
        self._keeping.go_on(self._views, self._requests)
        for node in self._fleet.nodes:
            if not self._drafts[node.name].untouched or self._drafts[node.name].goals:
                node.keep(self._drafts[node.name])
        units = self._units()
        pools = pools_of(self._fleet, units)
        places = Places(self._fleet, pools)
        startable = [unit for unit in units if places.place(unit)]
        for node in self._fleet.nodes:
            node.offer_again()
        started = {id(unit) for unit in startable}
        rest = [unit for unit in units if id(unit) not in started]
        demand = sieve.demand(rest, self._fleet, pools, self._rules, self._now, self._refuse)
        if self._rules.apart:
            pools = pools_of(self._fleet, demand)
        staged, quality = best(self._fleet, pools, demand, self._rules)
        self._fill(staged, [*later, *(r for u in units for r in u.requests)], startable)
        for node in staged.fleet.nodes:
            if node.touched:
                node.give(self._drafts[node.name])
        self._release(staged.served)
        kept = self._explain(staged, pools)
        self._to_baseline(staged.fleet)
        changes = [change for v in self._views if (change := self._change(v.name))]
        changes.sort(key=lambda change: urgency(change, self._order))
        return Plan(
            tuple(changes),
            tuple(self._refusals.values()),
            tuple(dict.fromkeys(r.job_id for unit in startable for r in unit.requests)),
            quality=replace(quality, withheld=_withheld(kept)),
        )

    def _units(self) -> list[Unit]:
        most = sum(len(view.slots) for view in self._views)
        wanted = [r for r in self._requests if r.job_id not in self._keeping.given]
        return units_of(wanted, self._fleet, self._rules.weights, most)

    def _fill(
        self, staged: Staged, waiting: Sequence[JobRequest], startable: Sequence[Unit]
    ) -> None:
        """Give room that is left on changed GPUs to what still waits."""
        fleet = staged.fleet
        if not any(d.target for node in fleet.nodes for d in node.drafts):
            return
        mix = waiting_mix({id(r): r for r in waiting}.values())
        for unit in (*staged.served, *startable):
            for request in unit.requests:
                mix.subtract({t: n * request.nodes for t, n in request.gpus.items()})
        wanted = Counter({t: n for t, n in mix.items() if n > 0})
        fill(fleet, wanted, slices_of(fleet), self._rules.only_baseline)

    def _release(self, served: Iterable[Unit]) -> None:
        """What was withheld for a job that is served elsewhere now is free again."""
        done = {unit.job_id for unit in served}
        for draft in self._drafts.values():
            draft.goals = [goal for goal in draft.goals if not done.issuperset(goal.jobs)]

    def _explain(self, staged: Staged, pools: Pools) -> list[Kept]:
        """Say why each job gets nothing, and withhold for it what it may have later; for whom."""
        explaining = Explaining(
            self._views, self._drafts, staged.fleet, pools, self._rules, self._still
        )
        held = self._keeping.held
        served = {unit.job_id for unit in staged.served}
        found = [kept for job, kept in held.items() if job not in served]
        waiting = len(held)
        for unit in sorted(staged.left, key=lambda u: self._order[u.job_id]):
            request = unit.requests[0]
            if request.job_id in self._refusals:
                continue
            why, kept = explaining.why(unit), held.get(request.job_id)
            if not kept and waiting < self._rules.withhold_jobs and not request.het_job:
                near = explaining.near(unit, unit.sizes[0])
                names = [name for name in near if name not in unit.capped]
                kept = self._keeping.wait(names, request, unit.value)
                if kept and kept.held:
                    found.append(kept)
                    waiting += 1
            self._refuse(unit, f"{why}; {kept.sentence}" if kept else why)
        return found

    def _refuse(self, unit: Unit, reason: str) -> None:
        for request in unit.requests:
            refusal = Refusal(request.job_id, reason, request.label)
            self._refusals.setdefault(request.job_id, refusal)

    def _to_baseline(self, fleet: Fleet) -> None:
        """Give idle GPUs their baseline back, if nothing else is to be done on their node."""
        for node in fleet.nodes:
            draft = self._drafts[node.name]
            if not draft.untouched or draft.view.withheld or node.frozen:
                continue
            baseline = self._baselines.get(node.name, {})
            for mine in node.drafts:
                idle = mine.gpu.mig and not mine.fixed & ~mine.foreign and not mine.frozen
                wanted = baseline.get(mine.gpu.index)
                if idle and wanted and (node.name, mine.gpu.index) in self._rules.to_baseline:
                    _back(node, draft, mine.gpu, wanted)

    def _change(self, name: str) -> NodeChange | None:
        draft = self._drafts[name]
        if name in self._keeping.fences:
            return self._keeping.fences[name]
        if draft.untouched and not draft.view.withheld:
            return None
        return planner.change_of(draft)


def _withheld(kept: Sequence[Kept]) -> tuple[tuple[str, int], ...]:
    """What that costs which is withheld, by what is paid for."""
    jobs = [mine for mine in kept if mine.slices]
    slices = sum(mine.slices for mine in jobs)
    words = f"{slices} compute slice(s) withheld for {len(jobs)} job(s)"
    return ((words, sum(mine.cost for mine in jobs)),) if jobs else ()


def _back(node: Node, draft: NodeDraft, gpu: Gpu, wanted: Layout) -> None:
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
