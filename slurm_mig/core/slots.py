"""Which device stands at which GRES index.

Slurm numbers a node's gpu devices by type, in the order of the node's Gres line, so a type is one
contiguous run, and a running job's device must stay at its index. `arrange` finds an order of
types and fillers that respects both, or says which hull forbids it.

Invariant: in every answer each busy index holds the device that it held before, each type is one
run, and the number of slots is the one asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from slurm_mig.core.model import (
    GUARD,
    ZERO,
    ComputeInstance,
    Device,
    Gpu,
    Instance,
    Placement,
    Profile,
    Slots,
    is_filler,
)
from slurm_mig.core.profiles import device_name
from slurm_mig.errors import ArrangementError


@dataclass
class Gap:
    """A stretch of indexes between two hulls: how much stands in it, from left to right."""

    length: int
    left: int = 0
    """Free devices of the type of the hull before it."""
    middle: list[str] = field(default_factory=list)
    """Types without a busy device, whole."""
    taken: int = 0
    """How many devices those are."""
    right: int = 0
    """Free devices of the type of the hull after it."""

    @property
    def room(self) -> int:
        return self.length - self.left - self.taken - self.right


@dataclass(frozen=True)
class Hull:
    """From the lowest to the highest busy index of a type."""

    type: str
    low: int
    high: int
    busy: int
    """How many of the indexes are busy."""

    @property
    def holes(self) -> int:
        return self.high - self.low + 1 - self.busy


def hulls(busy: Mapping[int, Device]) -> list[Hull]:
    """The hulls of the busy types, by index.

    Raises ArrangementError if two overlap, which no published order can have.
    """
    spans: dict[str, list[int]] = defaultdict(list)
    for index, device in busy.items():
        spans[device.type].append(index)
    found = [Hull(t, min(i), max(i), len(i)) for t, i in spans.items()]
    found.sort(key=lambda h: h.low)
    for one, other in pairwise(found):
        if other.low <= one.high:
            raise ArrangementError(
                f"busy {one.type} (indexes {one.low}-{one.high}) and busy {other.type} "
                f"(indexes {other.low}-{other.high}) interleave"
            )
    return found


def arrange(total: int, busy: Mapping[int, Device], free: Iterable[Device]) -> Slots:
    """Order `total` slots: busy devices at their index, the free ones around them, then fillers.

    Fillers have no files yet (`with_files` gives them theirs). Raises ArrangementError with the
    hull that forbids it.
    """
    pool: dict[str, list[Device]] = defaultdict(list)
    for device in sorted(free, key=_place):
        pool[device.type].append(device)
    spans = hulls(busy)
    gaps = order(total, spans, {t: len(devices) for t, devices in pool.items()})
    line: list[Device] = []
    for n, gap in enumerate(gaps):
        line += _give(pool, spans[n - 1].type, gap.left) if n else []
        for gres_type in gap.middle:
            line += pool[gres_type]
        line += [Device("off" if n == 0 else f"off{n}")] * gap.room
        if n < len(spans):
            hull = spans[n]
            # The lowest places stand inside the hull.
            inside = _give(pool, hull.type, hull.holes)
            line += _give(pool, hull.type, gap.right)
            inside.reverse()
            line += (busy.get(i) or inside.pop() for i in range(hull.low, hull.high + 1))
    return tuple(line)


def _give(pool: Mapping[str, list[Device]], gres_type: str, count: int) -> list[Device]:
    given, pool[gres_type][:count] = pool[gres_type][:count], []
    return given


def in_a_row(*devices: Iterable[Device]) -> Slots:
    """All of the devices and no filler, each type one run: the order of a node without slots."""
    found = sorted((d for some in devices for d in some), key=lambda d: (d.type, *_place(d)))
    return tuple(found)


def _place(device: Device) -> tuple[int, int, int]:
    place = device.placement
    return (device.gpu, place.start, place.ci or 0) if place else (device.gpu, 0, 0)


def order(total: int, spans: Sequence[Hull], counts: Mapping[str, int]) -> list[Gap]:
    """What stands between the hulls, from so many free devices of each type; numbers only, so that
    a planner can ask often. Raises ArrangementError with the hull that forbids it."""
    for hull in spans:
        there = counts.get(hull.type, 0)
        if there < hull.holes:
            raise ArrangementError(
                f"jobs on {hull.type} at indexes {hull.low} and {hull.high} need every index "
                f"between to stay {hull.type}: {hull.high - hull.low + 1} instances, the new "
                f"layout has {hull.busy + there}"
            )
    starts = [0, *(hull.high + 1 for hull in spans)]
    ends = [*(hull.low for hull in spans), total]
    gaps = [Gap(end - start) for start, end in zip(starts, ends, strict=True)]
    extra = [counts.get(hull.type, 0) - hull.holes for hull in spans]
    held = {hull.type for hull in spans}
    whole = sorted((-n, t) for t, n in counts.items() if n and t not in held)
    if not _place_whole(gaps, whole, extra):
        fixed = ", ".join(f"{h.type} at {h.low}-{h.high}" for h in spans)
        raise ArrangementError(f"no order of slots has room for every type beside busy {fixed}")
    return gaps


def _place_whole(gaps: list[Gap], whole: Sequence[tuple[int, str]], extra: Sequence[int]) -> bool:
    """Put each type without a busy device whole into a gap, the rest beside its own hull; `whole`
    has (-count, type), the largest first."""
    if not whole:
        return _extend_hulls(gaps, extra)
    (less, gres_type), rest = whole[0], whole[1:]
    for gap in sorted(gaps, key=lambda g: -g.room):
        if gap.room >= -less:
            gap.middle.append(gres_type)
            gap.taken -= less
            if _place_whole(gaps, rest, extra):
                return True
            gap.middle.pop()
            gap.taken += less
    return False


def _extend_hulls(gaps: list[Gap], extra: Sequence[int]) -> bool:
    """Free devices of a busy type: as many as fit before its hull, the rest right after it.

    From left to right, greedy: only this hull and the one before can use the gap on its left.
    """
    for gap in gaps:
        gap.left = gap.right = 0
    for n, count in enumerate(extra):
        before, after = gaps[n], gaps[n + 1]
        before.right = min(before.room, count)
        after.left = count - before.right
        if after.room < 0:
            return False
    return True


def devices_of(gpu: Gpu, whole_type: str) -> list[Device]:
    """The devices that a GPU offers Slurm now: one per instance, or per compute instance of a split
    one, or itself when MIG is off; none that has another owner."""
    if gpu.owner:
        return []
    if not gpu.mig:
        return [Device(whole_type, (gpu.file,), gpu.uuid, gpu.index)]
    own = (i for i in gpu.instances if not i.owner)
    return [device for i in own for device in instance_devices(gpu.index, i)]


def instance_devices(gpu: int, instance: Instance) -> list[Device]:
    """The devices of a GPU instance. The parts of a split one share the files of the GPU and of the
    GPU instance; the compute instance's is each one's own."""
    if not instance.is_split:
        place = instance.placement
        return [Device(place.profile, instance.files, instance.uuid, gpu, place)]
    shared, own = instance.files[:2], instance.files[2:]
    return [
        Device(part.profile, (*shared, *own[n : n + 1]), compute.uuid, gpu, part)
        for n, (part, compute) in enumerate(instance.parts.items())
    ]


def planned_device(gpu: int, placement: Placement) -> Device:
    """A device that a reshape will create: it has no files and no UUID yet."""
    return Device(placement.profile, (), "", gpu, placement)


def planned_instance(placement: Placement, split: Sequence[int] = ()) -> Instance:
    """A GPU instance as a reshape will make it: no files, no UUIDs, and no ids but those of its
    parts, which the driver counts from 0."""
    whole = int(placement.profile.partition("g.")[0])
    computes = tuple(
        ComputeInstance(ci, device_name(placement.profile, width, whole), width, "", 0)
        for ci, width in enumerate(sorted(split, reverse=True))
    )
    return Instance(placement, -1, "", 0, (), (), len(computes) or 1, computes)


def part_types(profiles: Iterable[Profile]) -> frozenset[str]:
    """Every type that a part of a GPU instance could have: any width below the whole."""
    return frozenset(
        device_name(p.name, width, p.compute_slices)
        for p in profiles
        for width in range(1, p.compute_slices)
    )


def with_files(slots: Slots, gpus: Sequence[Gpu], cap_dir: str) -> Slots:
    """Give fillers their device nodes and add the guard, which stands last.

    Filler n gets the n-th spare minor. The guard lists every GPU and every GPU-instance capability
    node that no slot has, so that a step that knows it is denied also instances made later, and
    GPUs made whole later.
    """
    spare = [f"{cap_dir}/nvidia-cap{m}" for gpu in gpus for m in gpu.spare_minors]
    used = {file for device in slots if not is_filler(device.type) for file in device.files}
    fillers = iter(spare)
    filled = tuple(Device(d.type, (next(fillers),)) if is_filler(d.type) else d for d in slots)
    caps = (f"{cap_dir}/nvidia-cap{m}" for gpu in gpus for m in gpu.instance_minors)
    known = (*(gpu.file for gpu in gpus), *caps)
    guard = Device(GUARD, tuple(file for file in known if file not in used))
    return (*filled, guard)


def gres_line(slots: Slots, possible: Collection[str]) -> str:
    """The node's Gres value: types in the order of the slots, then every other type with 0.

    Every type that the node can ever have is listed, so that a stale copy of the line costs a
    refused registration, never a job (slurmctld kills jobs whose type a node no longer lists).
    """
    tally = Counter(device.type for device in slots)
    absent = sorted(t for t in (*possible, ZERO) if t not in tally)
    return ",".join([f"gpu:{t}:{n}" for t, n in tally.items()] + [f"gpu:{t}:0" for t in absent])


def published(gres: Mapping[str, int]) -> dict[str, int]:
    """Types of a Gres line that have devices, in order: what slurmctld shows."""
    return {t: n for t, n in gres.items() if n}


def tally(slots: Slots) -> dict[str, int]:
    """Count by type, in order of the slots."""
    return dict(Counter(device.type for device in slots))


def bridge_line(old: Mapping[str, int], slots: Slots, possible: Collection[str]) -> str | None:
    """The Gres line for the first of two registrations, when a type vanishes under gpu jobs.

    slurmctld refuses a registration in which a type of its present topology has count 0 while
    jobs use gpus of the node. A line that still lists each such type once, its count taken from
    a type that has several, makes it rebuild the topology from what slurmd really has; the true
    line follows. None when no type vanishes. Raises ArrangementError when there is nothing to
    take from.
    """
    new = tally(slots)
    vanishing = [t for t, n in old.items() if n and t not in new]
    if not vanishing:
        return None
    for _ in vanishing:
        richest = max(new, key=lambda t: new[t])
        if new[richest] < 2:
            raise ArrangementError("no type has two devices to lend to those that vanish")
        new[richest] -= 1
    listed = {**new, **dict.fromkeys(vanishing, 1)}
    absent = sorted(t for t in (*possible, ZERO) if t not in listed)
    return ",".join([f"gpu:{t}:{n}" for t, n in listed.items()] + [f"gpu:{t}:0" for t in absent])
