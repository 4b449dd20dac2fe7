"""The planner against straightforward models of the same problem, and against first-fit.

    scripts/bench planner [--json] [--sizes 8,80,800,8000] [--cap SECONDS]

Random clusters of mixed models, 60 % of the instances busy (tests/bench/planning/sample.py says
how), with random queues. The baselines get the same demand and the same objective: one variable
for each GPU and placement in OR-Tools' CP-SAT and in HiGHS, one thread and `--cap` seconds each;
and first-fit, job by job. Every plan is replayed on the simulated NVML.
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from slurm_mig.core import demand, geometry, planner
from slurm_mig.core.model import Gpu, GpuChange, Layout, NodeView, Plan
from slurm_mig.core.planning import highs
from slurm_mig.core.planning.classes import Problem, problem
from slurm_mig.core.planning.fleet import Draft, Fleet
from slurm_mig.core.planning.placing import Places
from slurm_mig.core.planning.plan import Rules, plan
from slurm_mig.core.planning.units import Pools, pools_of, units_of
from slurm_mig.core.planning.weights import Weights
from tests.bench.claims import Claim, show
from tests.bench.planning.replay import impossible
from tests.bench.planning.sample import Sample, sample
from tests.bench.planning.ungrouped import Answer, Ungrouped

JOBS = {8: 40, 80: 200, 800: 1000, 8000: 10_000}
ROUNDS = 3
LARGEST = 8000


@dataclass(frozen=True)
class Stated:
    """A sample as the programme that all solvers get: what starts as it is has been set aside."""

    fleet: Fleet
    pools: Pools
    coarse: Problem


def stated(given: Sample) -> Stated:
    fleet = Fleet(given.views, {}, {})
    units = units_of(demand.waiting(given.requests), fleet, Weights())
    pools = pools_of(fleet, units)
    places = Places(fleet, pools)
    unmet = [unit for unit in units if not places.place(unit)]
    return Stated(fleet, pools, problem(fleet, pools, unmet, Weights()))


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
    problem_of = stated(given).coarse
    solving = timed(lambda: highs.solve(problem_of.programme, 90.0))
    solution = highs.solve(problem_of.programme, 90.0)
    largest = size == LARGEST
    return [
        Claim(f"plan_{size}_s", seconds, "s", "<= 1" if largest else ""),
        Claim(f"plan_{size}_solve_s", solving, "s"),
        Claim(f"plan_{size}_classes", quality.classes, ""),
        Claim(f"plan_{size}_gap", solution.gap, "", "<= 0" if largest else ""),
        Claim(f"plan_{size}_node_gap", quality.gap, ""),
        Claim(f"plan_{size}_value", quality.value, ""),
    ], made


def in_time(work: Callable[[], float], cap_s: float) -> float | None:
    """The result of something that knows no time limit, from a process that is ended then."""
    context = get_context("fork")
    mine, other = context.Pipe(duplex=False)

    def send(to: Connection) -> None:
        to.send(work())

    process = context.Process(target=send, args=(other,))
    process.start()
    there = mine.poll(cap_s)
    result = float(mine.recv()) if there else None
    if process.is_alive() and not there:
        process.kill()
    process.join()
    return result


def first_fit(given: Sample, cap_s: float) -> tuple[float, float | None]:
    """Seconds, and the value by the same objective; None when it does not end in time."""
    start = time.perf_counter()
    waiting = demand.waiting(given.requests)
    value = in_time(lambda: value_of(given.views, planner.plan(given.views, waiting), given), cap_s)
    return time.perf_counter() - start, value


def value_of(views: Sequence[NodeView], made: Plan, given: Sample) -> int:
    """The objective of any plan: what the jobs are worth that start, on what it changes or as they
    are, less what its changes cost."""
    fleet, weights = Fleet(views, {}, {}), Weights()
    worth = {
        unit.job_id: unit.value
        for unit in units_of(demand.waiting(given.requests), fleet, weights)
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
    return value - sum(costs)


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


def solvers(size: int, given: Sample, cap_s: float) -> list[Claim]:
    """The ungrouped model in both solvers, beside the programme over classes: the same problem,
    the same demand, from the same state of the fleet."""
    problem_of = stated(given)
    start = time.perf_counter()
    best = highs.solve(problem_of.coarse.programme, cap_s)
    mine = time.perf_counter() - start
    answers: dict[str, tuple[float, Answer]] = {}
    for name in ("cp_sat", "highs"):
        start = time.perf_counter()
        model = Ungrouped(problem_of.fleet, problem_of.pools, problem_of.coarse, Weights())
        answer = model.by_cp_sat(cap_s) if name == "cp_sat" else model.by_highs(cap_s)
        answers[name] = (time.perf_counter() - start, answer)
        note(f"  {size} GPUs, {name}: {answers[name][0]:.1f} s, value {answer.value}, "
             f"{'proven' if answer.proven else 'not proven'}; classes: {best.value}")  # fmt: skip
    claims = []
    for name, (seconds, answer) in answers.items():
        claims += [
            Claim(f"{name}_{size}_s", seconds, "s"),
            Claim(f"{name}_{size}_value_share", answer.value / max(best.value, 1), ""),
            Claim(f"{name}_{size}_proven", float(answer.proven), ""),
        ]
    proven = [seconds for seconds, answer in answers.values() if answer.proven]
    if size == 80:
        same = all(a.value == best.value for _, a in answers.values() if a.proven)
        claims += [
            Claim("plan_80_same_value", float(same and bool(proven)), "", ">= 1"),
            Claim("plan_80_speedup", min(proven, default=cap_s) / mine, "x", ">= 40"),
        ]
    return claims


def compared(size: int, cap_s: float) -> list[Claim]:
    """Everything on one size."""
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
    seconds, value = first_fit(given, cap_s)
    claims.append(Claim(f"first_fit_{size}_s", seconds, "s"))
    if value is not None:
        share = value / max(value_of(given.views, made, given), 1)
        claims.append(Claim(f"first_fit_{size}_value_share", share, ""))
    return claims + solvers(size, given, cap_s)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument("--sizes", default=",".join(map(str, JOBS)))
    options.add_argument("--cap", type=float, default=90.0)
    given = options.parse_args()
    claims: list[Claim] = []
    # The largest first: the peak of memory is then the planner's own, not the baselines'.
    for size in sorted(map(int, given.sizes.split(",")), reverse=True):
        claims += compared(size, given.cap)
    counted = [claim.value for claim in claims if claim.name.endswith("_impossible")]
    claims.append(Claim("plan_impossible", sum(counted), "", "<= 0"))
    return show(claims, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
