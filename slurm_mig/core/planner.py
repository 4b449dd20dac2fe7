"""From demand to target layouts: the first planner, greedy in Slurm's own order.

For each waiting job, highest priority first: can it start on what is there? Else, on which node
does the fewest idle instances' sacrifice let it start, with every busy device at its index? Else,
where will room be first, and what idle is to be withheld there until then? What a higher job was
promised is not taken by a lower one. Pure: the same views give the same plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from slurm_mig.core import conditions, geometry, withhold
from slurm_mig.core.changes import GpuChange, NodeChange, Plan, Refusal
from slurm_mig.core.draft import NodeDraft, not_now
from slurm_mig.core.model import (
    Gpu,
    JobRequest,
    Layout,
    NodeCondition,
    NodeView,
    Patience,
    Place,
    Placement,
    Withholding,
    is_filler,
)
from slurm_mig.core.withhold import Kept, Price
from slurm_mig.errors import ArrangementError


def plan(
    views: Sequence[NodeView],
    requests: Iterable[JobRequest],
    baselines: Mapping[str, Mapping[int, Layout]] | None = None,
) -> Plan:
    """Choose target layouts for the nodes so that waiting jobs can start.

    `requests` are in the order in which Slurm would start them (`demand.waiting`); `baselines`
    gives, per node and GPU index, the layout whose placements fill room that no job asked for.
    """
    drafts = {v.name: NodeDraft.of(v, (baselines or {}).get(v.name, {})) for v in views}
    startable: list[int] = []
    refusals: list[Refusal] = []
    fences: dict[str, NodeChange] = {}
    for request in requests:
        limit = sum(len(v.slots) for v in views)
        for _ in range(min(request.tasks, limit)):
            if _start_as_is(drafts, request):
                startable.append(request.job_id)
            elif (reason := reshape_for(drafts, request)) is not None:
                kept = wait_for(drafts, request, fences)
                said = f"{reason}; {kept.sentence}" if kept else reason
                refusals.append(Refusal(request.job_id, said, request.label))
                break
    changes = [
        change for name, draft in drafts.items() if (change := fences.get(name) or change_of(draft))
    ]
    return Plan(tuple(changes), tuple(refusals), tuple(dict.fromkeys(startable)))


def _start_as_is(drafts: dict[str, NodeDraft], request: JobRequest) -> bool:
    """Claim what is free now, or already promised, if the job fits on it."""
    chosen: list[str] = []
    for name, draft in drafts.items():
        if len(chosen) == request.nodes:
            break
        if not not_now(draft, request) and not draft.missing(request):
            chosen.append(name)
    if len(chosen) < request.nodes:
        return False
    for name in chosen:
        drafts[name].claim(request)
    return True


def reshape_for(drafts: dict[str, NodeDraft], request: JobRequest) -> str | None:
    """Promise a reshape that lets the job start; otherwise the reason why not."""
    impossible = _impossible(drafts.values(), request)
    if impossible:
        return impossible
    reasons: list[str] = []
    options: list[tuple[int, str, NodeDraft]] = []
    for name, draft in drafts.items():
        if reason := not_now(draft, request):
            reasons.append(reason)
            continue
        try:
            changed = _reshaped(draft, request)
        except ArrangementError as error:
            reasons.append(f"{name}: {error}")
            continue
        options.append((len(changed.destroyed) - len(draft.destroyed), name, changed))
    if len(options) < request.nodes:
        return "; ".join(dict.fromkeys(reasons)) or "too few nodes"
    for _, name, changed in sorted(options, key=lambda o: o[:2])[: request.nodes]:
        changed.claim(request)
        drafts[name] = changed
    return None


def _impossible(drafts: Iterable[NodeDraft], request: JobRequest) -> str:
    """Says so when no GPU of the job's partition can ever have what it asks for."""
    reachable = [d for d in drafts if conditions.shared(d.view.slurm, request)]
    for gres_type in request.gpus:
        known = {
            p.name for d in reachable for g in d.view.gpus for p in g.profiles if d.may_be_cut(g)
        }
        known |= {t for d in reachable for t in d.view.whole_types.values()}
        known |= {t for d in reachable for t in d.view.possible}
        known |= {d.type for r in reachable for d in r.view.slots if not is_filler(d.type)}
        if gres_type not in known:
            return (
                f"no managed GPU of partition {request.partition} can ever be {gres_type!r}; "
                f"possible: {', '.join(sorted(known)) or 'none'}"
            )
    return ""


