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

from slurm_mig.core.model import GUARD, ZERO, Device, Gpu, Placement, Slots, is_filler
from slurm_mig.errors import ArrangementError


@dataclass
class _Gap:
    """A stretch of indexes between two hulls, with what will stand in it, left to right."""

    first: int
    length: int
    left: list[Device] = field(default_factory=list)
    middle: list[Device] = field(default_factory=list)
    right: list[Device] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.length - len(self.left) - len(self.middle) - len(self.right)


@dataclass(frozen=True)
class Hull:
    """From the lowest to the highest busy index of a type."""

    type: str
    low: int
    high: int


def hulls(busy: Mapping[int, Device]) -> list[Hull]:
    """The hulls of the busy types, by index.

    Raises ArrangementError if two overlap, which no published order can have.
    """
    spans: dict[str, list[int]] = defaultdict(list)
    for index, device in busy.items():
        spans[device.type].append(index)
    found = sorted((Hull(t, min(i), max(i)) for t, i in spans.items()), key=lambda h: h.low)
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
    line: dict[int, Device] = dict(busy)
    for hull in spans:
        _fill_hull(hull, line, pool)
    gaps = _gaps(total, spans)
    _assign_whole(gaps, spans, pool)
    for n, gap in enumerate(gaps):
        name = "off" if n == 0 else f"off{n}"
        fillers = [Device(name)] * gap.room
        for offset, device in enumerate([*gap.left, *gap.middle, *fillers, *gap.right]):
            line[gap.first + offset] = device
    return tuple(line[i] for i in range(total))


def _place(device: Device) -> tuple[int, int]:
    return (device.gpu, device.placement.start if device.placement else 0)


def _fill_hull(hull: Hull, line: dict[int, Device], pool: dict[str, list[Device]]) -> None:
    holes = [i for i in range(hull.low, hull.high + 1) if i not in line]
    spare = pool[hull.type]
    if len(spare) < len(holes):
        raise ArrangementError(
            f"jobs on {hull.type} at indexes {hull.low} and {hull.high} need every index between "
            f"to stay {hull.type}: {hull.high - hull.low + 1} instances, the new layout has "
            f"{hull.high - hull.low + 1 - len(holes) + len(spare)}"
        )
    for index in holes:
        line[index] = spare.pop(0)


def _gaps(total: int, spans: Sequence[Hull]) -> list[_Gap]:
    starts = [0, *(hull.high + 1 for hull in spans)]
    ends = [*(hull.low for hull in spans), total]
    return [_Gap(start, end - start) for start, end in zip(starts, ends, strict=True)]


def _assign_whole(
    gaps: list[_Gap], spans: Sequence[Hull], pool: Mapping[str, list[Device]]
) -> None:
    """Put each type without a busy device whole into a gap, the rest beside its own hull."""
    held = {hull.type for hull in spans}
    whole = sorted(
        (t for t, devices in pool.items() if devices and t not in held),
        key=lambda t: (-len(pool[t]), t),
    )

    def place(n: int) -> bool:
        if n == len(whole):
            return _extend_hulls(gaps, spans, pool)
        devices = pool[whole[n]]
        for gap in sorted(gaps, key=lambda g: -g.room):
            if gap.room >= len(devices):
                gap.middle.extend(devices)
                if place(n + 1):
                    return True
                del gap.middle[-len(devices) :]
        return False

    if not place(0):
        fixed = ", ".join(f"{h.type} at {h.low}-{h.high}" for h in spans)
        raise ArrangementError(f"no order of slots has room for every type beside busy {fixed}")


def _extend_hulls(
    gaps: list[_Gap], spans: Sequence[Hull], pool: Mapping[str, list[Device]]
) -> bool:
    """Free devices of a busy type: as many as fit before its hull, the rest right after it.

    From left to right, greedy: only this hull and the one before can use the gap on its left.
    """
    for gap in gaps:
        gap.left, gap.right = [], []
    for n, hull in enumerate(spans):
        extra = pool[hull.type]
        before, after = gaps[n], gaps[n + 1]
        taken = min(before.room, len(extra))
        before.right.extend(extra[:taken])
        if len(extra) - taken > after.room:
            return False
        after.left.extend(extra[taken:])
    return True


def devices_of(gpu: Gpu, whole_type: str) -> list[Device]:
    """The devices that a GPU offers Slurm now: one per instance, or itself when MIG is off; none
    that has another owner."""
    if gpu.owner:
        return []
    if not gpu.mig:
        return [Device(whole_type, (gpu.file,), gpu.uuid, gpu.index)]
    return [
        Device(i.placement.profile, i.files, i.uuid, gpu.index, i.placement)
        for i in gpu.instances
        if not i.owner
    ]


def planned_device(gpu: int, placement: Placement) -> Device:
    """A device that a reshape will create: it has no files and no UUID yet."""
    return Device(placement.profile, (), "", gpu, placement)


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
