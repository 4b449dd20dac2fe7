"""`apply --node` and `mode --node` on a node in our care: the whole transaction, on request.

Runs on the controller under the lock. What an administrator asks for goes the same way as what the
queue asks for (executor.py): fence, reshape, publish, release; busy instances are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from slurm_mig import gpurender
from slurm_mig.core import withhold
from slurm_mig.core.changes import GpuChange, NodeChange, Split
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.layouts import LayoutChange, Wanted, change
from slurm_mig.core.model import Gpu, Layout, NodeCondition, NodeView
from slurm_mig.core.records import Phase
from slurm_mig.errors import BusyError, Exit, SlurmMigError
from slurm_mig.gpuverbs import Answer, Request

if TYPE_CHECKING:
    from slurm_mig.assembly import Assembly

CHANGING = frozenset({"apply", "mode"})
"""Verbs that the node itself refuses while it is managed."""

EXITS = {
    Phase.RELEASED: Exit.OK,
    Phase.ABANDONED: Exit.REFUSED,
    Phase.HELD: Exit.ATTENTION,
    Phase.QUARANTINED: Exit.ATTENTION,
}


def change_managed(assembly: Assembly, name: str, request: Request) -> Answer:
    """Carry out the request on the managed node, or say why not; nothing is touched then."""
    with assembly.store.lock(), closing(assembly.files):
        reconciler = assembly.reconciler()
        seen = reconciler.observe()
        view = next(view for view in seen.views if view.name == name)
        if view.condition is not NodeCondition.USABLE:
            raise SlurmMigError(f"{name} is left alone: {view.note}; nothing was touched")
        wanted = _wanted(assembly, view, request)
        changes = planned(view, wanted)
        text, data = gpurender.change_text(changes), gpurender.change_json(changes, done=False)
        if request.dry_run or all(part.empty for part in changes):
            return Answer(text, data)
        wish = node_change(view, changes)
        outcome = assembly.executor().reshape(assembly.store.managed()[name], wish)
        done = outcome.phase is Phase.RELEASED
        return Answer(
            f"{text}{outcome.sentence}\n",
            {**gpurender.change_json(changes, done=done), "outcome": outcome.sentence},
            int(EXITS.get(outcome.phase, Exit.BUSY)),
        )


def _wanted(assembly: Assembly, view: NodeView, request: Request) -> Mapping[int, Wanted]:
    """What each GPU should be; device filters are the node's to answer."""
    if request.verb == "mode":
        chosen = request.gpus or [gpu.index for gpu in view.gpus if gpu.mig_capable]
        _refuse_others(view, chosen)
        return {
            gpu.index: Wanted(mig=request.on)
            for gpu in view.gpus
            if gpu.index in chosen and gpu.mig != request.on
        }
    asked = replace(request, verb="wanted")
    answer = decode(Answer, assembly.nodes.gpus(view.name, encode(asked)), view.name)
    return decode(Mapping[int, Wanted], answer.data, view.name)  # type: ignore[type-abstract]


def planned(view: NodeView, wanted: Mapping[int, Wanted]) -> tuple[LayoutChange, ...]:
    """The least change of each GPU. Raises BusyError naming jobs and processes in the way, and
    SlurmMigError for what a managed node cannot be."""
    gpus = {gpu.index: gpu for gpu in view.gpus}
    _refuse_others(view, wanted)
    changes, problems = [], []
    for index, wish in sorted(wanted.items()):
        gpu = gpus[index]
        part = change(gpu, wish, _busy(view, gpu))
        _refuse_unfit(view, gpu, part)
        problems += [f"{p} of GPU {index} is held by {_who(view, index, p)}" for p in part.blockers]
        if part.switch and any(view.slots[i].key == (index, None) for i in view.busy):
            problems.append(f"GPU {index} is held by {_who(view, index, None)}")
        changes.append(part)
    if problems:
        raise BusyError(
            f"{view.name}: {'; '.join(problems)}; nothing was touched",
            hint="Wait for them to end, or choose a layout that keeps these instances.",
        )
    return tuple(changes)


def _busy(view: NodeView, gpu: Gpu) -> Layout:
    places = (view.slots[i].home for i in view.busy if i < len(view.slots))
    return gpu.foreign | {p for index, p in places if index == gpu.index and p is not None}


def _refuse_others(view: NodeView, gpus: Iterable[int]) -> None:
    """Raises SlurmMigError for a GPU that is not Slurm's."""
    for gpu in view.outside:
        if gpu.index in gpus:
            raise SlurmMigError(
                f"{view.name}: GPU {gpu.index} is {gpu.owner}'s, not Slurm's; nothing was touched",
                hint="Name the GPUs that are meant, without it; or take it out of `outside` in the "
                "node's group, and enrol the node again.",
            )


def _who(view: NodeView, gpu: int, placement: object) -> str:
    owners = [
        i.owner
        for g in view.gpus
        for i in g.instances
        if g.index == gpu and i.placement == placement and i.owner
    ]
    jobs = [
        f"job {a.job_id}"
        for a in view.slurm.allocations
        for i in a.indexes
        if i < len(view.slots) and view.slots[i].home == (gpu, placement)
    ]
    pids = [
        f"process {pid}"
        for g in view.gpus
        if g.index == gpu
        for pid in (g.pids if placement is None else ())
    ]
    pids += [
        f"process {pid}"
        for g in view.gpus
        for i in g.instances
        if g.index == gpu and i.placement == placement
        for pid in i.pids
    ]
    return ", ".join((*owners, *jobs, *pids)) or "somebody"


def _refuse_unfit(view: NodeView, gpu: Gpu, part: LayoutChange) -> None:
    if part.switch and gpu.index not in view.switchable:
        raise SlurmMigError(
            f"{view.name}: the site does not let the MIG mode of GPU {gpu.index} change; nothing "
            "was touched",
            hint="See mode_change of the node's group; it is read when a node is enrolled.",
        )


def node_change(view: NodeView, changes: Sequence[LayoutChange]) -> NodeChange:
    """The change with the node's slots after it. Raises ArrangementError where jobs' indexes are
    in the way."""
    draft = NodeDraft.of(view, {})
    gpus = {gpu.index: gpu for gpu in view.gpus}
    for part in changes:
        draft.created |= {(part.gpu, cut.placement) for cut in part.created}
        draft.destroyed |= {(part.gpu, placement) for placement in part.destroyed}
        draft.splits |= {(part.gpu, placement): split for placement, split in _splits(part)}
        draft.set_mode(gpus[part.gpu], mig=part.mig)
    draft.withheld -= draft.destroyed
    return NodeChange(
        view.name,
        tuple(_gpu_change(part) for part in changes if not part.empty),
        draft.arranged(),
        (),
        tuple(withhold.still(view.withheld, draft.destroyed)),
    )


def _gpu_change(part: LayoutChange) -> GpuChange:
    return GpuChange(
        part.gpu,
        tuple(sorted(cut.placement for cut in (*part.kept, *part.resplit))),
        part.destroyed,
        tuple(cut.placement for cut in part.created),
        mig=part.mig,
        splits=_splits(part),
    )


def _splits(part: LayoutChange) -> tuple[Split, ...]:
    """Compute instances to be made that do not span a new GPU instance, or replace others."""
    return tuple(
        (cut.placement, cut.split)
        for cut in (*part.resplit, *part.created)
        if cut.split or cut in part.resplit
    )
