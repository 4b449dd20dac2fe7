"""The programme against brute force: every layout of every GPU, every choice of jobs.

The brute force knows the objective only as docs/planner.md words it, and the geometry only as
core/geometry has it.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from slurm_mig.core import geometry
from slurm_mig.core.model import Gpu, JobRequest, Layout, NodeView, Placement
from slurm_mig.core.planning import highs
from slurm_mig.core.planning.classes import problem
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.units import pools_of, units_of
from slurm_mig.core.planning.weights import Weights, level
from tests.unit.builders import A30, A100, gpu, job, node

CASES = 2000
WEIGHTS = Weights()
SMALL = ("1g.6gb", "2g.12gb", "4g.24gb")
LARGE = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
SLICES = {name: int(name[0]) for name in (*SMALL, *LARGE)}
ALL_LAYOUTS = {
    A30: [frozenset(), *geometry.layouts(gpu(A30), SMALL)],
    A100: [frozenset(), *geometry.layouts(gpu(A100), LARGE)],
}


@functools.cache
def largest_free(model: str, layout: Layout) -> int:
    return max(
        (
            p.size
            for profile in gpu(model).profiles
            for p in geometry.placements_of(profile)
            if not any(p.overlaps(other) for other in layout)
        ),
        default=0,
    )


@functools.cache
def displaced(layout: Layout, baseline: Layout) -> int:
    return sum(p.size for p in baseline - layout if any(p.overlaps(other) for other in layout))


def cost(board: Gpu, busy: Layout, baseline: Layout, target: Layout) -> int:
    """Points that it costs to make `target` of the GPU."""
    if target == board.layout:
        return 0
    created, destroyed = target - board.layout, board.layout - target
    new = busy | created
    return (
        WEIGHTS.publish
        + WEIGHTS.create * len(created)
        + WEIGHTS.destroy * len(destroyed)
        + WEIGHTS.room * (largest_free(board.model, busy) - largest_free(board.model, new))
        + WEIGHTS.baseline * (displaced(new, baseline) - displaced(busy, baseline))
    )


def offers(view: NodeView, position: int, baseline: Layout, wanted: Sequence[str]) -> dict[
    tuple[int, ...], int
]:  # fmt: skip
    """The least cost of each supply, over every layout of one GPU; its modes too."""
    board = view.gpus[position]
    busy = frozenset(
        p for i in view.busy if view.slots[i].gpu == board.index and (p := view.slots[i].placement)
    )
    best: dict[tuple[int, ...], int] = {}

    def note(supply: tuple[int, ...], points: int) -> None:
        best[supply] = min(points, best.get(supply, points))

    switching = WEIGHTS.publish + WEIGHTS.mode + WEIGHTS.reset * board.mode_needs_reset
    if not board.mig:
        held = any(view.slots[i].gpu == board.index for i in view.busy)
        note(tuple(int(t == "whole" and not held) for t in wanted), 0)
        if position in view.switchable and not held:
            for target in ALL_LAYOUTS[board.model]:
                supply = tuple(sum(p.profile == t for p in target) for t in wanted)
                note(supply, switching + WEIGHTS.create * len(target))
        return best
    for target in ALL_LAYOUTS[board.model]:
        if busy <= target:
            supply = tuple(sum(p.profile == t for p in target - busy) for t in wanted)
            note(supply, cost(board, busy, baseline, target))
    if position in view.switchable and not busy and "whole" in wanted:
        everything = sum(p.size for p in baseline)
        points = switching + WEIGHTS.destroy * len(board.layout) + WEIGHTS.baseline * everything
        points += WEIGHTS.room * largest_free(board.model, frozenset())
        note(tuple(int(t == "whole") for t in wanted), points)
    return best


def brute_force(
    views: Sequence[NodeView],
    baselines: dict[str, dict[int, Layout]],
    requests: Sequence[JobRequest],
) -> int:
    """The best value over every combination of layouts and every set of served jobs."""
    wanted = sorted({t for r in requests for t in r.gpus})
    highest = max(r.priority for r in requests)
    pool_of = {v.name: tuple(may_run(r, v) for r in requests) for v in views}
    pools = sorted(set(pool_of.values()))
    slices = {**SLICES, "whole": max(g.compute_slices for v in views for g in v.gpus)}
    by_pool = {p: {(0,) * len(wanted): 0} for p in pools}
    for view in views:
        pool = pool_of[view.name]
        for position in range(len(view.gpus)):
            baseline = baselines.get(view.name, {}).get(position, frozenset())
            mine = offers(view, position, baseline, wanted)
            together: dict[tuple[int, ...], int] = {}
            for (one, a), (other, b) in itertools.product(by_pool[pool].items(), mine.items()):
                supply = tuple(x + y for x, y in zip(one, other, strict=True))
                together[supply] = min(a + b, together.get(supply, a + b))
            by_pool[pool] = together
    best = 0
    for where in _placings(requests, pools):
        value, needs = 0, {p: [0] * len(wanted) for p in pools}
        for request, chosen in zip(requests, where, strict=True):
            if chosen is None:
                continue
            size = sum(n * slices[t] for t, n in request.gpus.items())
            value += WEIGHTS.job * level(request.priority, highest) * size
            for t, n in request.gpus.items():
                needs[chosen][wanted.index(t)] += n
        prices = []
        for pool in pools:
            enough = [
                points
                for supply, points in by_pool[pool].items()
                if all(a >= b for a, b in zip(supply, needs[pool], strict=True))
            ]
            if not enough:
                break
            prices.append(min(enough))
        else:
            best = max(best, value - sum(prices))
    return best


def may_run(request: JobRequest, view: NodeView) -> bool:
    """True if the node could ever be what the job asks for. Nodes alike in this are one pool."""
    possible = {
        name
        for g in view.gpus
        for name in ([p.name for p in g.profiles] if g.mig or g.index in view.switchable else [])
    }
    if any(g.index in view.switchable or not g.mig for g in view.gpus):
        possible.add("whole")
    return request.partition in view.slurm.partitions and set(request.gpus) <= possible


def _placings(
    requests: Sequence[JobRequest], pools: Sequence[tuple[bool, ...]]
) -> Iterator[tuple[tuple[bool, ...] | None, ...]]:
    """Every way to serve each job in one pool, or not at all."""
    choices = [(None, *(p for p in pools if p[n])) for n in range(len(requests))]
    yield from itertools.product(*choices)


def random_node(dice: random.Random, number: int) -> tuple[NodeView, dict[int, Layout]]:
    model = dice.choice((A30, A30, A100))
    boards, baselines = [], {}
    for index in range(dice.choice((1, 2))):
        layout: tuple[Placement, ...] = tuple(dice.choice(ALL_LAYOUTS[model]))
        boards.append(gpu(model, index, *layout))
        if dice.random() < 0.5:
            baselines[index] = frozenset(dice.choice(ALL_LAYOUTS[model]))
        if dice.random() < 0.15:
            boards[-1] = replace(boards[-1], mig=False, instances=())
        if dice.random() < 0.5:
            boards[-1] = replace(boards[-1], mode_needs_reset=False)
    view = node(boards, name=f"n{number}")
    there = [i for i, d in enumerate(view.slots[:-1]) if not d.type.startswith("off")]
    taken = [i for i in there if dice.random() < 0.4]
    view = node(boards, {900: taken}, name=f"n{number}")
    partitions = frozenset({dice.choice(("left", "right")), "all"})
    switchable = frozenset(i for i in range(len(boards)) if dice.random() < 0.3)
    view = replace(
        view,
        slurm=replace(view.slurm, partitions=partitions),
        switchable=switchable,
        whole_types=dict.fromkeys(range(len(boards)), "whole"),
    )
    return view, baselines


def random_case(
    seed: int,
) -> tuple[list[NodeView], dict[str, dict[int, Layout]], list[JobRequest]]:
    dice = random.Random(seed)
    made = [random_node(dice, n) for n in range(dice.choice((1, 2, 2)))]
    requests = []
    for number in range(dice.randint(1, 4)):
        kinds = dice.sample((*SMALL, *LARGE, "whole"), dice.choice((1, 1, 1, 2)))
        requests.append(
            job(
                number + 1,
                {t: dice.choice((1, 1, 2)) for t in kinds},
                partition=dice.choice(("left", "right", "all")),
                priority=dice.choice((0, 10, 500, 1000)),
            )
        )
    views = [view for view, _ in made]
    return views, {view.name: found for view, found in made}, requests


def best_value(
    views: Sequence[NodeView],
    baselines: dict[str, dict[int, Layout]],
    requests: Sequence[JobRequest],
) -> int:
    fleet = Fleet(views, baselines, {})
    units = units_of(requests, fleet, WEIGHTS)
    built = problem(fleet, pools_of(fleet, units), units, WEIGHTS, tight=False)
    found = highs.solve(built.programme, 30)
    assert found.gap == 0
    return found.value


def test_the_same_value_as_brute_force() -> None:
    worthwhile = 0
    for seed in range(CASES):
        views, baselines, requests = random_case(seed)
        expected = brute_force(views, baselines, requests)
        assert best_value(views, baselines, requests) == expected, seed
        worthwhile += expected > 0
    assert worthwhile > CASES / 3


def test_another_gpu_is_never_worse() -> None:
    for seed in range(150):
        views, baselines, requests = random_case(seed)
        more = node([gpu(random.Random(seed).choice((A30, A100)))], name="more")
        more = replace(more, slurm=replace(more.slurm, partitions=frozenset({"left", "all"})))
        before = best_value(views, baselines, requests)
        assert best_value([*views, more], baselines, requests) >= before, seed


def test_another_job_never_makes_it_worth_less() -> None:
    for seed in range(150):
        views, baselines, requests = random_case(seed)
        more = job(99, {"2g.10gb": 1}, partition="all", priority=0)
        before = best_value(views, baselines, requests)
        assert best_value(views, baselines, [*requests, more]) >= before, seed


def test_the_order_of_nodes_changes_nothing() -> None:
    for seed in range(150):
        views, baselines, requests = random_case(seed)
        before = best_value(views, baselines, requests)
        assert best_value(views[::-1], baselines, requests[::-1]) == before, seed
