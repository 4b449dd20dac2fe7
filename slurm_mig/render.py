"""What people read: the map of the GPUs, the plan as a diff, and the same as plain values for JSON.

Pure functions from the model to text; only the command line prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from slurm_mig.core import monitoring, slots
from slurm_mig.core.changes import GpuChange, NodeChange, Plan
from slurm_mig.core.layouts import Cut, steps
from slurm_mig.core.model import Gpu, Instance, JobRequest, NodeView, Place, Placement, is_filler
from slurm_mig.core.pauses import said
from slurm_mig.core.purpose import purpose
from slurm_mig.core.records import CycleReport, Pause, Transaction

MIN_SLICE, MAX_SLICE = 3, 12
"""Columns of one memory slice on the map."""

EMPTY = "·"


def counts(placements: Iterable[Placement]) -> str:
    """`3g.20gb, 1g.5gb*3`: the placements by profile, for people."""
    tally: dict[str, int] = {}
    for placement in sorted(placements):
        tally[placement.profile] = tally.get(placement.profile, 0) + 1
    return ", ".join(name if n == 1 else f"{name}*{n}" for name, n in tally.items()) or "empty"


def status_text(
    views: Sequence[NodeView],
    *,
    waiting: Sequence[tuple[JobRequest, str]],
    transactions: Sequence[Transaction],
    report: CycleReport | None,
    width: int,
    pauses: Sequence[Pause] = (),
) -> str:
    """The map, what waits and why nothing is done about it, and what is under way."""
    lines: list[str] = []
    for view in views:
        lines += [*map_lines(view, width), ""]
    if not views:
        lines += ["No node is enrolled: `slurm-mig enrol NODE` takes one into care.", ""]
    lines += _waiting_lines(waiting)
    lines += _transition_lines(transactions)
    lines += [f"{_since(p)}{said(p)}; `{_lifting(p)}` lifts it" for p in pauses]
    lines.append(f"Last cycle: {report.sentence}" if report else "Last cycle: none yet")
    return "\n".join(lines) + "\n"


def _since(pause: Pause) -> str:
    return f"Since {local_time(pause.since)} "


def _lifting(pause: Pause) -> str:
    return f"slurm-mig resume {pause.scope}".rstrip()


def local_time(seconds: float) -> str:
    """A moment as people here write it: `2026-11-25 12:31:15`."""
    return datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def _waiting_lines(waiting: Sequence[tuple[JobRequest, str]]) -> list[str]:
    if not waiting:
        return ["Waiting: nothing"]
    return ["Waiting:", *(f"  {r.label} of {r.user}: {why}" for r, why in waiting)]


def _transition_lines(transactions: Sequence[Transaction]) -> list[str]:
    if not transactions:
        return ["In transition: nothing"]
    return [
        "In transition:",
        *(f"  {t.node}: {t.shown} ({t.id}){': ' + why if (why := t.needs or t.note) else ''}"
          for t in transactions),
    ]  # fmt: skip


def map_lines(view: NodeView, width: int) -> list[str]:
    """A node: a headline, then two lines per GPU, its instances drawn to scale.

    a100-1  MIXED
      gpu0 |1g.5gb |1g.5gb |········|3g.20gb                       |
           |job 17 |free   |        |job 21                        |
    """
    state = "+".join(sorted(view.slurm.states))
    note = f"  ({view.note})" if view.note else ""
    lines = [f"{view.name}  {state}{note}"]
    owners = _owners(view)
    for gpu in view.all_gpus:
        boxes = list(_boxes(gpu, owners))
        slices = sum(size for size, _, _ in boxes)
        scale = max(MIN_SLICE, min(MAX_SLICE, (width - 9) // max(slices, 1)))
        lines.append(f"  gpu{gpu.index} {_draw((s * scale, name) for s, name, _ in boxes)}")
        lines.append(f"       {_draw((s * scale, who) for s, _, who in boxes)}")
    return lines


def _draw(boxes: Iterable[tuple[int, str]]) -> str:
    """`|text   |text |`: each box as wide as it says, its left border included."""
    drawn = ""
    for columns, text in boxes:
        inside = columns - 1
        if text == EMPTY:
            drawn += "|" + EMPTY * inside
        else:
            drawn += "|" + (text if len(text) <= inside else text[: inside - 1] + "…").ljust(inside)
    return drawn + "|"


def _boxes(gpu: Gpu, owners: Mapping[Any, str]) -> Iterable[tuple[int, str, str]]:
    """(memory slices, name, who has it) from left to right; free room has the name `·`."""
    if not gpu.mig or (gpu.owner and not gpu.instances):
        name = gpu.model.removeprefix("NVIDIA ")
        yield gpu.memory_slices or 8, name, owners.get((gpu.index, None), "free")
        return
    at = 0
    for instance in gpu.instances:
        place = instance.placement
        if place.start > at:
            yield place.start - at, EMPTY, ""
        yield place.size, _name(instance), _owner(gpu, instance, owners)
        at = place.start + place.size
    if at < gpu.memory_slices:
        yield gpu.memory_slices - at, EMPTY, ""


def _name(instance: Instance) -> str:
    """`3g.20gb`, or `1c.3g.20gb*3` for a split one."""
    return counts(instance.parts or (instance.placement,))


def _owner(gpu: Gpu, instance: Instance, owners: Mapping[Any, str]) -> str:
    devices = instance.parts or (instance.placement,)
    return ", ".join(owners.get((gpu.index, p), "free") for p in devices)


def _owners(view: NodeView) -> dict[Place, str]:
    """Who has each device that is not free."""
    return {place: who for place, (_, who) in monitoring.owners(view).items() if who}


def status_json(
    views: Sequence[NodeView],
    *,
    waiting: Sequence[tuple[JobRequest, str]],
    transactions: Sequence[Transaction],
    report: CycleReport | None,
    pauses: Sequence[Pause] = (),
) -> dict[str, Any]:
    """What `status_text` says, as plain values."""
    return {
        "nodes": [_node_json(view) for view in views],
        "waiting": [
            {"job": r.job_id, "user": r.user, "gpus": dict(r.gpus), "why": why}
            for r, why in waiting
        ],
        "transitions": [
            {"node": t.node, "id": t.id, "phase": t.shown, "note": t.note, "needs": t.needs,
             "started": t.started, "waits_until": t.until or None} for t in transactions
        ],
        "pauses": [
            {"scope": p.scope, "what": p.what, "since": p.since, "by": p.by, "reason": p.reason}
            for p in pauses
        ],
        "last_cycle": {"time": report.time, "sentence": report.sentence} if report else None,
    }  # fmt: skip


def _node_json(view: NodeView) -> dict[str, Any]:
    owners = _owners(view)
    kept_back = {(w.gpu, p) for w in view.withheld for p in w.placements}
    index_of = {d.key: n for n, d in enumerate(view.slots) if not is_filler(d.type)}
    return {
        "name": view.name,
        "state": sorted(view.slurm.states),
        "condition": view.condition.name.lower(),
        "note": view.note,
        "gres": slots.tally(view.slots),
        "gpus": [
            {
                "index": gpu.index,
                "model": gpu.model,
                "uuid": gpu.uuid,
                "mig": gpu.mig,
                "memory_slices": gpu.memory_slices,
                "outside": gpu.owner or None,
                "instances": [
                    {
                        "profile": d.type,
                        "start": d.placement.start,
                        "size": d.placement.size,
                        "compute_instance": d.placement.ci,
                        "uuid": d.uuid,
                        "index": index_of.get(d.key),
                        "owner": owners.get(d.key, "free"),
                        "outside": i.owner or None,
                        "withheld": d.key in kept_back,
                    }
                    for i in gpu.instances
                    for d in slots.instance_devices(gpu.index, i)
                    if d.placement
                ],
            }
            for gpu in view.all_gpus
        ],
    }


def plan_text(plan: Plan, views: Sequence[NodeView], width: int = 100) -> str:
    """The plan as a diff: what each GPU gives up and gets, slots before and after, and why."""
    by_name = {view.name: view for view in views}
    lines: list[str] = []
    for change in plan.changes:
        lines += [*_change_lines(change, by_name[change.node], width), ""]
    if not plan.changes:
        lines.append("Nothing to change.")
    if plan.startable:
        lines.append(f"Can start as it is: job {', '.join(map(str, plan.startable))}")
    lines += [f"Waits: {r.wants or r.job_id}: {r.reason}" for r in plan.refusals]
    lines += [f"Note: {note}" for note in plan.notes]
    lines += _quality_lines(plan)
    return "\n".join(lines).rstrip() + "\n"


def _quality_lines(plan: Plan) -> list[str]:
    """The objective's terms and the proof."""
    found = plan.quality
    if found is None:
        return []
    kept = [f"Kept for later: {words} {points}" for words, points in found.withheld]
    if not found.bound:
        return kept
    proof = "no plan is worth more" if found.proven else "the solver's time was up"
    lines = [
        f"Worth {found.worth} points, costs {found.cost}: {found.value} of at most {found.bound} "
        f"(gap {found.gap:.1%}; {proof})"
    ]
    if found.terms:
        paid = ", ".join(f"{words} {points}" for words, points in found.terms)
        lines.append(f"The costs: {paid}")
    lines += kept
    if found.refused_by_hulls:
        lines.append(f"Layouts that running jobs' slots did not allow: {found.refused_by_hulls}")
    return lines


