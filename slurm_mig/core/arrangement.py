"""The slots of a node in transition: its GPUs as they are, its running jobs where they were.

Called by the run of one node's reshape, before the reshape with the GPUs as they will be, so that
an order is known to exist, and after it with those that are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from slurm_mig.core import slots
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import Device, Gpu, Slots, SlurmNode, is_filler
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import BusyError


def arranged(
    managed: ManagedNode, node: SlurmNode, gpus: Sequence[Gpu], change: NodeChange, caps_dir: str
) -> Slots:
    """The slots for these GPUs, guard included, with every busy device at its index.

    A job's index means what the record says: the slots that slurmctld last confirmed. Raises
    ArrangementError with the hull that forbids it, BusyError for a node without slots under a job.
    """
    held = {(gpu.index, p) for gpu in gpus for p in gpu.held}
    now = {
        d.key: d
        for gpu in gpus
        for d in slots.devices_of(gpu, managed.whole_types.get(gpu.index, ""))
    }
    kept_back = {(w.gpu, p) for w in change.withheld for p in w.placements}
    busy = {
        i: now.get(d.key, d)
        for i, d in enumerate(managed.slots[:-1])
        if i in node.busy or (d.key in held and not is_filler(d.type))
    }
    taken = {d.key for d in busy.values()}
    free = [d for k, d in now.items() if k not in taken and k not in kept_back]
    if managed.slotted:
        order = slots.arrange(len(managed.slots) - 1, busy, free)
    else:
        order = _counted(managed, node, change, busy, free)
    return slots.with_files(order, gpus, caps_dir)


def _counted(
    managed: ManagedNode,
    node: SlurmNode,
    change: NodeChange,
    busy: Mapping[int, Device],
    free: Sequence[Device],
) -> Slots:
    """The order on a node without slots. Raises BusyError while a job has gpus of it, unless all
    stays as it was: Slurm kills jobs when it reads another count than theirs."""
    if not node.allocations:
        return slots.in_a_row(busy.values(), free)
    count = len(busy) + len(free)
    if change.gpus or count != len(managed.slots) - 1:
        raise BusyError(
            f"job {node.allocations[0].job_id} has gpus of {managed.name}, whose count changes "
            "(slots: false)"
        )
    return slots.arrange(count, busy, free)


def after(gpus: Sequence[Gpu], change: NodeChange) -> list[Gpu]:
    """The GPUs as they will be: only so that an order of slots is known to exist beforehand."""
    parts = {part.gpu: part for part in change.gpus}
    found = []
    for gpu in gpus:
        part = parts.get(gpu.index)
        if part is None:
            found.append(gpu)
            continue
        splits = dict(part.splits)
        staying = part.target - splits.keys()
        kept = [i for i in gpu.instances if i.placement in staying]
        new = part.target - {i.placement for i in kept}
        made = [slots.planned_instance(p, splits.get(p, ())) for p in sorted(new)]
        found.append(replace(gpu, mig=part.mig, instances=(*kept, *made)))
    return found