def wait_for(
    drafts: dict[str, NodeDraft],
    request: JobRequest,
    fences: dict[str, NodeChange],
    price: Price = withhold.FREE,
) -> Kept | None:
    """Withhold what is idle, or wait behind a fence, where that costs least; None where nothing
    can be done."""
    if request.patience is Patience.NONE:
        return None
    goals = withhold.goals(drafts, request, price)
    if len(goals) < request.nodes:
        return None
    chosen = goals[: request.nodes]
    said = "; ".join(goal.sentence for goal in chosen)
    if request.patience is Patience.FENCE:
        for goal in chosen:
            if drafts[goal.node].untouched:
                fences[goal.node] = withhold.fence(goal, request)
        return Kept(said)
    slices, cost = sum(goal.withheld for goal in chosen), sum(goal.cost for goal in chosen)
    if cost > price.worth and not all(goal.begun for goal in chosen):
        minutes = max(goal.minutes for goal in chosen)
        return Kept(f"{slices} compute slice(s) idle for {minutes} min, to keep room for it, would "
                    "cost more than it is worth", held=False)  # fmt: skip
    drafts.update({goal.node: goal.draft for goal in chosen})
    return Kept(said, slices, cost)


def _reshaped(draft: NodeDraft, request: JobRequest) -> NodeDraft:
    """A copy of the draft in which the missing instances exist.

    Raises ArrangementError when something busy or a hull is in the way.
    """
    changed = draft.copy()
    for gres_type, missing in draft.missing(request).items():
        for _ in range(missing):
            _add_one(changed, gres_type, request.gpus.get(gres_type, 0))
    return changed


def _add_one(draft: NodeDraft, gres_type: str, wanted: int) -> None:
    """Create one device where it costs least. Raises ArrangementError.

    The devices that the job will take besides are kept: they are the first free ones.
    """
    protected = set(draft.free(gres_type)[:wanted])
    ways = [*_ways(draft, gres_type, protected), *_whole_ways(draft, gres_type)]
    hindrance: ArrangementError | None = None
    for _, gpu, added in sorted(ways, key=lambda way: way[0]):
        trial = draft.copy()
        if added:
            _cut(trial, gpu, added, protected)
        else:
            _make_whole(trial, gpu)
        try:
            trial.arranged()
        except ArrangementError as error:
            hindrance = hindrance or error
            continue
        draft.take(trial)
        return
    raise hindrance or ArrangementError(_in_the_way(draft, gres_type))


def _ways(
    draft: NodeDraft, gres_type: str, protected: set[Place]
) -> Iterator[tuple[tuple[int, int, int], Gpu, Layout]]:
    """Placements for one more instance, the cheapest first. A mode change comes after all else."""
    for gpu in draft.view.gpus:
        switch = not draft.mig(gpu)
        if switch and not draft.may_switch(gpu):
            continue
        fixed = draft.fixed(gpu) | {p for g, p in protected if g == gpu.index and p is not None}
        offered = draft.target(gpu) - {p for g, p in draft.withheld if g == gpu.index}
        for added in geometry.ways_to_add(gpu, fixed, {gres_type: 1}):
            if added <= offered:
                continue
            lost = sum(p.overlaps(a) for p in offered for a in added)
            start = min(p.start for p in added)
            # GPUs to keep stand at low indexes, GPUs to give up at high ones: from the end.
            yield (lost + switch * SWITCH_COST, -gpu.index, start), gpu, added


SWITCH_COST = 8
"""A change of the MIG mode weighs as much as a GPU full of instances, and one more."""


def _whole_ways(
    draft: NodeDraft, gres_type: str
) -> Iterator[tuple[tuple[int, int, int], Gpu, Layout]]:
    """GPUs that could become whole ones of this type."""
    for gpu in draft.view.gpus:
        if (
            draft.mig(gpu)
            and draft.view.whole_types.get(gpu.index) == gres_type
            and draft.may_switch(gpu)
        ):
            yield (SWITCH_COST + len(draft.target(gpu)), -gpu.index, 0), gpu, frozenset()


def _cut(draft: NodeDraft, gpu: Gpu, added: Layout, protected: set[Place]) -> None:
    """The GPU gets these placements; what is idle and in the way goes."""
    target = draft.target(gpu)
    keep = {p for p in target - added if geometry.fits(gpu, (p, *added))}
    gone = _least_sacrifice(gpu, target - added, added, keep, draft, protected)
    draft.created -= {(gpu.index, p) for p in gone}
    draft.destroyed |= {(gpu.index, p) for p in gone if p in gpu.layout}
    draft.created |= {(gpu.index, p) for p in added if p not in gpu.layout}
    draft.destroyed -= {(gpu.index, p) for p in added}
    draft.withheld -= {(gpu.index, p) for p in added | gone}
    draft.set_mode(gpu, mig=True)


