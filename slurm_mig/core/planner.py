"""From demand to target layouts: the first planner, greedy in Slurm's own order.

For each waiting job, highest priority first: can it start on what is there? Else, on which node
does the fewest idle instances' sacrifice let it start, with every busy device at its index? What a
higher job was promised is not taken by a lower one. Pure: the same views give the same plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from slurm_mig.core import conditions, geometry, slots
from slurm_mig.core.model import (
    Device,
    Gpu,
    GpuChange,
    JobRequest,
    Layout,
    NodeChange,
    NodeCondition,
    NodeView,
    Place,
    Placement,
    Plan,
    Refusal,
    is_filler,
)
from slurm_mig.errors import ArrangementError


@dataclass
class _NodeDraft:
    """What the plan has promised on one node so far.

    Invariant: `claimed` and the busy places are never destroyed, and `arranged()` succeeds.
    """

    view: NodeView
    baseline: Mapping[int, Layout]
    cpus: int
    memory_mib: int
    claimed: set[Place] = field(default_factory=set)
    created: set[tuple[int, Placement]] = field(default_factory=set)
    destroyed: set[tuple[int, Placement]] = field(default_factory=set)
    serves: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, view: NodeView, baseline: Mapping[int, Layout]) -> _NodeDraft:
        free_mib = view.slurm.memory_mib - view.slurm.memory_alloc_mib
        return cls(view, baseline, view.slurm.cpus - view.slurm.cpus_alloc, free_mib)

    def copy(self) -> _NodeDraft:
        return _NodeDraft(
            self.view,
            self.baseline,
            self.cpus,
            self.memory_mib,
            set(self.claimed),
            set(self.created),
            set(self.destroyed),
            list(self.serves),
        )

    @property
    def busy_places(self) -> frozenset[Place]:
        return frozenset(self.view.slots[i].key for i in self.view.busy if i < len(self.view.slots))

    def free(self, gres_type: str) -> list[Place]:
        """Idle, unclaimed devices of a type: what is there, then what the plan creates."""
        taken = self.busy_places | self.claimed
        now = [
            d.key
            for d in self.view.slots
            if d.type == gres_type and d.key not in taken and d.key not in self.destroyed
        ]
        soon = [
            (g, p)
            for g, p in sorted(self.created)
            if p.profile == gres_type and (g, p) not in taken
        ]
        return [*now, *soon]

    def target(self, gpu: Gpu) -> Layout:
        gone = {p for g, p in self.destroyed if g == gpu.index}
        new = {p for g, p in self.created if g == gpu.index}
        return frozenset((gpu.layout - gone) | new)

    def fixed(self, gpu: Gpu) -> Layout:
        """Placements of the GPU that nothing may destroy."""
        keep = self.busy_places | self.claimed
        return frozenset(p for p in self.target(gpu) if (gpu.index, p) in keep)

    def arranged(self) -> tuple[Device, ...]:
        """The node's slots after the change, guard left out. Raises ArrangementError."""
        total = len(self.view.slots) - 1
        busy = {i: self.view.slots[i] for i in self.view.busy if i < total}
        return slots.arrange(total, busy, self._free_devices({d.key for d in busy.values()}))

    def _free_devices(self, busy: set[Place]) -> Iterator[Device]:
        for gpu in self.view.gpus:
            if not gpu.mig:
                yield from (
                    d
                    for d in self.view.slots
                    if not is_filler(d.type) and d.gpu == gpu.index and d.key not in busy
                )
            for placement in sorted(self.target(gpu)) if gpu.mig else ():
                if (gpu.index, placement) not in busy:
                    yield slots.planned_device(gpu.index, placement)


def plan(
    views: Sequence[NodeView],
    requests: Iterable[JobRequest],
    baselines: Mapping[str, Mapping[int, Layout]] | None = None,
) -> Plan:
    """Choose target layouts for the nodes so that waiting jobs can start.

    `requests` are in the order in which Slurm would start them (`demand.waiting`); `baselines`
    gives, per node and GPU index, the layout whose placements fill room that no job asked for.
    """
    drafts = {v.name: _NodeDraft.of(v, (baselines or {}).get(v.name, {})) for v in views}
    startable: list[int] = []
    refusals: list[Refusal] = []
    for request in requests:
        limit = sum(len(v.slots) for v in views)
        for _ in range(min(request.tasks, limit)):
            if _start_as_is(drafts, request):
                startable.append(request.job_id)
            elif (reason := _reshape_for(drafts, request)) is not None:
                refusals.append(Refusal(request.job_id, reason, request.label))
                break
    changes = [change for draft in drafts.values() if (change := _change(draft))]
    return Plan(tuple(changes), tuple(refusals), tuple(dict.fromkeys(startable)))


