"""What waits, as the planner sees it: units that start together, and the nodes where they may.

Nodes on which the same jobs may run form a pool.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from slurm_mig.core import conditions
from slurm_mig.core.model import JobRequest, SlurmNode
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.weights import Weights, level

Kind = tuple[Hashable, ...]
"""All that decides on which nodes a job may run at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Size:
    """All that decides where a job fits. Of each there is one object, so that thousands of jobs
    are told apart by identity."""

    kind: Kind
    gpus: tuple[tuple[str, int], ...]
    example: JobRequest
    """One of the jobs, for its nodes, CPUs and memory."""

    def slices(self, of_type: Mapping[str, int]) -> int:
        """Compute slices that one such job gets."""
        return slices_wanted(self.example, of_type)


@dataclass(frozen=True, slots=True)
class Unit:
    """What starts together: a job, a task of an array, or a heterogeneous job with all its
    components. Two tasks of one array are equal, and two units."""

    requests: tuple[JobRequest, ...]
    value: int
    """Points for serving it."""
    sizes: tuple[Size, ...]
    """Of each of its requests."""
    capped: Mapping[str, str] = field(default_factory=dict)
    """Nodes on which it may cause no change, as others of its user or account may, and why."""

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
    admitting: Mapping[Kind, tuple[int, ...]]

    def eligible(self, size: Size) -> tuple[int, ...]:
        """The pools that jobs of the size may use."""
        return self.admitting.get(size.kind, ())

    def single(self) -> Pools:
        """The same with each node a pool of its own."""
        admitting = {
            kind: tuple(sorted(at for pool in pools for at in self.nodes[pool]))
            for kind, pools in self.admitting.items()
        }
        positions = tuple(range(len(self.of_node)))
        return Pools(positions, tuple((at,) for at in positions), admitting)


def slices_wanted(request: JobRequest, of_type: Mapping[str, int]) -> int:
    """Compute slices that the job gets, by those of each type."""
    return request.nodes * sum(n * of_type.get(t, 1) for t, n in request.gpus.items())


def worth_of(
    request: JobRequest, of_type: Mapping[str, int], highest: int, weights: Weights
) -> int:
    """Points for serving the job, in a queue whose highest priority is that."""
    return weights.job * level(request.priority, highest) * slices_wanted(request, of_type)


class _Sizes:
    """Finds each request's size."""

    def __init__(self, *, timed: bool) -> None:
        self._timed = timed
        self._known: dict[Hashable, Size] = {}

    def of(self, request: JobRequest) -> Size:
        gpus = tuple(request.gpus.items())
        if len(gpus) > 1:
            gpus = tuple(sorted(gpus))
        kind = (
            request.partition,
            request.features,
            request.required_nodes,
            request.excluded_nodes,
            request.reservation,
            request.exclusive,
            request.time_limit_s if self._timed else 0,
            tuple(t for t, _ in gpus),
        )
        key = (kind, gpus, request.nodes, request.cpus, request.memory_mib)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Size(kind, gpus, request)
        return found


def admits(node: SlurmNode, request: JobRequest) -> bool:
    """True if the job may run on the node, its gpus and its load apart."""
    if node.name in request.excluded_nodes:
        return False
    if request.required_nodes and node.name not in request.required_nodes:
        return False
    if not conditions.shared(node, request):
        return False
    if request.features and not any(wanted <= node.features for wanted in request.features):
        return False
    return not conditions.barred(node, request)


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
    requests: Sequence[JobRequest], fleet: Fleet, weights: Weights, most_tasks: int = 1 << 20
) -> list[Unit]:
    """Requests to units, in their order, with what each is worth; of an array no more tasks than
    `most_tasks`."""
    together: dict[tuple[bool, int], list[JobRequest]] = {}
    for n, request in enumerate(requests):
        # Slurm starts a heterogeneous job whole or not at all.
        key = (True, request.het_job) if request.het_job else (False, n)
        together.setdefault(key, []).append(request)
    highest = max((r.priority for r in requests), default=0)
    known = _Sizes(timed=fleet.timed)
    slices = slices_of(fleet)
    units = []
    for parts in together.values():
        sizes = tuple(map(known.of, parts))
        amount = sum(size.slices(slices) for size in sizes)
        points = weights.job * level(parts[0].priority, highest) * amount
        tasks = max(1, min(parts[0].tasks, most_tasks))
        units += [Unit(tuple(parts), points, sizes)] * tasks
    return units


def pools_of(fleet: Fleet, units: Sequence[Unit]) -> Pools:
    """The nodes by what may run on them."""
    sizes = dict.fromkeys(size for unit in units for size in unit.sizes)
    kinds: dict[Kind, JobRequest] = {}
    for size in sizes:
        kinds.setdefault(size.kind, size.example)
    wanted = list(kinds.values())
    named = frozenset(n for r in wanted for n in r.required_nodes | r.excluded_nodes)
    known: dict[Hashable, frozenset[int]] = {}
    numbers: dict[frozenset[int], int] = {}
    pool_of: list[int] = []
    pools: list[list[int]] = []
    for position, node in enumerate(fleet.nodes):
        slurm = node.view.slurm
        name = slurm.name if slurm.name in named or slurm.reservations else ""
        alike = (slurm.partitions, slurm.features, name, bool(slurm.cpus_alloc), node.possible)
        admitted = known.get(alike)
        if admitted is None:
            admitted = known[alike] = frozenset(
                n for n, r in enumerate(wanted) if node.possible >= r.gpus.keys()
                and admits(slurm, r)
            )  # fmt: skip
        pool = numbers.setdefault(admitted, len(numbers))
        if pool == len(pools):
            pools.append([])
        pools[pool].append(position)
        pool_of.append(pool)
    admitting = {
        key: tuple(pool for admitted, pool in numbers.items() if n in admitted)
        for n, key in enumerate(kinds)
    }
    return Pools(tuple(pool_of), tuple(map(tuple, pools)), admitting)