def _make_whole(draft: NodeDraft, gpu: Gpu) -> None:
    """The GPU, all of it idle, becomes one device."""
    draft.created -= {(gpu.index, p) for p in draft.target(gpu)}
    draft.destroyed |= {(gpu.index, p) for p in gpu.layout}
    draft.withheld -= {(gpu.index, p) for p in gpu.layout}
    draft.set_mode(gpu, mig=False)


def _least_sacrifice(
    gpu: Gpu,
    target: Layout,
    added: Layout,
    keep: set[Placement],
    draft: NodeDraft,
    protected: set[Place],
) -> set[Placement]:
    """Which idle placements go: those that overlap, then what exceeds the compute slices."""
    fixed = draft.fixed(gpu) | {p for p in target if (gpu.index, p) in protected}
    staying = list(fixed - added)
    for placement in sorted(keep - fixed, key=lambda p: (p.size, p.start)):
        if geometry.fits(gpu, (*staying, placement, *added)):
            staying.append(placement)
    return set(target) - set(staying)


def _in_the_way(draft: NodeDraft, gres_type: str) -> str:
    """Names the jobs or processes that hold every place for the type on the node."""
    able = {g.index for g in draft.view.gpus if draft.mig(g) and g.profile(gres_type)}
    able |= {g for g, kind in draft.view.whole_types.items() if kind == gres_type}
    if not able:
        return f"no GPU can be cut into {gres_type}"
    holders = Counter(
        f"job {a.job_id}"
        for a in draft.view.slurm.allocations
        for i in a.indexes
        if i < len(draft.view.slots) and draft.view.slots[i].gpu in able
    )
    pids = sorted(
        pid for g in draft.view.gpus if g.index in able for i in g.instances for pid in i.pids
    )
    others = ", ".join(sorted(holders, key=lambda h: int(h.split()[1])))
    if not others and pids:
        others = f"processes {', '.join(map(str, pids))}"
    return f"no room for {gres_type}: in use by {others or 'waiting jobs of higher priority'}"


def change_of(draft: NodeDraft) -> NodeChange | None:
    """The node's change with leftover room filled from its baseline, or None.

    What was withheld for a job that needs it no longer is offered again, once the node may be
    touched: while it may not, nobody has a goal there, and that says nothing about the need.
    """
    if draft.view.condition is not NodeCondition.USABLE:
        return None
    wanted = draft.copy()
    wanted.withheld = {(g, p) for g, p in draft.promised if (g, p) not in draft.destroyed}
    if wanted.untouched:
        return None
    for attempt in (_filled(wanted), wanted, draft):
        try:
            arranged = attempt.arranged()
        except ArrangementError:
            continue
        return NodeChange(
            draft.view.name,
            tuple(_gpu_changes(attempt)),
            arranged,
            tuple(dict.fromkeys(attempt.serves)),
            tuple(_withholdings(attempt)),
        )
    return None


def _filled(draft: NodeDraft) -> NodeDraft:
    filled = draft.copy()
    for gpu in draft.view.gpus:
        if any(g == gpu.index for g, _ in draft.created):
            wanted = draft.baseline.get(gpu.index, gpu.layout)
            new = geometry.fill(gpu, filled.target(gpu), wanted)
            filled.created |= {(gpu.index, p) for p in new if p not in gpu.layout}
            filled.destroyed -= {(gpu.index, p) for p in new}
    return filled


def _gpu_changes(draft: NodeDraft) -> Iterator[GpuChange]:
    for gpu in draft.view.gpus:
        target = draft.target(gpu)
        if target != gpu.layout or draft.mig(gpu) != gpu.mig:
            yield GpuChange(
                gpu.index,
                tuple(sorted(gpu.layout & target)),
                tuple(sorted(gpu.layout - target)),
                tuple(sorted(target - gpu.layout)),
                draft.mig(gpu),
            )


def _withholdings(draft: NodeDraft) -> Iterator[Withholding]:
    """What stays withheld, by GPU, with those for whom it is."""
    for gpu in draft.view.gpus:
        here = frozenset(p for g, p in draft.withheld if g == gpu.index)
        if here:
            known = [w for w in (*draft.goals, *draft.view.withheld) if w.gpu == gpu.index]
            jobs = tuple(
                dict.fromkeys(j for w in draft.goals if w.gpu == gpu.index for j in w.jobs)
            )
            since = min((w.since for w in known if w.since), default=0.0)
            yield Withholding(gpu.index, here, jobs or known[0].jobs, since)