def _start_as_is(drafts: dict[str, _NodeDraft], request: JobRequest) -> bool:
    """Claim what is free now, or already promised, if the job fits on it."""
    chosen: list[str] = []
    for name, draft in drafts.items():
        if len(chosen) == request.nodes:
            break
        if not _mismatch(draft, request) and not _missing(draft, request):
            chosen.append(name)
    if len(chosen) < request.nodes:
        return False
    for name in chosen:
        _claim(drafts[name], request)
    return True


def _missing(draft: _NodeDraft, request: JobRequest) -> dict[str, int]:
    wanted = {t: n - len(draft.free(t)) for t, n in request.gpus.items()}
    return {t: n for t, n in wanted.items() if n > 0}


def _claim(draft: _NodeDraft, request: JobRequest) -> None:
    promised = False
    for gres_type, count in request.gpus.items():
        places = draft.free(gres_type)[:count]
        draft.claimed.update(places)
        promised = promised or any(place in draft.created for place in places)
    draft.cpus -= draft.cpus if request.exclusive else request.cpus
    draft.memory_mib -= request.memory_mib
    if promised:
        draft.serves.append(request.job_id)


def _mismatch(draft: _NodeDraft, request: JobRequest) -> str:
    """Why the job can never or not now run on the node, apart from its gpus; empty if it can."""
    node = draft.view.slurm
    if request.partition not in node.partitions:
        return f"{node.name} is not in partition {request.partition}"
    if request.required_nodes and node.name not in request.required_nodes:
        return f"the job asks for other nodes than {node.name}"
    if node.name in request.excluded_nodes:
        return f"the job excludes {node.name}"
    if request.features and not any(wanted <= node.features for wanted in request.features):
        wanted = " or ".join("&".join(sorted(f)) for f in request.features)
        return f"{node.name} lacks the job's constraint {wanted}"
    if draft.view.condition is not NodeCondition.USABLE:
        return f"{node.name}: {draft.view.note or draft.view.condition.value}"
    if reason := conditions.barred(node, request):
        return reason
    if request.cpus > draft.cpus:
        return f"{node.name} has {max(draft.cpus, 0)} CPUs free, the job needs {request.cpus}"
    if request.memory_mib > draft.memory_mib:
        return (
            f"{node.name} has {max(draft.memory_mib, 0)} MiB of memory free, "
            f"the job needs {request.memory_mib}"
        )
    return ""


def _reshape_for(drafts: dict[str, _NodeDraft], request: JobRequest) -> str | None:
    """Promise a reshape that lets the job start; otherwise the reason why not."""
    impossible = _impossible(drafts.values(), request)
    if impossible:
        return impossible
    reasons: list[str] = []
    options: list[tuple[int, str, _NodeDraft]] = []
    for name, draft in drafts.items():
        if reason := _mismatch(draft, request):
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
        _claim(changed, request)
        drafts[name] = changed
    return None


def _impossible(drafts: Iterable[_NodeDraft], request: JobRequest) -> str:
    """Says so when no GPU of the job's partition can ever have what it asks for."""
    reachable = [d for d in drafts if request.partition in d.view.slurm.partitions]
    for gres_type in request.gpus:
        known = {p.name for d in reachable for g in d.view.gpus for p in g.profiles if g.mig}
        known |= {t for d in reachable for t in d.view.possible}
        known |= {d.type for r in reachable for d in r.view.slots if not is_filler(d.type)}
        if gres_type not in known:
            return (
                f"no managed GPU of partition {request.partition} can ever be {gres_type!r}; "
                f"possible: {', '.join(sorted(known)) or 'none'}"
            )
    return ""


