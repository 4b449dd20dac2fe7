"""Small questions that the planner asks of nodes and changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from slurm_mig.core.changes import NodeChange
from slurm_mig.core.model import is_filler
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.units import Pools, Size


def urgency(change: NodeChange, order: Mapping[int, int]) -> int:
    """The place in the queue of the first job that a change is for: it goes first."""
    jobs = {*change.serves, *(job for held in change.withheld for job in held.jobs)}
    return min((order[job] for job in jobs if job in order), default=len(order))


def ending(node: Node, until: float) -> Counter[str]:
    """Devices of a node that jobs will have left by then, by type."""
    return Counter(
        node.view.slots[index].type
        for allocation in node.view.slurm.allocations
        if 0 < allocation.end_time <= until
        for index in allocation.indexes
        if index < len(node.view.slots) and not is_filler(node.view.slots[index].type)
    )


def where(size: Size, pools: Pools, fleet: Fleet, soon: Sequence[Counter[str]]) -> int | None:
    """A node on which the job can start when what ends soon has ended."""
    for pool in pools.eligible(size):
        for at in pools.nodes[pool]:
            if any(soon[at].values()) and all(
                soon[at][t] + len(fleet.nodes[at].free.get(t, ())) >= n for t, n in size.gpus
            ):
                return at
    return None
