"""What the queue asks for: pending jobs to requests, and which of them count as demand.

Only a job that waits for resources and for nothing else is demand: a held, dependent, begin-time
or limit-blocked job would not start on a reshaped node either.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from slurm_mig.core import conditions
from slurm_mig.core.changes import Plan, Refusal
from slurm_mig.core.hostlists import expand
from slurm_mig.core.model import JobRequest, NodeView

WAITS_FOR_RESOURCES = frozenset(
    {"Resources", "Priority", "ReqNodeNotAvail", "NodeDown", "Reserved", "Nodes"}
)
"""Slurm's reasons (source: `job_state_reason_string`) under which new capacity starts a job.
`ReqNodeNotAvail` and `NodeDown` are what jobs get that only a catalog node could take; `Nodes` is
the first word of "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority
partitions", which a fence causes."""

NOT_LOOKED_AT = "None"
"""Slurm's scheduler has not come to the job yet, or is at it: it clears the reason first, also that
of a job over its limits (measured). So this says nothing, and is no demand."""

_TRES = re.compile(
    r"(?:gres[/:])?gpu(?:[:/](?P<type>[A-Za-z][\w.+\-]*|\d+c?\.?[\w.+\-]*g\.[\w.+\-]*))?"
    r"(?:[:=](?P<count>\d+))?(?:\([^)]*\))?$"
)


def parse_tres(text: str | None) -> dict[str, int]:
    """`gres/gpu:3g.20gb:1,gres/gpu:1g.5gb=2` to `{"3g.20gb": 1, "1g.5gb": 2}`.

    An untyped request has the key "". Entries other than gpu are left out, and those that ask for
    none: Slurm takes `gpu:3g.20gb:0`, shows it so, and starts the job without a gpu.
    """
    found: Counter[str] = Counter()
    for entry in filter(None, (text or "").split(",")):
        match = _TRES.fullmatch(entry.strip())
        if match:
            found[match["type"] or ""] += int(match["count"] or 1)
    return {gres_type: count for gres_type, count in found.items() if count}


def parse_gres(text: str | None) -> dict[str, int]:
    """A node's Gres (`gpu:1g.5gb:7(S:0),gpu:off:8`) to counts by type, in its order."""
    counts: dict[str, int] = {}
    for entry in filter(None, re.sub(r"\([^)]*\)", "", text or "").split(",")):
        parts = entry.split(":")
        if parts[0] == "gpu" and len(parts) == 3:
            counts[parts[1]] = counts.get(parts[1], 0) + int(parts[2])
    return counts


def parse_indexes(text: str) -> frozenset[int]:
    """`0-2,5` (Slurm's IDX) to a set; `N/A` to an empty one."""
    indexes: set[int] = set()
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit():
            indexes.update(range(int(low), int(high or low) + 1))
    return frozenset(indexes)


def gpu_indexes(detail: str) -> frozenset[int]:
    """GRES indexes of a job's gpus on a node, from `gpu:1g.5gb:2(IDX:0-1),gpu:3g.20gb:1(IDX:4)`."""
    return frozenset(
        index
        for inside in re.findall(r"gpu:[^(]*\(IDX:([^)]*)\)", detail)
        for index in parse_indexes(inside)
    )


def gpus_by_node(job: Mapping[str, Any]) -> list[tuple[str, frozenset[int]]]:
    """Nodes of a job in Slurm's JSON, and the GRES indexes of its gpus there, where it has any.

    `gres_detail` goes by the node table, and so do the nodes of `job_resources`. `nodes` is sorted
    as text, and of a job that completes it has only the nodes that are not yet done. Where Slurm
    does not say which node is which, all of the job's gpus count as busy on each of its nodes.
    """
    details = [gpu_indexes(detail) for detail in job.get("gres_detail") or ()]
    names = _allocated(job.get("job_resources") or {})
    if len(names) == len(details):
        return [(name, indexes) for name, indexes in zip(names, details, strict=True) if indexes]
    names = names or expand(str(job.get("nodes") or ""), "squeue --json")
    return [(name, every) for name in names if (every := frozenset().union(*details))]


def _allocated(resources: Mapping[str, Any]) -> list[str]:
    """Node names in `job_resources`: under `nodes`, in the format of 23.11 (v0.0.40) beside it."""
    nodes = resources.get("nodes")
    if isinstance(nodes, Mapping):
        return [str(node["name"]) for node in nodes.get("allocation") or ()]
    return [str(node["nodename"]) for node in resources.get("allocated_nodes") or ()]


NO_NODE = frozenset({"a constraint that slurm-mig does not understand"})
"""Stands for a `--constraint` with counts, brackets or parentheses: no node is known to match."""


def parse_constraint(text: str | None) -> tuple[frozenset[str], ...]:
    """`a100&nvme|h100` to its alternatives; see `JobRequest.features`."""
    if not text:
        return ()
    if re.search(r"[\[\]()*]", text):
        return (NO_NODE,)
    return tuple(frozenset(re.split(r"[&,]", part)) for part in text.split("|"))


