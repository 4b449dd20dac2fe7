"""Each GPU as a strip of its memory slices, and who has what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from slurm_mig.core import monitoring
from slurm_mig.core.model import Gpu, Instance, NodeCondition, NodeView, Place, Placement
from slurm_mig.report.elements import Child, Element, h, moment

STATES: Mapping[str, str] = {
    "allocated": "in use by a job",
    "held": "held by a process without a job",
    "withheld": "kept for a waiting job",
    "outside": "not Slurm's",
    "free": "free",
    "uncut": "not cut",
}
"""What a slice does, in the legend's words. Each has its colour, its pattern and its label."""


def legend() -> Element:
    """What the patterns mean; the same element as a box of a strip."""
    items = [
        h("li", h("span", class_=f"key {state}", aria_hidden="true"), text)
        for state, text in STATES.items()
    ]
    return h("ul", items, class_="legend", aria_label="Legend")


def slices(views: Iterable[NodeView]) -> Counter[str]:
    """Memory slices by what they do; a GPU without MIG counts as eight."""
    count: Counter[str] = Counter()
    for view in views:
        owners = monitoring.owners(view)
        for gpu in view.all_gpus:
            for size, place in _boxes(gpu):
                count[_state(owners, gpu, place)] += size
    return count


def node(view: NodeView) -> Element:
    """A node with its GPUs."""
    owners = monitoring.owners(view)
    users = {a.job_id: (a.user, a.end_time) for a in view.slurm.allocations}
    state = "+".join(sorted(view.slurm.states))
    head: list[Element] = [h("h3", view.name), h("span", state, class_="state")]
    if view.condition is not NodeCondition.USABLE:
        # Its fence is a moment of ours, everything else is for a person to know.
        kind = "state ours" if view.condition is NodeCondition.OURS else "state warn"
        head.append(h("span", view.condition.value, class_=kind))
    parts: list[Element] = [h("header", head)]
    if view.note:
        parts.append(h("p", view.note, class_="note"))
    parts += [_gpu(gpu, owners, users) for gpu in view.all_gpus]
    if not view.all_gpus:
        parts.append(h("p", "Its GPUs could not be looked at.", class_="note"))
    return h("section", parts, class_="node", id=f"node-{view.name}")


def _gpu(
    gpu: Gpu, owners: Mapping[Place, tuple[str, str]], users: Mapping[int, tuple[str, int]]
) -> Element:
    boxes = list(_boxes(gpu))
    total = sum(size for size, _ in boxes)
    model = gpu.model.removeprefix("NVIDIA ")
    strip = h(
        "div",
        [_box(size, gpu, place, owners, users) for size, place in boxes],
        class_="strip",
        style=f"grid-template-columns: repeat({total}, minmax(0, 1fr))",
    )
    return h("div", h("div", h("b", f"GPU {gpu.index}"), h("span", model), class_="gpu-name"),
             strip, class_="gpu")  # fmt: skip


def _box(
    size: int,
    gpu: Gpu,
    place: Placement | None,
    owners: Mapping[Place, tuple[str, str]],
    users: Mapping[int, tuple[str, int]],
) -> Element:
    state = _state(owners, gpu, place)
    style = f"grid-column: span {size}"
    if state == "uncut":
        return h("div", class_="box uncut", style=style, title=f"not cut: {size} memory slices")
    who = owners.get((gpu.index, place), ("", gpu.owner))[1] or "free"
    name = place.profile if place else "whole GPU"
    said = f"{name}{f' at slice {place.start}' if place else ''}: {STATES[state]}"
    user = ""
    if state == "allocated":
        user, end = users.get(int(who.rpartition(" ")[2]), ("", 0))
        said += f", {who}{f' of {user}' if user else ''}{f', until {moment(end)}' if end else ''}"
    return h(
        "div", h("b", _breakable(name)), h("span", who), h("small", user),
        class_=f"box {state} size{min(size, 4)}", style=style, title=said,
    )  # fmt: skip


def _breakable(name: str) -> list[Child]:
    """A profile's name that a narrow box breaks after a dot or plus."""
    parts = re.split(r"(?<=[.+])", name)
    return [child for part in parts for child in (part, h("wbr"))][:-1]


def _boxes(gpu: Gpu) -> Iterable[tuple[int, Placement | None]]:
    """(memory slices, what is there) from left to right; of a whole GPU one box, None. Room that
    is not cut is a placement without a profile."""
    if not gpu.mig or (gpu.owner and not gpu.instances):
        yield gpu.memory_slices or 8, None
        return
    at = 0
    for instance in gpu.instances:
        place = instance.placement
        if place.start > at:
            yield place.start - at, Placement(at, place.start - at, "")
        yield from _devices(instance)
        at = place.start + place.size
    if at < gpu.memory_slices:
        yield gpu.memory_slices - at, Placement(at, gpu.memory_slices - at, "")


def _devices(instance: Instance) -> Iterable[tuple[int, Placement]]:
    """An instance, or its parts: each as wide as it has compute slices, the last the rest."""
    left = instance.placement.size
    parts = [] if instance.owner else list(instance.parts.items())
    for part, compute in parts[:-1]:
        yield compute.slices, part
        left -= compute.slices
    yield left, parts[-1][0] if parts else instance.placement


def _state(owners: Mapping[Place, tuple[str, str]], gpu: Gpu, place: Placement | None) -> str:
    if place is not None and not place.profile:
        return "uncut"
    return owners.get((gpu.index, place), ("outside", ""))[0]


def share_bar(count: Mapping[str, int]) -> Element:
    """One bar of all slices, by what they do."""
    total = sum(count.values()) or 1
    parts: Sequence[Element] = [
        h("span", class_=state, style=f"width: {100 * count[state] / total:.2f}%",
          title=f"{STATES[state]}: {count[state]} of {total} memory slices")
        for state in STATES if count.get(state)
    ]  # fmt: skip
    text = ", ".join(f"{100 * count[s] / total:.0f} % {STATES[s]}" for s in STATES if count.get(s))
    return h(
        "div", h("div", parts, class_="share", aria_hidden="true"), h("p", text, class_="note")
    )
