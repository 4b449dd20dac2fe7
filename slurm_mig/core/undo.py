"""Back to the layout before a node's last change: the change that does it, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from slurm_mig.core import withhold
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.layouts import Cut, cut_of
from slurm_mig.core.model import Gpu, NodeView, Place, Placement, is_filler
from slurm_mig.core.records import Event, Phase, Transaction
from slurm_mig.errors import BusyError, SlurmMigError


def last_change(history: Iterable[Transaction | Event], node: str) -> Transaction | None:
    """The last transaction that changed the node's instances and was carried through."""
    found = None
    for entry in history:
        if isinstance(entry, Transaction) and entry.node == node:
            done = entry.phase is Phase.RELEASED and entry.change.gpus
            found = entry if done else found
    return found


def undo(view: NodeView, last: Transaction, why: str) -> NodeChange:
    """The change of the node that brings back what `last` changed; all else stays.

    Raises BusyError when something that must go is used, ArrangementError when no order of slots
    keeps every busy device at its index, SlurmMigError when the GPUs are no longer as `last`
    left them.
    """
    draft = NodeDraft.of(view, {})
    gpus = {gpu.index: gpu for gpu in view.gpus}
    parts = []
    for done in last.change.gpus:
        gpu = gpus.get(done.gpu)
        if gpu is None or gpu.mig != done.mig or not _as_left(gpu, done):
            raise SlurmMigError(
                f"{view.name} GPU {done.gpu} is no longer as the change {last.id} left it; "
                "nothing was changed"
            )
        part = _back(gpu, done, _splits(last, done.gpu), was_whole=_was_whole(last, done.gpu))
        if part.mig != gpu.mig and gpu.index not in view.switchable:
            raise SlurmMigError(
                f"{view.name} GPU {gpu.index}: the site's groups no longer let its MIG mode "
                "change; nothing was changed"
            )
        draft.destroyed |= {(gpu.index, p) for p in part.destroyed}
        draft.created |= {(gpu.index, p) for p in part.created}
        draft.splits |= {(gpu.index, p): split for p, split in part.splits}
        draft.set_mode(gpu, mig=part.mig)
        parts.append(part)
    withheld = tuple(withhold.still(view.withheld, draft.destroyed))
    draft.withheld -= draft.destroyed
    change = NodeChange(view.name, tuple(parts), (), (), withheld, why=why)
    _refuse_busy(view, change, draft)
    return replace(change, slots=draft.arranged())


def _as_left(gpu: Gpu, done: GpuChange) -> bool:
    """True if the GPU's instances, with MIG on, are those that the change made."""
    now = {cut_of(i) for i in gpu.instances}
    return not gpu.mig or (
        gpu.layout == done.target and all(Cut(p, split) in now for p, split in done.splits)
    )


def _splits(last: Transaction, gpu: int) -> dict[Placement, tuple[int, ...]]:
    """Compute instances of the GPU instances that were split before the change."""
    found: dict[Placement, tuple[int, ...]] = {}
    for device in last.before:
        place = device.placement
        if device.gpu == gpu and place is not None and place.ci is not None:
            width = int(place.profile.partition("c.")[0])
            widths = (*found.get(place.whole, ()), width)
            found[place.whole] = tuple(sorted(widths, reverse=True))
    return found


def _back(
    gpu: Gpu, done: GpuChange, splits: dict[Placement, tuple[int, ...]], *, was_whole: bool
) -> GpuChange:
    now = gpu.layout
    before = frozenset() if was_whole else frozenset(done.kept + done.destroyed)
    made = sorted(before - now)
    return GpuChange(
        gpu.index,
        tuple(sorted(now & before)),
        tuple(sorted(now - before)),
        tuple(made),
        mig=not was_whole,
        splits=(
            *((p, splits.get(p, ())) for p in sorted(done.resplit & before)),
            *((p, splits[p]) for p in made if p in splits),
        ),
    )


def _was_whole(last: Transaction, gpu: int) -> bool:
    return any(d.key == (gpu, None) and not is_filler(d.type) for d in last.before)


def _refuse_busy(view: NodeView, change: NodeChange, draft: NodeDraft) -> None:
    """Raises BusyError that names who has what must go."""
    going: set[Place] = set(change.blocking)
    busy = sorted(draft.busy_places & going, key=str)
    if not busy:
        return
    gpu, placement = busy[0]
    indexes = {n for n, device in enumerate(view.slots) if device.home == busy[0]}
    jobs = [a.job_id for a in view.slurm.allocations if indexes & a.indexes]
    who = f"job {jobs[0]} has" if jobs else "a process or a coming reservation has"
    raise BusyError(
        f"{view.name}: {who} {placement or 'the whole of it'} of GPU {gpu}, which would have to "
        "go; nothing was changed",
        hint="Wait until it is free.",
    )
