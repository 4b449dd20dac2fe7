"""What monitoring shows of a cycle: the nodes as it leaves them, and counts that outlive it.

Read by monitor.py, for the metrics and the report. Pure: the same cycle gives the same values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core.changes import Plan
from slurm_mig.core.model import (
    ComputeInstance,
    Gpu,
    Instance,
    JobRequest,
    NodeCondition,
    NodeView,
    Place,
    Placement,
    is_filler,
)
from slurm_mig.core.records import CycleReport, ManagedNode, Transaction

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histograms' buckets, in seconds; a last one has no bound."""

FENCED = "fenced"
"""In a transaction's seconds: from the drain to the resume, not a step."""

KINDS: Sequence[tuple[str, str]] = (
    ("in_use", r"in use by|is kept for it until|may serve it when|fenced until"),
    ("slot_order", r"indexes|order of|no order"),
    ("cooldown", r"cool-down|reconfigured lately"),
    ("next_cycle", r"in transition at once"),
    ("policy", r"policy:|may cause changes at once|reshape: false|min_wait_s"),
    ("starts_soon", r"starts by itself|preempt"),
    ("cpus_or_memory", r"CPUs|MiB of memory"),
    ("whole_node", r"whole node"),
    ("reservation", r"reservation"),
    ("paused", r"paused"),
    ("drained", r"drained"),
    ("away", r"node is |not responding|was not asked|does not answer"),
    ("changed_by_hand", r"another hand|edited by hand"),
    ("not_worth_it", r"costs more than it is worth|more weight"),
    ("impossible", r"can ever be|can be cut into"),
    ("constraint", r"constraint|asks for other nodes|excludes|not in partition"),
)
"""Classes of refusals, the one nearest to being served first: a reason names several nodes."""


def kind_of(reason: str) -> str:
    """The class of a refusal's reason, in one word; `other` for what is none of KINDS."""
    return next((kind for kind, words in KINDS if re.search(words, reason)), "other")


@dataclass(frozen=True)
class Ended:
    """A cycle that has ended, as monitoring is told of it."""

    views: tuple[NodeView, ...]
    """Each node as it is now (`afterwards`)."""
    requests: tuple[JobRequest, ...]
    plan: Plan
    transactions: Mapping[str, Transaction]
    """By node, the ones that are still open."""
    report: CycleReport
    before: CycleReport | None = None
    """What the cycle before said."""


@dataclass(frozen=True)
class Histogram:
    """How often something took how long: a count for each of BOUNDS and one beyond, and the sum."""

    counts: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)
    total: float = 0.0

    def add(self, seconds: float) -> Histogram:
        at = next((n for n, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))
        # Counts of other bounds, from another version, mean nothing.
        known = self if len(self.counts) == len(BOUNDS) + 1 else Histogram()
        counts = tuple(n + (i == at) for i, n in enumerate(known.counts))
        return Histogram(counts, known.total + seconds)


@dataclass(frozen=True)
class Counters:
    """What only grows; kept in the state directory."""

    history: int = 0
    """Bytes of the history that are counted."""
    cycles: Mapping[str, int] = field(default_factory=dict)
    """By result: `done`, or the error that stopped it."""
    reshapes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By node and the phase in which the transaction ended."""
    steps: Mapping[str, Histogram] = field(default_factory=dict)
    """Seconds by step of a transaction."""
    fences: Histogram = Histogram()
    fenced: Mapping[str, float] = field(default_factory=dict)
    """Seconds by node."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Jobs that came to be refused so, by class of reason."""
    quarantines: Mapping[str, int] = field(default_factory=dict)
    """By node."""
    quarantined: tuple[str, ...] = ()
    """Nodes that are left for a person now."""


def afterwards(view: NodeView, node: ManagedNode, under_way: Transaction | None) -> NodeView:
    """A node as the cycle leaves it, from what it saw and what has been published since: every
    busy device keeps its index, so its allocations hold."""
    if under_way is not None and view.condition is NodeCondition.USABLE:
        view = replace(view, condition=NodeCondition.OURS, note=under_way.note)
    published = (node.slots, node.withheld)
    if view.condition is NodeCondition.USABLE and published == (view.slots, view.withheld):
        return view  # What was seen agreed with its record, and nothing was published since.
    there = {d.key: d.uuid for d in node.slots if not is_filler(d.type)}
    there |= {(w.gpu, p): "" for w in node.withheld for p in w.placements}
    there |= {(gpu.index, p): "" for gpu in view.gpus for p in gpu.foreign}
    gpus = tuple(_with(gpu, there) for gpu in view.gpus)
    return replace(view, slots=node.slots, gpus=gpus, withheld=node.withheld)


def _with(gpu: Gpu, there: Mapping[Place, str]) -> Gpu:
    """The GPU with exactly these instances."""
    known = {i.placement: i for i in gpu.instances}
    mine = {p: uuid for (index, p), uuid in there.items() if index == gpu.index and p is not None}
    instances = tuple(
        _instance(known.get(home), home, {p: uuid for p, uuid in mine.items() if p.whole == home})
        for home in sorted({p.whole for p in mine})
    )
    whole = (gpu.index, None) in there
    return replace(gpu, mig=bool(mine) or (gpu.mig and not whole), instances=instances)


def _instance(
    known: Instance | None, home: Placement, devices: Mapping[Placement, str]
) -> Instance:
    """The GPU instance with these devices: itself, or its parts."""
    parts = {p: uuid for p, uuid in devices.items() if p.ci is not None}
    if known is not None and (known.owner or known.parts.keys() == parts.keys()):
        return known
    computes = tuple(
        ComputeInstance(p.ci or 0, p.profile, int(p.profile.partition("c.")[0]), uuid, 0)
        for p, uuid in sorted(parts.items())
    )
    return Instance(home, -1, devices.get(home, ""), 0, (), computes=computes)


