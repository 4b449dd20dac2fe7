"""What another hand has changed on a node since we published it, and whether that can be mended.

Mending never undoes the other hand: what is there now is published instead, as it is. So nobody is
fought over a GPU, and Slurm offers what exists. Where a job's device is gone, or the count of the
node's slots would change, only a person can say what is to become of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from slurm_mig.core import geometry, ownership, slots
from slurm_mig.core.model import Device, Gpu, Place, Placement, Profile, SlurmNode, is_filler
from slurm_mig.core.records import Card, ManagedNode

AGAIN = "`leave` and `enrol` the node"

Found = tuple[str, str]
"""What is otherwise than published, and why that cannot be mended here; empty if it can."""


@dataclass(frozen=True)
class Drift:
    """How a node differs from what was published of it."""

    text: str
    obstacle: str
    """What a person has to do; empty where publishing what is there mends it."""

    @property
    def note(self) -> str:
        return f"{self.text}; to mend it: {self.obstacle}" if self.obstacle else self.text


def found(node: ManagedNode, shown: SlurmNode, gpus: Iterable[Gpu]) -> Drift | None:
    """The drift of a node, None where it is as published."""
    there = {gpu.index: gpu for gpu in ownership.stamped(gpus, node.outside)}
    differs = [
        *_cards(node, there),
        *_modes(node, there),
        *_names(node, there),
        *_layouts(node, there),
        *_files(node, there),
    ]
    if not differs:
        return None
    differs += _held(node, shown, there)
    said = list(dict.fromkeys(text for text, _ in differs))
    obstacles = list(dict.fromkeys(obstacle for _, obstacle in differs if obstacle))
    return Drift("; ".join(filter(None, said)), "; ".join(obstacles))


def cards(gpus: Iterable[Gpu]) -> dict[int, Card]:
    """Which GPU is at which index."""
    return {gpu.index: Card(gpu.uuid, gpu.model) for gpu in gpus}


def adopted(node: ManagedNode, gpus: Iterable[Gpu]) -> ManagedNode:
    """The node's record for GPUs that are as they are now; its slots are published afterwards."""
    there = {gpu.index: gpu for gpu in ownership.stamped(gpus, node.outside)}
    cut = [g for g in there.values() if g.mig or g.index in node.switchable]
    most = geometry.most_of(cut, node.whole_types.values())
    known = {t: n for t, n in node.most.items() if not all(g.profiles for g in cut)}
    now = tuple(sorted({**known, **most}))
    withheld = (
        replace(held, placements=held.placements & there[held.gpu].layout)
        for held in node.withheld
        if held.gpu in there
    )
    return replace(
        node,
        cards=cards(there.values()),
        most={**known, **most},
        possible=now,
        former=tuple(sorted({*node.former, *node.possible} - set(now))),
        profiles={i: there[i].profiles or p for i, p in node.profiles.items() if i in there},
        baseline={
            index: tuple(_renamed(p, there[index].profiles) for p in layout)
            for index, layout in node.baseline.items()
            if index in there
        },
        withheld=tuple(held for held in withheld if held.placements),
    )


