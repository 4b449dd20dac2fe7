"""What a plan has promised on one node so far, and what still fits beside it.

Used by the planner while it goes through the waiting jobs; pure values, copied to try things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from slurm_mig.core import conditions, slots
from slurm_mig.core.model import (
    Allocation,
    Device,
    Gpu,
    JobRequest,
    Layout,
    NodeCondition,
    NodeView,
    Place,
    Placement,
    Withholding,
    is_filler,
)


@dataclass
class NodeDraft:
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
    withheld: set[tuple[int, Placement]] = field(default_factory=set)
    """Idle instances that are there and not offered."""
    goals: list[Withholding] = field(default_factory=list)
    """For whom instances stay withheld or come to be."""
    splits: dict[tuple[int, Placement], tuple[int, ...]] = field(default_factory=dict)
    """Compute instances that GPU instances get; only an administrator asks for them."""
    modes: dict[int, bool] = field(default_factory=dict)
    """GPUs whose MIG mode the plan changes."""
    serves: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, view: NodeView, baseline: Mapping[int, Layout]) -> NodeDraft:
        free_mib = view.slurm.memory_mib - view.slurm.memory_alloc_mib
        draft = cls(view, baseline, view.slurm.cpus - view.slurm.cpus_alloc, free_mib)
        draft.withheld = {(w.gpu, p) for w in view.withheld for p in w.placements}
        return draft

    def copy(self) -> NodeDraft:
        return replace(
            self,
            claimed=set(self.claimed),
            created=set(self.created),
            destroyed=set(self.destroyed),
            withheld=set(self.withheld),
            goals=list(self.goals),
            splits=dict(self.splits),
            modes=dict(self.modes),
            serves=list(self.serves),
        )

    @property
    def busy_places(self) -> frozenset[Place]:
        """Devices that are used, and the GPU instances that they are parts of."""
        used = [self.view.slots[i] for i in self.view.busy if i < len(self.view.slots)]
        return frozenset(place for device in used for place in (device.key, device.home))

    @property
    def promised(self) -> frozenset[tuple[int, Placement]]:
        """Withheld for a waiting job."""
        return frozenset((g.gpu, p) for g in self.goals for p in g.placements)

    def mig(self, gpu: Gpu) -> bool:
        return self.modes.get(gpu.index, gpu.mig)

    def free(self, gres_type: str) -> list[Place]:
        """Idle, unclaimed devices of a type: what is offered now, then what the plan adds."""
        taken = self.busy_places | self.claimed
        now = [
            d.key
            for d in self.view.slots
            if d.type == gres_type
            and d.key not in taken
            and d.home not in self.destroyed
            and d.key not in self.withheld
            and (d.placement is not None or not self.modes.get(d.gpu, False))
        ]
        soon: list[Place] = [p for p in self._added(gres_type) if p not in taken]
        return [*now, *soon]

    def _added(self, gres_type: str) -> Iterator[Place]:
        yield from ((g, p) for g, p in sorted(self.created) if p.profile == gres_type)
        before = {(w.gpu, p) for w in self.view.withheld for p in w.placements}
        again = before - self.withheld - self.destroyed
        yield from ((g, p) for g, p in sorted(again) if p.profile == gres_type)
        for gpu, mig in sorted(self.modes.items()):
            if not mig and self.view.whole_types[gpu] == gres_type:
                yield (gpu, None)

    def target(self, gpu: Gpu) -> Layout:
        gone = {p for g, p in self.destroyed if g == gpu.index}
        new = {p for g, p in self.created if g == gpu.index}
        return frozenset((gpu.layout - gone) | new)

    def fixed(self, gpu: Gpu) -> Layout:
        """Placements of the GPU that no plan may destroy. Split instances are among them: an
        administrator made them, and only he undoes them."""
        keep = self.busy_places | self.claimed | self.promised
        return gpu.foreign | {
            p for p in self.target(gpu) if (gpu.index, p) in keep or p in gpu.split
        }

    def may_be_cut(self, gpu: Gpu) -> bool:
        """The GPU has instances, or can have them some time."""
        return gpu.mig or gpu.index in self.view.switchable

    def may_switch(self, gpu: Gpu) -> bool:
        """Nothing on the GPU is used, claimed or promised, and the site lets its mode change."""
        used = self.busy_places | self.claimed | self.promised
        idle = not (gpu.pids or gpu.foreign or gpu.split)
        idle = idle and all(g != gpu.index for g, _ in used)
        return idle and gpu.index in self.view.switchable

    def set_mode(self, gpu: Gpu, *, mig: bool) -> None:
        if mig != gpu.mig:
            self.modes[gpu.index] = mig
        else:
            self.modes.pop(gpu.index, None)

    @property
    def untouched(self) -> bool:
        """The node stays as it is."""
        before = {(w.gpu, p) for w in self.view.withheld for p in w.placements}
        return not (self.created or self.destroyed or self.modes) and self.withheld == before

    def take(self, other: NodeDraft) -> None:
        """Go on from a copy that turned out well."""
        self.created, self.destroyed = other.created, other.destroyed
        self.withheld, self.modes = other.withheld, other.modes

    def arranged(self) -> tuple[Device, ...]:
        """The node's slots after the change, guard left out. Raises ArrangementError."""
        busy = {i: self.view.slots[i] for i in self.view.busy if i < len(self.view.slots) - 1}
        free = self._free_devices({d.key for d in busy.values()})
        if not self.view.slotted:
            # Whoever has gpus now has ended by then.
            return slots.in_a_row(free, busy.values())
        return slots.arrange(self.view.room, busy, free)

    def _free_devices(self, busy: set[Place]) -> Iterator[Device]:
        for gpu in self.view.gpus:
            if not self.mig(gpu):
                if (gpu.index, None) not in busy:
                    yield self._whole(gpu)
                continue
            parted = bool(self.splits or gpu.split)
            for placement in sorted(self.target(gpu) - gpu.foreign):
                if (gpu.index, placement) in self.withheld:
                    continue
                if parted:
                    yield from self._offered(gpu, placement, busy)
                elif (gpu.index, placement) not in busy:
                    yield slots.planned_device(gpu.index, placement)

    def _offered(self, gpu: Gpu, placement: Placement, busy: set[Place]) -> Iterator[Device]:
        """The devices of a GPU instance but the busy ones, where some have parts."""
        instance = next((i for i in gpu.instances if i.placement == placement), None)
        split = self.splits.get((gpu.index, placement))
        if split is not None or instance is None:
            instance = slots.planned_instance(placement, split or ())
        for device in slots.instance_devices(gpu.index, instance):
            if device.key not in busy and device.placement:
                yield slots.planned_device(gpu.index, device.placement)

    def _whole(self, gpu: Gpu) -> Device:
        there = (d for d in self.view.slots if d.key == (gpu.index, None))
        kind = self.view.whole_types.get(gpu.index, "")
        return next((d for d in there if not is_filler(d.type)), Device(kind, gpu=gpu.index))

    def missing(self, request: JobRequest) -> dict[str, int]:
        """What the job lacks here, by type."""
        wanted = {t: n - len(self.free(t)) for t, n in request.gpus.items()}
        return {t: n for t, n in wanted.items() if n > 0}

    def claim(self, request: JobRequest) -> None:
        """The job gets its devices; if some are only planned, the change serves it."""
        planned = False
        for gres_type, count in request.gpus.items():
            places = self.free(gres_type)[:count]
            self.claimed.update(places)
            added = set(self._added(gres_type))
            planned = planned or any(place in added for place in places)
        self.cpus -= self.cpus if request.exclusive else request.cpus
        self.memory_mib -= request.memory_mib
        if planned:
            self.serves.append(request.job_id)

    def holders(self, gpu: Gpu) -> dict[Placement, Allocation]:
        """Which job has each busy instance of the GPU."""
        return {
            device.placement.whole: allocation
            for allocation in self.view.slurm.allocations
            for index in allocation.indexes
            if index < len(self.view.slots)
            and (device := self.view.slots[index]).gpu == gpu.index
            and device.placement is not None
        }


