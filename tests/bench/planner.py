"""The planner against straightforward models of the same problem, and against first-fit.

    scripts/bench planner [--json] [--sizes 8,80,800,8000] [--baselines 8,80] [--cap SECONDS]
                          [--stating SECONDS] [--memory GIB] [--solvers cp_sat,highs]

Random clusters of mixed models, 60 % of the instances busy (tests/bench/planning/sample.py says
how), with random queues. What is timed is what a cycle does with what it observed: the clock starts
with the nodes and jobs as plain values and stops with the plan, whose every claim has been checked
and whose every refusal has its reason. Nothing is kept from one round to the next but what a loop's
cycles keep: what can be made of a GPU model's states (`options.table_of`); `first` is without. Not
in it: what observing costs (the network's), and the import of the solver, once in a process
(`import_solver_s`).

The baselines get the same demand and the same objective: one variable for each GPU and placement,
and for each job and node, in OR-Tools' CP-SAT and in HiGHS, one thread, `--cap` seconds
after `--stating` ones at most to state the problem, and `--memory` each; and first-fit, job by job.
Larger sizes for `--baselines` take minutes. Every plan is replayed on the simulated NVML.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from slurm_mig.core import demand, geometry, planner
from slurm_mig.core.changes import GpuChange, NodeChange, Plan
from slurm_mig.core.model import Gpu, Layout, NodeView, is_filler
from slurm_mig.core.planning import highs
from slurm_mig.core.planning.classes import Problem, problem
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.options import table_of
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.units import Pools, Unit, pools_of, units_of
from slurm_mig.core.planning.weights import Weights
from slurm_mig.errors import SlurmMigError
from tests.bench.claims import Claim, show
from tests.bench.planning.replay import impossible
from tests.bench.planning.sample import Sample, sample
from tests.bench.planning.ungrouped import Answer, Ungrouped

T = TypeVar("T")

JOBS = {8: 40, 80: 200, 800: 1000, 8000: 10_000}
ROUNDS = 3
LONG_S = 10.0
"""What took so long is not measured again."""
LARGEST = 8000


@dataclass(frozen=True)
class Cap:
    """What each baseline may take."""

    seconds: float = 90.0
    """For solving."""
    stating_s: float = 90.0
    memory_gib: float = 6.0
    solvers: tuple[str, ...] = ("cp_sat", "highs")


@dataclass(frozen=True)
class Stated:
    """A sample as all solvers get it: what starts as it is has been set aside."""

    fleet: Fleet
    pools: Pools
    unmet: list[Unit]

    def problem(self) -> Problem:
        return problem(self.fleet, self.pools, self.unmet, Weights())


def stated(given: Sample) -> Stated:
    fleet = Fleet(given.views, {}, {})
    units = units_of(demand.waiting(given.requests), fleet, Weights())
    pools = pools_of(fleet, units)
    places = Places(fleet, pools)
    return Stated(fleet, pools, [unit for unit in units if not places.place(unit)])


def timed(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median seconds."""
    times = []
    for _ in range(rounds):
        gc.collect()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ours(size: int, given: Sample) -> tuple[list[Claim], Plan]:
    """The planner on one size: its time, its proof, and the bare solving of the programme."""
    waiting = demand.waiting(given.requests)
    rules = Rules(time_limit_s=90.0)
    made = plan(given.views, waiting, {}, rules)
    seconds = timed(lambda: plan(given.views, waiting, {}, rules))
    quality = made.quality
    assert quality is not None
    programme = stated(given).problem().programme
    solving = timed(lambda: highs.solve(programme, 90.0))
    solution = highs.solve(programme, 90.0)
    largest = size == LARGEST
    return [
        Claim(f"plan_{size}_s", seconds, "s", "<= 1" if largest else ""),
        Claim(f"plan_{size}_solve_s", solving, "s"),
        Claim(f"plan_{size}_classes", quality.classes, ""),
        Claim(f"plan_{size}_gap", solution.gap, "", "<= 0" if largest else ""),
        Claim(f"plan_{size}_node_gap", quality.gap, ""),
        Claim(f"plan_{size}_value", quality.value, ""),
    ], made


def in_time(work: Callable[[], T], seconds: float, memory_gib: float) -> T | None:
    """The result of something that knows no limits, from a process that is ended after so long, or
    where it wants more memory."""
    context = get_context("fork")
    mine, other = context.Pipe(duplex=False)

    def send(to: Connection) -> None:
        most = round(memory_gib * (1 << 30))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            to.send(work())
        except MemoryError:
            note("  out of memory")
        except SlurmMigError as error:
            note(f"  {error}")
        to.close()

    process = context.Process(target=send, args=(other,))
    process.start()
    other.close()
    result = None
    if mine.poll(seconds):
        try:
            result = mine.recv()
        except EOFError:
            note("  ended without an answer")
    else:
        process.kill()
    process.join()
    return result