CREATE_S, DESTROY_S, PUBLISH_S, MODE_S = 0.2, 0.2, 1.0, 6.0
"""Rough seconds, from what docs/facts.md has of real GPUs and of the testbed's Slurm."""


def expected_s(change: NodeChange, view: NodeView) -> float:
    """About how long the node's reshape takes, two registrations not counted."""
    switched = sum(part.mig != _mig(view, part.gpu) for part in change.gpus)
    return PUBLISH_S + sum(
        CREATE_S * len(part.created) + DESTROY_S * len(part.destroyed) for part in change.gpus
    ) + MODE_S * switched  # fmt: skip


def _drawn(change: NodeChange, view: NodeView, index: int, width: int) -> list[str]:
    """One GPU before and after, to scale."""
    gpu = next(gpu for gpu in view.gpus if gpu.index == index)
    part = next(part for part in change.gpus if part.gpu == index)
    before = sorted(gpu.layout) if gpu.mig else []
    after = sorted(part.target) if part.mig else []
    slices = max(gpu.memory_slices, 1)
    scale = max(MIN_SLICE, min(MAX_SLICE, (width - 13) // slices))
    whole = gpu.model.removeprefix("NVIDIA ")
    return [
        f"    {sign} {_draw(_strip(layout, slices, scale, '' if mig else whole))}"
        for sign, layout, mig in (("-", before, gpu.mig), ("+", after, part.mig))
    ]


def _strip(
    layout: Sequence[Placement], slices: int, scale: int, whole: str
) -> Iterable[tuple[int, str]]:
    if whole:
        yield slices * scale, whole
        return
    at = 0
    for placement in layout:
        if placement.start > at:
            yield (placement.start - at) * scale, EMPTY
        yield placement.size * scale, placement.profile
        at = placement.start + placement.size
    if at < slices:
        yield (slices - at) * scale, EMPTY


def _change_lines(change: NodeChange, view: NodeView, width: int) -> list[str]:
    lines = [f"{change.node}: {purpose(change)}"]
    for part in change.gpus:
        mode = "" if part.mig == _mig(view, part.gpu) else f": MIG {'on' if part.mig else 'off'}"
        lines.append(f"  gpu{part.gpu}{mode}")
        lines += _drawn(change, view, part.gpu, width)
        lines += [f"    {sign} {what}" for sign, what in steps(part)]
        if part.kept:
            lines.append(f"      kept: {counts(part.kept)}")
        lines += _foreign_lines(view, part.gpu)
    for held in change.withheld:
        lines.append(f"  gpu{held.gpu} withheld: {counts(held.placements)}")
    if change.behind_fence:
        return lines
    before = slots.tally(view.slots[:-1])
    lines.append(f"  - Gres {_gres(before)}")
    lines.append(f"  + Gres {_gres(slots.tally(change.slots))}")
    lines.append(f"  expected: about {expected_s(change, view):.0f} s")
    return lines


def _foreign_lines(view: NodeView, index: int) -> Iterable[str]:
    """What of the kept is not Slurm's."""
    gpu = next(gpu for gpu in view.gpus if gpu.index == index)
    owners = {i.owner for i in gpu.instances if i.owner}
    for owner in sorted(owners):
        theirs = counts(i.placement for i in gpu.instances if i.owner == owner)
        yield f"      of it {owner}'s: {theirs}"


def _mig(view: NodeView, index: int) -> bool:
    return next(gpu.mig for gpu in view.gpus if gpu.index == index)


def _gres(tally: Mapping[str, int]) -> str:
    return ",".join(f"{t}:{n}" for t, n in tally.items())


def plan_json(plan: Plan, views: Sequence[NodeView]) -> dict[str, Any]:
    """What `plan_text` says, as plain values."""
    before = {view.name: slots.tally(view.slots[:-1]) for view in views}
    by_name = {view.name: view for view in views}
    quality = plan.quality
    return {
        "changes": [
            {
                "node": change.node,
                "serves": list(change.serves),
                "behind_fence": change.behind_fence,
                "withheld": [
                    {
                        "gpu": w.gpu,
                        "placements": sorted(map(str, w.placements)),
                        "jobs": list(w.jobs),
                    }
                    for w in change.withheld
                ],
                "gres_before": before[change.node],
                "gres_after": slots.tally(change.slots),
                "expected_s": round(expected_s(change, by_name[change.node]), 1),
                "gpus": [part_json(part) for part in change.gpus],
            }
            for change in plan.changes
        ],
        "startable": list(plan.startable),
        "notes": list(plan.notes),
        "refusals": [
            {"job": r.job_id, "wants": r.wants, "reason": r.reason} for r in plan.refusals
        ],
        "quality": None
        if quality is None
        else {
            "value": quality.value,
            "bound": quality.bound,
            "gap": quality.gap,
            "proven": quality.proven,
            "worth": quality.worth,
            "cost": quality.cost,
            "terms": dict(quality.terms),
            "withheld": dict(quality.withheld),
            "classes": quality.classes,
            "gpus": quality.gpus,
            "refused_by_hulls": quality.refused_by_hulls,
        },
    }


def part_json(part: GpuChange) -> dict[str, Any]:
    return {
        "gpu": part.gpu,
        "mig": part.mig,
        "kept": [str(p) for p in part.kept],
        "destroyed": [str(p) for p in part.destroyed],
        "created": [str(p) for p in part.created],
        "splits": [str(Cut(p, split)) for p, split in part.splits],
    }
