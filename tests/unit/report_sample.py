"""A made-up cluster with something of everything that the report draws."""

from __future__ import annotations

from dataclasses import replace

from slurm_mig.core.changes import GpuChange, NodeChange, Plan
from slurm_mig.core.model import Allocation, Gpu, NodeCondition, NodeView, Withholding
from slurm_mig.core.monitoring import Ended
from slurm_mig.core.records import CycleReport, Event, Pause, Phase, Transaction
from slurm_mig.report.page import Picture
from tests.unit.builders import A30, A100, at, gpu, job, node, ones

NOW = 1_764_075_600.0
NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'too' \u202eevil"
BIG = at("3g.20gb", 4)


def picture() -> Picture:
    """The whole page's content."""
    return Picture(cycle(), history(), NOW, refresh_s=30, pauses=pauses())


def pauses() -> tuple[Pause, ...]:
    return (Pause("a30-1", NOW - 600, "root", "new driver"),)


def cycle() -> Ended:
    views = (_cut(), _whole(), _small(), _away())
    waiting = (
        job(41, {"7g.40gb": 1}, tasks=6, submit_time=int(NOW - 5400), user="carol"),
        job(44, {"4g.24gb": 2}, submit_time=int(NOW - 900), user=NASTY),
        job(45, {"1g.5gb": 1}, submit_time=int(NOW - 3)),
        job(46, {"1g.5gb": 3}, submit_time=int(NOW - 90), reason="Dependency"),
    )
    refusals = {
        41: "a100-1: no room for 7g.40gb: in use by job 7, job 9; a30-1: no GPU can be cut into "
        "7g.40gb; GPU 1 of a100-1 is kept for it until job 9 ends",
        44: f"a30-1: drained by an administrator: {NASTY}",
    }
    report = CycleReport(
        NOW - 4, "a100-1 reshaped in 0.62 s for job 40; job 41 (7g.40gb) waits", refusals,
        {41: NOW - 5300, 44: NOW - 880}, seconds=1.1, plan_seconds=0.2,
    )  # fmt: skip
    return Ended(views, waiting, Plan(), {"a100-2": _open()}, report)


def _cut() -> NodeView:
    gpus = [
        gpu(A100, 0, *ones(4), BIG),
        gpu(A100, 1, at("2g.10gb", 0), at("1g.5gb", 2), BIG),
    ]
    view = node(gpus, name="a100-1")
    where = {d.key: n for n, d in enumerate(view.slots)}
    held = (
        Allocation(7, "alice", frozenset({where[0, at("1g.5gb", 0)], where[0, BIG]}),
                   end_time=int(NOW + 3600)),
        Allocation(9, "bob", frozenset({where[1, BIG]})),
    )  # fmt: skip
    shown = replace(view.slurm, allocations=held, states=frozenset({"MIXED"}))
    first = view.gpus[0].instances[1]
    busy = replace(view.gpus[0], instances=(view.gpus[0].instances[0],
                                            replace(first, pids=(4711,)),
                                            *view.gpus[0].instances[2:]))  # fmt: skip
    kept = Withholding(1, frozenset({at("2g.10gb", 0)}), (41,), NOW - 300)
    given = replace(gpu(A100, 2, at("3g.20gb", 0)), owner="kubernetes")
    given = replace(given, instances=(replace(given.instances[0], owner="kubernetes"),))
    return replace(view, slurm=shown, gpus=(busy, view.gpus[1]), withheld=(kept,), outside=(given,))


def _whole() -> NodeView:
    whole = replace(gpu(A100, 0), mig=False)
    plain = Gpu(1, 1, "GPU-l40s", "NVIDIA L40S", 46068, mig=False, file="/dev/nvidia1")
    view = node([whole, plain], {8: [0]}, name="a100-2")
    fence = "waits for running jobs until 14:30"
    return replace(view, condition=NodeCondition.OURS, note=fence)


def _small() -> NodeView:
    gpus = [gpu(A30, 0, *(at("1g.6gb", n) for n in range(3))), gpu(A30, 1, at("4g.24gb", 0))]
    view = node(gpus, name="a30-1")
    return replace(
        view, condition=NodeCondition.ADMIN, note=f"drained by an administrator: {NASTY}"
    )


def _away() -> NodeView:
    view = node([gpu(A100, 0, *ones())], name="a100-3")
    return replace(view, gpus=(), condition=NodeCondition.AWAY, note="node is DOWN")


def _change(name: str, serves: tuple[int, ...]) -> NodeChange:
    part = GpuChange(1, (), tuple(ones(4)[:3]), (BIG,))
    return NodeChange(name, (part,), (), serves)


def _open() -> Transaction:
    return Transaction(
        "c0ffee01", "a100-2", Phase.FENCED, "slurm-mig: reshaping (c0ffee01)", NOW - 2400,
        replace(_change("a100-2", (41,)), behind_fence=True), (), note="job 8 has GPU 0",
        until=NOW + 900,
    )  # fmt: skip


def history() -> list[Transaction | Event]:
    found: list[Transaction | Event] = []
    for n in range(14):
        began = NOW - 80_000 + 5_600 * n
        name = ("a100-1", "a100-2", "a30-1")[n % 3]
        given_up = n in (4, 9)
        found.append(
            Transaction(
                f"{n:08x}", name, Phase.ABANDONED if given_up else Phase.RELEASED, "r", began,
                _change(name, (20 + n,)), (), finished=began + (61 if given_up else 0.6),
                note="a100-2 did not settle: job 12 is COMPLETING" if given_up else "",
                seconds={"fence": 0.05, "fenced": 61.0 if given_up else 0.48},
            )
        )  # fmt: skip
    found.append(Event(NOW - 600, "paused", "a30-1", "root", "new driver", ("a30-1",)))
    return found
