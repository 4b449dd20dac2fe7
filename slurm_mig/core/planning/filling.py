"""What becomes of the room that a change leaves on its GPU: the shapes that the jobs that still
wait ask for, the most wanted first. What is left then is filled from the baseline
(`planner.change_of`).

No GPU is changed for this, and nothing idle is destroyed: the change happens anyway, and a few
instances more cost next to nothing now and spare a reshape later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from slurm_mig.core.model import JobRequest
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.limits import MOST
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.shapes import Shape
from slurm_mig.errors import ArrangementError


def waiting_mix(requests: Iterable[JobRequest]) -> Counter[str]:
    """Instances by type that these jobs ask for, all their nodes and tasks together."""
    mix: Counter[str] = Counter()
    for request in requests:
        for gres_type, count in request.gpus.items():
            mix[gres_type] += count * request.nodes * max(1, request.tasks)
    return mix


def fill(
    fleet: Fleet, mix: Counter[str], slices: Mapping[str, int], left_out: Collection[str]
) -> None:
    """Give the room on GPUs that change to the waiting mix, which it uses up; `left_out` are nodes
    whose room is the baseline's alone."""
    wanted = sorted(mix, key=lambda t: (-mix[t] * slices.get(t, 1), t))
    known: dict[tuple[int, int], list[tuple[str, list[int]]]] = {}
    for node in fleet.nodes:
        if node.name not in left_out:
            for position, draft in enumerate(node.drafts):
                if draft.target is not None and draft.mig_after:
                    key = id(draft.shape), draft.after
                    if key not in known:
                        known[key] = _fitting(draft.shape, draft.after, wanted)
                    if known[key]:
                        _fill(node, position, known[key], mix)


def _fitting(shape: Shape, there: int, wanted: Iterable[str]) -> list[tuple[str, list[int]]]:
    """By type, the placements that fit beside what is there."""
    used = shape.compute_of(there)
    found = []
    for gres_type in wanted:
        numbers = shape.numbers(shape.of_profile.get(gres_type, 0) & ~there)
        if able := [n for n in numbers if shape.addable(there, used, n)]:
            found.append((gres_type, able))
    return found


def _fill(
    node: Node, position: int, fitting: Iterable[tuple[str, list[int]]], mix: Counter[str]
) -> None:
    draft = node.drafts[position]
    capped = {t for t, sign in node.budget.keys if sign == MOST} if node.budget else set()
    for gres_type, numbers in fitting:
        for number in numbers:
            there = draft.after
            fits = draft.shape.addable(there, draft.shape.compute_of(there), number)
            if mix[gres_type] <= 0 or gres_type in capped or not fits:
                continue
            draft.filled |= 1 << number
            node.idle_of[gres_type] += 1
            try:
                node.arranged()
            except ArrangementError:
                draft.filled &= ~(1 << number)
                node.idle_of[gres_type] -= 1
            else:
                mix[gres_type] -= 1