def first_fit(given: Sample, cap: Cap) -> tuple[float, int] | None:
    """Seconds, and the value by the same objective; None when it does not end in time."""
    waiting = demand.waiting(given.requests)

    def work() -> tuple[float, int]:
        start = time.perf_counter()
        made = planner.plan(given.views, waiting)
        return time.perf_counter() - start, value_of(given.views, made, given)

    return in_time(work, cap.seconds, cap.memory_gib)


def value_of(views: Sequence[NodeView], made: Plan, given: Sample) -> int:
    """The objective of any plan: what the jobs are worth that start, on what it changes or as they
    are, less what its changes cost."""
    fleet, weights = Fleet(views, {}, {}), Weights()
    worth = {
        unit.job_id: unit.value for unit in units_of(demand.waiting(given.requests), fleet, weights)
    }
    value = sum(
        worth[job]
        for job in {*made.startable, *(j for change in made.changes for j in change.serves)}
    )
    drafts = {(node.name, draft.gpu.index): draft for node in fleet.nodes for draft in node.drafts}
    costs = (
        price(drafts[change.node, part.gpu], part, weights)
        for change in made.changes
        for part in change.gpus
    )
    known = {view.name: view for view in views}
    twice = sum(twice_registered(known[change.node], change) for change in made.changes)
    return value - sum(costs) - weights.twice * twice


def twice_registered(view: NodeView, change: NodeChange) -> bool:
    """A type goes from the node while jobs use others."""
    gone = {d.type for d in view.slots} - {d.type for d in change.slots}
    return bool(view.slurm.allocations) and not all(map(is_filler, gone))


def price(draft: Draft, part: GpuChange, weights: Weights) -> int:
    """What one GPU's change costs."""
    busy = draft.shape.layout(draft.busy)
    room = largest_free(draft.gpu, busy) - largest_free(draft.gpu, busy.union(part.created))
    return (
        weights.publish
        + weights.create * len(part.created)
        + weights.destroy * len(part.destroyed)
        + weights.room * room
    )


def largest_free(gpu: Gpu, layout: Layout) -> int:
    clear = (
        p.size
        for profile in gpu.profiles
        for p in geometry.placements_of(profile)
        if not any(p.overlaps(other) for other in layout)
    )
    return max(clear, default=0)


@dataclass(frozen=True)
class Compared:
    """Ours and another solver on the same programme, in turn in one process: median seconds, from
    what waits and what is there to the answer."""

    mine_s: float
    """As in a loop's cycles: what can be made of a GPU model is known from the one before."""
    first_s: float
    """As in a process's first cycle."""
    other_s: float
    answer: Answer


def compared(of: Stated, name: str, cap: Cap) -> Compared | None:
    """One solver beside ours; None when it has no answer in its time and memory."""
    importlib.import_module("ortools.sat.python.cp_model" if name == "cp_sat" else "highspy")
    tables = of.problem().tables

    def other() -> Answer:
        start = time.perf_counter()
        model = Ungrouped(of.fleet, of.pools, of.unmet, tables, Weights())
        told("the matrix", model, start)
        if name == "highs":
            return model.by_highs(cap.seconds)
        start = time.perf_counter()
        stated = model.for_cp_sat()
        told("CP-SAT's model", model, start)
        return model.by_cp_sat(stated, cap.seconds)

    def work() -> Compared:
        gc.disable()
        mine: list[float] = []
        first: list[float] = []
        others: list[float] = []
        while len(others) < ROUNDS and sum(others) < LONG_S:
            for times, new in ((first, True), (mine, False)) * 5:
                if new:
                    table_of.cache_clear()
                times.append(clock(lambda: highs.solve(of.problem().programme, cap.seconds))[0])
            seconds, answer = clock(other)
            others.append(seconds)
        return Compared(
            statistics.median(mine), statistics.median(first), statistics.median(others), answer
        )

    return in_time(work, cap.stating_s + cap.seconds, cap.memory_gib)


def told(what: str, model: Ungrouped, start: float) -> None:
    """Say how long it took to state a large problem, and what it is."""
    seconds = time.perf_counter() - start
    if seconds > LONG_S:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = f"{len(model.matrix.cost)} columns, {len(model.matrix.row_lower)} rows"
        note(f"  {what}: {size} in {seconds:.0f} s, {peak:.0f} MiB")


