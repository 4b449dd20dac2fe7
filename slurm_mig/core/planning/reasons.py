"""Why a job gets nothing: said of its nodes, in words that an administrator can check."""

from __future__ import annotations

from collections.abc import Sequence

from slurm_mig.core import conditions
from slurm_mig.core.draft import NodeDraft, not_now
from slurm_mig.core.model import JobRequest, NodeView, is_filler
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.options import Option
from slurm_mig.core.planning.tables import Tables
from slurm_mig.core.planning.weights import Weights
from slurm_mig.errors import ArrangementError

NAMED = 8
"""How many running jobs a reason names at most."""


def impossible(views: Sequence[NodeView], request: JobRequest) -> str:
    """Says so when no GPU of the job's partition can ever have what it asks for."""
    here = [v for v in views if conditions.shared(v.slurm, request)]
    known = {t for view in here for t in view.possible}
    known |= {d.type for view in here for d in view.slots if not is_filler(d.type)}
    known |= {t for view in here for t in view.whole_types.values()}
    for view in here:
        cut = (g for g in view.gpus if g.mig or g.index in view.switchable)
        known |= {p.name for g in cut for p in g.profiles}
    for gres_type in request.gpus:
        if gres_type not in known:
            return (
                f"no managed GPU of partition {request.partition} can ever be {gres_type!r}; "
                f"possible: {', '.join(sorted(known)) or 'none'}"
            )
    return ""


class Reasons:
    """Looks at nodes; what is asked for often is worked out once."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, ...], Tables] = {}

    def on_node(self, node: Node, draft: NodeDraft, request: JobRequest, frozen: str) -> str:
        """Why one node does nothing for the job now; empty when it could, at some cost."""
        if reason := not_now(draft, request):
            return reason
        if frozen:
            return f"{node.name}: {frozen}"
        types = tuple(sorted(request.gpus))
        tables = self._tables.setdefault(types, Tables(types, Weights()))
        trial = node
        for n, gres_type in enumerate(types):
            while len(trial.free.get(gres_type, ())) < request.gpus[gres_type]:
                ways = _ways(trial, tables, n)
                if not ways:
                    return f"{node.name}: {_cooling(node) or _in_the_way(node, gres_type)}"
                allowed = [way for way in ways if _within_limits(trial, way)]
                if trial.budget and not allowed:
                    _, position, option = ways[0]
                    return f"{node.name}: {trial.budget.reason(trial.use(position, option))}"
                trial = node.copy() if trial is node else trial
                trial.change(*allowed[0][1:])
        try:
            trial.arranged()
        except ArrangementError as error:
            return f"{node.name}: {error}"
        return ""


Way = tuple[int, int, Option]
"""Cost, position of the GPU, and what it becomes."""


def _ways(node: Node, tables: Tables, wanted: int) -> list[Way]:
    """The changes that give more of the type, whatever hulls need; the cheapest first."""
    ways = [
        (option.cost, position, option)
        for position, options in enumerate(tables.of_node(node))
        if node.drafts[position].target is None
        for option in options[1:]
        if option.supply[wanted] > options[0].supply[wanted]
    ]
    return sorted(ways, key=lambda way: way[:2])


def _within_limits(node: Node, way: Way) -> bool:
    return node.budget is None or node.budget.allows(node.use(*way[1:]))


def _cooling(node: Node) -> str:
    """Why single GPUs may not change now."""
    said = [f"GPU {d.gpu.index} {d.frozen}" for d in node.drafts if d.frozen]
    return ", ".join(said)


def _in_the_way(node: Node, gres_type: str) -> str:
    """Names the jobs or processes that hold every place for the type on the node."""
    able = {
        d.gpu.index
        for d in node.drafts
        if (d.gpu.mig and gres_type in d.shape.profiles) or d.whole_type == gres_type
    }
    able |= {d.gpu for d in node.view.slots if d.type == gres_type}
    if not able:
        return f"no GPU can be cut into {gres_type}"
    view = node.view
    holders = sorted(
        {
            allocation.job_id
            for allocation in view.slurm.allocations
            for index in allocation.indexes
            if index < len(view.slots) and view.slots[index].gpu in able
        }
    )
    pids = sorted(
        {pid for g in view.gpus if g.index in able for i in g.instances for pid in i.pids}
    )
    others = ", ".join(f"job {job}" for job in holders[:NAMED])
    if len(holders) > NAMED:
        others += f" and {len(holders) - NAMED} more"
    if not others and pids:
        others = f"processes {', '.join(map(str, pids))}"
    return f"no room for {gres_type}: in use by {others or 'waiting jobs of higher priority'}"