def never(node: NodeView, request: JobRequest) -> str:
    """Why the job cannot run on the node, however its GPUs are cut; empty if it can."""
    slurm = node.slurm
    if not conditions.shared(slurm, request):
        return f"{slurm.name} is not in partition {request.partition}"
    if request.required_nodes and slurm.name not in request.required_nodes:
        return f"the job asks for other nodes than {slurm.name}"
    if slurm.name in request.excluded_nodes:
        return f"the job excludes {slurm.name}"
    if request.features and not any(wanted <= slurm.features for wanted in request.features):
        wanted = " or ".join("&".join(sorted(f)) for f in request.features)
        return f"{slurm.name} lacks the job's constraint {wanted}"
    if node.condition is not NodeCondition.USABLE:
        return f"{slurm.name}: {node.note or node.condition.value}"
    return conditions.barred(slurm, request) or _too_small(
        slurm.name, slurm.cpus, slurm.memory_mib, request, ""
    )


def not_now(draft: NodeDraft, request: JobRequest) -> str:
    """Why the job cannot start on the node now, apart from its gpus; empty if it can."""
    return never(draft.view, request) or _too_small(
        draft.view.name, draft.cpus, draft.memory_mib, request, " free"
    )


def _too_small(name: str, cpus: int, memory_mib: int, request: JobRequest, what: str) -> str:
    if request.cpus > cpus:
        return f"{name} has {max(cpus, 0)} CPUs{what}, the job needs {request.cpus}"
    if request.memory_mib > memory_mib:
        return (
            f"{name} has {max(memory_mib, 0)} MiB of memory{what}, "
            f"the job needs {request.memory_mib}"
        )
    return ""