def gpus_per_node(
    per_node: str | None, per_job: str | None, per_task: str | None, *, nodes: int, tasks: int
) -> dict[str, int]:
    """Instances by type on each node, from the ways a job can ask for them.

    A total that does not divide by the nodes is rounded up: one node may get more.
    """
    wanted: Counter[str] = Counter(parse_tres(per_node))
    if not wanted:
        for gres_type, count in parse_tres(per_job).items():
            wanted[gres_type] += -(-count // max(nodes, 1))
    if not wanted:
        for gres_type, count in parse_tres(per_task).items():
            wanted[gres_type] += -(-count * max(tasks, 1) // max(nodes, 1))
    return dict(wanted)


def waiting(requests: Iterable[JobRequest]) -> list[JobRequest]:
    """The requests that count, in the order in which Slurm would start them.

    Slurm looks at a heterogeneous job as one: a component counts when the first of them waits for
    resources and no other for something else.
    """
    requests = list(requests)
    elsewhere = {r.het_job for r in requests if r.het_job and not _may_wait(r)}
    leading = {r.het_job for r in requests if r.het_job and r.reason in WAITS_FOR_RESOURCES}
    counted = [
        r
        for r in requests
        if r.gpus
        and (r.het_job in leading - elsewhere if r.het_job else r.reason in WAITS_FOR_RESOURCES)
    ]
    return sorted(counted, key=lambda r: (-r.priority, r.submit_time, r.job_id))


def blocked(requests: Iterable[JobRequest]) -> Mapping[int, str]:
    """Jobs that want gpus but wait for something else, with Slurm's reason."""
    return {r.job_id: r.reason for r in requests if r.gpus and r.reason not in WAITS_FOR_RESOURCES}


def _may_wait(request: JobRequest) -> bool:
    return request.reason in WAITS_FOR_RESOURCES or request.reason == NOT_LOOKED_AT


PREEMPTION_S = 60.0
"""How long Slurm is trusted to start a job by preemption; then it is demand like any other."""


def by_preemption(
    requests: Iterable[JobRequest], views: Sequence[NodeView], now: float
) -> dict[int, str]:
    """Jobs that Slurm starts by preempting others, with the reason why nothing is reshaped.

    Only their gpus are counted, and a job that still waits after `PREEMPTION_S` is no longer
    believed to start so: what else it lacks, preemption does not give it.
    """
    found = {}
    for request in requests:
        if not request.preempts or now - request.submit_time > PREEMPTION_S:
            continue
        able = [view for view in views if _freed_by_preemption(view, request)]
        if len(able) >= request.nodes:
            victims = sorted(
                a.job_id
                for view in able
                for a in view.slurm.allocations
                if a.job_id in request.preempts
            )
            jobs = ", ".join(map(str, dict.fromkeys(victims)))
            found[request.job_id] = f"Slurm may start it by preempting job {jobs}"
    return found


def _freed_by_preemption(view: NodeView, request: JobRequest) -> bool:
    """Would the node have the job's gpus without the jobs that it may preempt?"""
    node = view.slurm
    if not conditions.shared(node, request) or conditions.barred(node, request):
        return False
    if request.required_nodes and node.name not in request.required_nodes:
        return False
    if node.name in request.excluded_nodes:
        return False
    if request.features and not any(wanted <= node.features for wanted in request.features):
        return False
    held = {i for a in node.allocations if a.job_id not in request.preempts for i in a.indexes}
    there = Counter(d.type for i, d in enumerate(view.slots) if i not in held | node.promised)
    return all(there[gres_type] >= n for gres_type, n in request.gpus.items())


def whole_jobs(
    plan: Callable[[Sequence[JobRequest]], Plan], requests: Sequence[JobRequest]
) -> Plan:
    """A plan that serves heterogeneous jobs whole or not at all: no node is reshaped for a
    component whose job could not start, as another of its components is refused."""
    halves: dict[int, Refusal] = {}
    while True:
        made = plan([r for r in requests if r.job_id not in halves])
        refused = {r.job_id for r in made.refusals}
        lacking = {r.het_job: r.job_id for r in requests if r.het_job and r.job_id in refused}
        new = {
            r.job_id: Refusal(
                r.job_id,
                f"component {lacking[r.het_job]} of its heterogeneous job cannot be served",
                r.label,
            )
            for r in requests
            if r.het_job in lacking and r.job_id not in refused and r.job_id not in halves
        }
        if not new:
            return replace(made, refusals=(*made.refusals, *halves.values()))
        halves |= new


def why(request: JobRequest, refusals: Mapping[int, str]) -> str:
    """Why a job waits, for people."""
    if request.job_id in refusals:
        return refusals[request.job_id]
    if request.reason == NOT_LOOKED_AT:
        return "Slurm's scheduler has not looked at it yet"
    if request.reason not in WAITS_FOR_RESOURCES:
        return f"waits for something else than resources: {request.reason}"
    return "will be served: its instance is there, or the next cycle makes it"