def clock(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and the result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def solvers(size: int, given: Sample, value: int, plan_s: float, cap: Cap) -> list[Claim]:
    """The ungrouped model in both solvers, beside ours: the same demand, from the same state of the
    fleet. `value` and `plan_s` are the whole plan's, on nodes."""
    of = stated(given)
    claims, proven, same = [], [], True
    for name in cap.solvers:
        found = compared(of, name, cap)
        if found is None:
            limits = f"{cap.stating_s + cap.seconds:.0f} s and {cap.memory_gib:g} GiB"
            note(f"  {size} GPUs, {name}: nothing in {limits}")
            claims.append(Claim(f"{name}_{size}_proven", 0, ""))
            continue
        seconds, answer = found.other_s, found.answer
        note(f"  {size} GPUs, {name}: {seconds:.2f} s, value {answer.value}, "
             f"{'proven' if answer.proven else 'not proven'}; ours: {value}")  # fmt: skip
        if answer.proven:
            proven.append((seconds, found))
            same = same and answer.value == value
        claims += [
            Claim(f"{name}_{size}_s", seconds, "s"),
            Claim(f"{name}_{size}_value_share", answer.value / max(value, 1), ""),
            Claim(f"{name}_{size}_bound_share", answer.bound / max(value, 1), ""),
            Claim(f"{name}_{size}_proven", float(answer.proven), ""),
        ]
    claims.append(Claim(f"certificates_{size}", len(proven), "solvers"))
    if not proven:
        return claims
    seconds, found = min(proven, key=lambda entry: entry[0])
    asked = size == 80
    return [
        *claims,
        Claim(f"plan_{size}_same_value", float(same), "", ">= 1" * asked),
        Claim(f"plan_{size}_programme_ms", found.mine_s * 1000, "ms"),
        Claim(f"plan_{size}_speedup", seconds / found.mine_s, "x", ">= 40" * asked),
        Claim(f"plan_{size}_first_speedup", seconds / found.first_s, "x"),
        Claim(f"plan_{size}_whole_speedup", seconds / plan_s, "x"),
    ]


def measured(size: int) -> tuple[list[Claim], Sample, Plan]:
    """Our side on one size."""
    given = sample(size, JOBS[size])
    note(f"{size} GPUs, {JOBS[size]} jobs")
    claims, made = ours(size, given)
    if size == LARGEST:
        quality = made.quality
        assert quality is not None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        claims += [
            Claim("plan_node_gap", quality.gap, "", "<= 0.03"),
            Claim("plan_refused_by_hulls", quality.refused_by_hulls, ""),
            Claim("plan_8000_peak_mib", peak, "MiB", "<= 400"),
        ]
    refused = impossible(given.views, made.changes)
    for text in refused[:5]:
        note(f"  impossible: {text}")
    claims.append(Claim(f"plan_{size}_impossible", len(refused), "", "<= 0"))
    return claims, given, made


def baselines(size: int, given: Sample, made: Plan, plan_s: float, cap: Cap) -> list[Claim]:
    """First-fit and the ungrouped models on one size."""
    claims = []
    if value := first_fit(given, cap):
        seconds, points = value
        share = points / max(value_of(given.views, made, given), 1)
        claims = [
            Claim(f"first_fit_{size}_s", seconds, "s"),
            Claim(f"first_fit_{size}_value_share", share, ""),
        ]
    assert made.quality is not None
    return claims + solvers(size, given, made.quality.value, plan_s, cap)


def scattered() -> list[Claim]:
    """The largest size again with its busy instances at random indexes, as no scheduler leaves
    them: hulls then forbid nearly every change."""
    given = sample(LARGEST, JOBS[LARGEST], scattered=True)
    note(f"{LARGEST} GPUs, {JOBS[LARGEST]} jobs, busy at random")
    waiting, rules = demand.waiting(given.requests), Rules(time_limit_s=90.0)
    made = plan(given.views, waiting, {}, rules)
    quality = made.quality
    assert quality is not None
    return [
        Claim("scattered_8000_s", timed(lambda: plan(given.views, waiting, {}, rules)), "s"),
        Claim("scattered_8000_changes", len(made.changes), ""),
        Claim("scattered_8000_node_gap", quality.gap, ""),
        Claim("scattered_8000_impossible", len(impossible(given.views, made.changes)), "", "<= 0"),
    ]


def growth(claims: Sequence[Claim]) -> list[Claim]:
    """How time grows from 80 GPUs to 8000, beside how classes do."""
    value = {claim.name: claim.value for claim in claims}
    if "plan_80_s" not in value or "plan_8000_s" not in value:
        return []
    return [
        Claim(f"growth_{what}", value[f"plan_8000_{of}"] / value[f"plan_80_{of}"], "x")
        for what, of in (("classes", "classes"), ("solving", "solve_s"), ("planning", "s"))
    ]


def sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--sizes", type=sizes, default=list(JOBS))
    options.add_argument("--baselines", type=sizes, default=[8, 80])
    options.add_argument("--cap", type=float, default=Cap.seconds)
    options.add_argument("--stating", type=float, default=Cap.stating_s)
    options.add_argument("--solvers", type=lambda text: text.split(","), default=Cap.solvers)
    options.add_argument("--memory", type=float, default=Cap.memory_gib)
    given = options.parse_args()
    cap = Cap(given.cap, given.stating, given.memory, tuple(given.solvers))
    start = time.perf_counter()
    importlib.import_module("highspy")
    claims = [Claim("import_solver_s", time.perf_counter() - start, "s")]
    # The largest first: the peak of memory is then the planner's own, not the baselines'.
    for size in sorted(given.sizes, reverse=True):
        mine, cluster, made = measured(size)
        claims += mine
        if size in given.baselines:
            claims += baselines(size, cluster, made, mine[0].value, cap)
    if LARGEST in given.sizes:
        claims += scattered()
    claims += growth(claims)
    counted = [claim.value for claim in claims if claim.name.endswith("_impossible")]
    claims.append(Claim("plan_impossible", sum(counted), "", "<= 0"))
    return show(claims, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