def _reshaped(draft: _NodeDraft, request: JobRequest) -> _NodeDraft:
    """A copy of the draft in which the missing instances exist.

    Raises ArrangementError when something busy or a hull is in the way.
    """
    changed = draft.copy()
    for gres_type, missing in _missing(draft, request).items():
        for _ in range(missing):
            _add_one(changed, gres_type, request.gpus.get(gres_type, 0))
    return changed


def _add_one(draft: _NodeDraft, gres_type: str, wanted: int) -> None:
    """Create one instance where it costs least. Raises ArrangementError.

    The devices that the job will take besides are kept: they are the first free ones.
    """
    protected = set(draft.free(gres_type)[:wanted])
    hindrance: ArrangementError | None = None
    for _, gpu, added in sorted(_ways(draft, gres_type, protected), key=lambda way: way[0]):
        trial = draft.copy()
        target = trial.target(gpu)
        keep = {p for p in target if geometry.fits(gpu, (p, *added))}
        gone = _least_sacrifice(gpu, target, added, keep, trial, protected)
        trial.created -= {(gpu.index, p) for p in gone}
        trial.destroyed |= {(gpu.index, p) for p in gone if p in gpu.layout}
        trial.created |= {(gpu.index, p) for p in added if p not in gpu.layout}
        trial.destroyed -= {(gpu.index, p) for p in added}
        try:
            trial.arranged()
        except ArrangementError as error:
            hindrance = hindrance or error
            continue
        draft.created, draft.destroyed = trial.created, trial.destroyed
        return
    raise hindrance or ArrangementError(_in_the_way(draft, gres_type))


def _ways(
    draft: _NodeDraft, gres_type: str, protected: set[Place]
) -> Iterator[tuple[tuple[int, int, int], Gpu, Layout]]:
    for gpu in draft.view.gpus:
        if not gpu.mig:
            continue
        fixed = draft.fixed(gpu) | {p for g, p in protected if g == gpu.index and p is not None}
        for added in geometry.ways_to_add(gpu, fixed, {gres_type: 1}):
            if added <= draft.target(gpu):
                continue
            lost = sum(p.overlaps(a) for p in draft.target(gpu) for a in added)
            start = min(p.start for p in added)
            # GPUs to keep stand at low indexes, GPUs to give up at high ones: from the end.
            yield (lost, -gpu.index, start), gpu, added


def _least_sacrifice(
    gpu: Gpu,
    target: Layout,
    added: Layout,
    keep: set[Placement],
    draft: _NodeDraft,
    protected: set[Place],
) -> set[Placement]:
    """Which idle placements go: those that overlap, then what exceeds the compute slices."""
    fixed = draft.fixed(gpu) | {p for p in target if (gpu.index, p) in protected}
    staying = list(fixed)
    for placement in sorted(keep - fixed, key=lambda p: (p.size, p.start)):
        if geometry.fits(gpu, (*staying, placement, *added)):
            staying.append(placement)
    return set(target) - set(staying)


def _in_the_way(draft: _NodeDraft, gres_type: str) -> str:
    """Names the jobs or processes that hold every place for the type on the node."""
    able = {g.index for g in draft.view.gpus if g.mig and g.profile(gres_type)}
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


def _change(draft: _NodeDraft) -> NodeChange | None:
    """The node's change with leftover room filled from its baseline, or None."""
    if not draft.created and not draft.destroyed:
        return None
    filled = draft.copy()
    for gpu in draft.view.gpus:
        if any(g == gpu.index for g, _ in draft.created):
            wanted = draft.baseline.get(gpu.index, gpu.layout)
            new = geometry.fill(gpu, filled.target(gpu), wanted)
            filled.created |= {(gpu.index, p) for p in new if p not in gpu.layout}
            filled.destroyed -= {(gpu.index, p) for p in new}
    try:
        arranged = filled.arranged()
    except ArrangementError:
        filled, arranged = draft, draft.arranged()
    gpus = tuple(
        GpuChange(
            gpu.index,
            tuple(sorted(gpu.layout & filled.target(gpu))),
            tuple(sorted(gpu.layout - filled.target(gpu))),
            tuple(sorted(filled.target(gpu) - gpu.layout)),
        )
        for gpu in draft.view.gpus
        if gpu.mig and filled.target(gpu) != gpu.layout
    )
    return NodeChange(draft.view.name, gpus, arranged, tuple(dict.fromkeys(filled.serves)))