def quarantined(transactions: Mapping[str, Transaction]) -> tuple[str, ...]:
    """Nodes that were left fenced for a person."""
    return tuple(sorted(name for name, t in transactions.items() if t.is_open and not t.waits))


def counted(known: Counters, ended: Ended, history: Iterable[Transaction], at: int) -> Counters:
    """The counters after a cycle. `history`: transactions that have ended since, up to byte `at`
    of the history."""
    for transaction in history:
        known = _with_transaction(known, transaction)
    now = quarantined(ended.transactions)
    left = [name for name in now if name not in known.quarantined]
    before = ended.before.refusals if ended.before else {}
    refused = [
        kind_of(reason)
        for job, reason in ended.report.refusals.items()
        if job not in before or kind_of(before[job]) != kind_of(reason)
    ]
    return replace(
        known,
        history=at,
        cycles=_plus(known.cycles, ["done"]),
        refusals=_plus(known.refusals, refused),
        quarantines=_plus(known.quarantines, left),
        quarantined=now,
    )


def failed(known: Counters, result: str) -> Counters:
    """The counters after a cycle that an error stopped."""
    return replace(known, cycles=_plus(known.cycles, [result]))


def _plus(known: Mapping[str, int], more: Iterable[str]) -> dict[str, int]:
    return dict(Counter(known) + Counter(more))


def _with_transaction(known: Counters, done: Transaction) -> Counters:
    steps = dict(known.steps)
    for step, seconds in done.seconds.items():
        if step != FENCED:
            # "write files" is a step's name for people.
            step = step.partition(" ")[0]
            steps[step] = steps.get(step, Histogram()).add(seconds)
    reshapes = {**known.reshapes}
    reshapes[done.node] = _plus(reshapes.get(done.node, {}), [done.phase.value])
    fences, fenced = known.fences, dict(known.fenced)
    if FENCED in done.seconds:
        fences = fences.add(done.seconds[FENCED])
        fenced[done.node] = fenced.get(done.node, 0.0) + done.seconds[FENCED]
    return replace(known, steps=steps, reshapes=reshapes, fences=fences, fenced=fenced)


def owners(view: NodeView) -> dict[Place, tuple[str, str]]:
    """State and holder of every device that is no filler: `allocated` (a job, by Slurm's word),
    `held` (a process without one, by NVML's), `withheld` (for a waiting job), `outside` (not
    Slurm's, by the site's word) or `free`."""
    found: dict[Place, tuple[str, str]] = {}
    for gpu in view.all_gpus:
        if not gpu.mig:
            found[(gpu.index, None)] = _held(gpu.pids, gpu.owner)
        for instance in gpu.instances:
            if instance.owner or not instance.is_split:
                found[(gpu.index, instance.placement)] = _held(instance.pids, instance.owner)
                continue
            for place in instance.parts:
                held = instance.pids_of(place) if place in instance.held else ()
                found[(gpu.index, place)] = _held(held, "")
    for part in view.withheld:
        jobs = ", ".join(map(str, part.jobs))
        found.update({(part.gpu, p): ("withheld", f"for job {jobs}") for p in part.placements})
    for allocation in view.slurm.allocations:
        for index in allocation.indexes:
            if index < len(view.slots) and view.slots[index].key in found:
                who = f"job {allocation.job_id}"
                found[view.slots[index].key] = ("allocated", who)
    return found


def _held(pids: Sequence[int], owner: str) -> tuple[str, str]:
    if owner:
        return ("outside", owner)
    return ("held", f"pid {pids[0]}") if pids else ("free", "")


def instances(views: Iterable[NodeView]) -> Counter[tuple[str, str, str]]:
    """How many devices there are, by node, profile (or a whole GPU's type) and state."""
    count: Counter[tuple[str, str, str]] = Counter()
    for view in views:
        if not view.all_gpus:
            # The node does not answer: what was last published of it.
            types = [d.type for d in view.slots if not is_filler(d.type)]
            count.update((view.name, profile, "unknown") for profile in types)
        for (gpu, place), (state, _) in owners(view).items():
            profile = place.profile if place else view.whole_types.get(gpu) or _type(view, gpu)
            count[view.name, profile, state] += 1
    return count


def _type(view: NodeView, gpu: int) -> str:
    named = (d.type for d in view.slots if d.key == (gpu, None) and not is_filler(d.type))
    return next(named, "gpu")


@dataclass(frozen=True)
class Unmet:
    """Instances of one profile that unserved jobs wait for."""

    profile: str
    instances: int
    jobs: int
    since: float
    """When the oldest of these jobs was first seen waiting so, in seconds since the epoch."""


def unmet(requests: Iterable[JobRequest], report: CycleReport) -> list[Unmet]:
    """Demand that the last cycle could not serve, by profile."""
    found: dict[str, Unmet] = {}
    for request in requests:
        if request.job_id not in report.refusals:
            continue
        since = report.unserved_since.get(request.job_id, report.time)
        for profile, count in request.gpus.items():
            known = found.get(profile, Unmet(profile, 0, 0, since))
            found[profile] = Unmet(
                profile,
                known.instances + count * request.nodes * request.tasks,
                known.jobs + request.tasks,
                min(known.since, since),
            )
    return [found[profile] for profile in sorted(found)]