def _cards(node: ManagedNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    before = {card.uuid: index for index, card in node.cards.items()}
    for index, card in node.cards.items():
        gpu = there.get(index)
        if gpu is None:
            yield f"GPU {index} ({card.model}) is not there any more", f"put it back, or {AGAIN}"
        elif gpu.model != card.model:
            yield f"GPU {index} is {gpu.model}, was {card.model}", AGAIN
        elif gpu.uuid in before and before[gpu.uuid] != index:
            yield f"GPU {index} is what GPU {before[gpu.uuid]} was", ""
        elif gpu.uuid != card.uuid:
            yield f"GPU {index} was replaced: {gpu.uuid} for {card.uuid}", ""
    for index in sorted(there.keys() - node.cards.keys()) if node.cards else ():
        yield f"GPU {index} ({there[index].model}) is new", AGAIN


def _modes(node: ManagedNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    whole = {d.gpu for d in node.slots if d.placement is None and not is_filler(d.type)}
    for index, gpu in there.items():
        if gpu.owner or gpu.mig == (index not in whole):
            continue
        mends = f"`nvidia-smi -i {index} -mig {0 if gpu.mig else 1}` on {node.name}"
        able = index in node.switchable
        yield f"MIG is {'on' if gpu.mig else 'off'} on GPU {index}", "" if able else mends


def _names(node: ManagedNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    for index, gpu in there.items():
        new = sorted(geometry.most_of([gpu], ()).keys() - {*node.possible, *node.former})
        if new and not gpu.owner and (gpu.mig or index in node.switchable):
            yield f"the driver of GPU {index} has other profile names: {', '.join(new)}", ""


def _layouts(node: ManagedNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    others = ownership.reserved(node.outside)
    now: set[Place] = set()
    for gpu in there.values():
        for instance in () if gpu.owner else gpu.instances:
            home, devices = (
                (gpu.index, instance.placement),
                slots.instance_devices(gpu.index, instance),
            )
            now |= {home} if instance.owner else {device.key for device in devices}
    published = {(d.gpu, d.placement) for d in node.slots if d.placement is not None}
    published |= {(w.gpu, p) for w in node.withheld for p in w.placements}
    published |= others.keys()
    if now != published:
        lost = ", ".join(f"GPU {g} {p}" for g, p in sorted(published - now))
        new = ", ".join(f"GPU {g} {p}" for g, p in sorted(now - published))
        yield (
            (
                f"MIG instances were changed by another hand: missing {lost or 'none'}, "
                f"unexpected {new or 'none'}"
            ),
            "",
        )
    for index, place in sorted(others.keys() - now):
        yield (
            f"GPU {index} {place} was {others[index, place]}'s",
            f"make it again there, or {AGAIN} with other groups",
        )
    for gpu in there.values():
        for instance in gpu.instances:
            if not instance.compute_instances and not instance.owner:
                yield (
                    f"GPU {gpu.index} {instance.placement} has no compute instance",
                    f"make it one, or destroy it (`nvidia-smi mig` on {node.name})",
                )


def _files(node: ManagedNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    now = _devices(node, there.values())
    moved = {
        d.gpu
        for d in node.slots
        if not is_filler(d.type) and d.key in now and _is_other(d, now[d.key])
    }
    for index in sorted(moved):
        yield f"devices of GPU {index} have other files or UUIDs than published", ""


def _held(node: ManagedNode, shown: SlurmNode, there: Mapping[int, Gpu]) -> Iterator[Found]:
    """Jobs whose device is not what it was: nothing can be published around them."""
    now = _devices(node, there.values())
    for allocation in shown.allocations:
        for index in sorted(allocation.indexes):
            device = node.slots[index] if index < len(node.slots) else None
            if device is None or is_filler(device.type):
                continue
            if device.key not in now or _is_other(device, now[device.key]):
                yield (
                    f"job {allocation.job_id} had {device.placement or 'the whole'} of GPU "
                    f"{device.gpu}, which is not there as it was",
                    f"end job {allocation.job_id}",
                )


def _devices(node: ManagedNode, gpus: Iterable[Gpu]) -> dict[Place, Device]:
    return {
        d.key: d for gpu in gpus for d in slots.devices_of(gpu, node.whole_types.get(gpu.index, ""))
    }


def _is_other(before: Device, now: Device) -> bool:
    return (before.files, before.uuid) != (now.files, now.uuid)


def _renamed(placement: Placement, profiles: Iterable[Profile]) -> Placement:
    """The placement under the name that its profile has now: as many slices, the same attribute."""
    profiles = tuple(profiles)
    if not profiles or any(p.name == placement.profile for p in profiles):
        return placement
    alike = (
        p.name
        for p in profiles
        if (_kind(p.name), p.size) == (_kind(placement.profile), placement.size)
    )
    return placement._replace(profile=next(alike, placement.profile))


def _kind(name: str) -> tuple[str, str]:
    """Compute slices and attribute of a profile: `1g`, `+me`."""
    return name.partition(".")[0], re.sub(r"^.*?gb", "", name)
