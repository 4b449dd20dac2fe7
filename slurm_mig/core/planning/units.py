"""What waits, as the planner sees it: units that start together, and the nodes where they may.

Nodes on which the same jobs may run form a pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.core.model import JobRequest, SlurmNode
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.weights import Weights, level

Where = tuple[str, tuple[frozenset[str], ...], frozenset[str], frozenset[str]]
"""What a job asks of a node's name and properties: partition, features, required, excluded."""

Kind = tuple[Where, frozenset[str]]
"""That, and the types that the node must be able to have."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What starts together: a job, a task of an array, or a heterogeneous job with all its
    components. Two tasks of one array are equal, and two units."""

    requests: tuple[JobRequest, ...]
    value: int
    """Points for serving it."""

    @property
    def job_id(self) -> int:
        return self.requests[0].job_id

    @property
    def several(self) -> bool:
        """It needs more than one instance: they must come together somehow."""
        return len(self.requests) > 1 or any(
            r.nodes > 1 or sum(r.gpus.values()) > 1 for r in self.requests
        )


@dataclass(frozen=True)
class Pools:
    """Nodes on which the same jobs may run."""

    of_node: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]
    """Positions of the nodes of each pool."""
    eligible: Mapping[Kind, tuple[int, ...]]
    """The pools that each kind of job may use."""


def where(request: JobRequest) -> Where:
    return (request.partition, request.features, request.required_nodes, request.excluded_nodes)


def kind(request: JobRequest) -> Kind:
    return where(request), frozenset(request.gpus)


def admits(place: Where, node: SlurmNode) -> bool:
    """True if a job that asks for this may run on the node, its load apart."""
    partition, features, required, excluded = place
    if node.name in excluded or (required and node.name not in required):
        return False
    if not any(p in node.partitions for p in partition.split(",")):
        return False
    return not features or any(wanted <= node.features for wanted in features)


def slices_of(fleet: Fleet) -> dict[str, int]:
    """Compute slices by type; a whole GPU has all of its model, or 7 where that is unknown."""
    found: dict[str, int] = {}
    for shape in fleet.shapes:
        for name, profile in shape.profiles.items():
            found[name] = max(found.get(name, 0), profile.compute_slices)
    for node in fleet.nodes:
        for draft in node.drafts:
            if draft.whole_type:
                mine = draft.shape.compute_slices or 7
                found[draft.whole_type] = max(found.get(draft.whole_type, 0), mine)
    return found


def units_of(
    requests: Sequence[JobRequest],
    slices: Mapping[str, int],
    weights: Weights,
    most_tasks: int = 1 << 20,
) -> list[Unit]:
    """Requests to units, in their order, with what each is worth; of an array no more tasks than
    `most_tasks`."""
    together: dict[tuple[str, int], list[JobRequest]] = {}
    for n, request in enumerate(requests):
        key = ("het", request.het_job) if request.het_job else ("job", n)
        together.setdefault(key, []).append(request)
    highest = max((r.priority for r in requests), default=0)
    units = []
    for parts in together.values():
        size = sum(r.nodes * n * slices.get(t, 1) for r in parts for t, n in r.gpus.items())
        points = weights.job * level(parts[0].priority, highest) * size
        tasks = max(1, min(parts[0].tasks, most_tasks))
        units += [Unit(tuple(parts), points) for _ in range(tasks)]
    return units


def pools_of(fleet: Fleet, units: Sequence[Unit]) -> Pools:
    """The nodes by what may run on them."""
    kinds = list(dict.fromkeys(kind(r) for u in units for r in u.requests))
    named = frozenset(n for (_, _, required, excluded), _ in kinds for n in required | excluded)
    known: dict[tuple[object, ...], frozenset[int]] = {}
    numbers: dict[frozenset[int], int] = {}
    pool_of: list[int] = []
    pools: list[list[int]] = []
    for position, node in enumerate(fleet.nodes):
        slurm = node.view.slurm
        name = slurm.name if slurm.name in named else ""
        alike = (slurm.partitions, slurm.features, name, node.possible)
        admitted = known.get(alike)
        if admitted is None:
            admitted = known[alike] = frozenset(
                n
                for n, (place, types) in enumerate(kinds)
                if types <= node.possible and admits(place, slurm)
            )
        pool = numbers.setdefault(admitted, len(numbers))
        if pool == len(pools):
            pools.append([])
        pools[pool].append(position)
        pool_of.append(pool)
    eligible = {
        wanted: tuple(pool for admitted, pool in numbers.items() if n in admitted)
        for n, wanted in enumerate(kinds)
    }
    return Pools(tuple(pool_of), tuple(map(tuple, pools)), eligible)
