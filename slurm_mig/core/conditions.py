"""When a node is left alone, and when it is not for a job, whatever its GPUs are.

Read by the reconciler (may this node be reshaped at all?), by enrolment (may it be taken into
care?), and by planners (`barred`: is this node one for this job?).
"""

from __future__ import annotations

from collections.abc import Collection

from slurm_mig.core.model import JobRequest, NodeView, Slots, SlurmNode, is_filler

NOT_TOUCHED = frozenset(
    {
        "BLOCKED", "DOWN", "DYNAMIC_FUTURE", "DYNAMIC_NORM", "ERROR", "EXTERNAL", "FAIL",
        "FAILING", "FUTURE", "MAINT", "MAINTENANCE", "NOT_RESPONDING", "POWERED_DOWN",
        "POWERING_DOWN", "POWERING_UP", "POWER_DOWN", "POWER_DRAIN", "POWER_UP", "REBOOT",
        "REBOOT_ISSUED", "REBOOT_REQUESTED", "UNKNOWN",
    }
)  # fmt: skip
"""States and flags (slurm.h, `node_state_string`) of a node that others are at, or that has no
slurmd to register. `INVALID_REG` is not among them: it is ours to repair."""

MAINTENANCE = frozenset({"MAINT", "MAINTENANCE"})
"""An administrator's own hours: `enrol` and `leave`, which are his too, work in them."""

RESHAPE_S = 60.0
"""A reservation that begins sooner than this counts as begun: one reshape must end before it."""


def away(node: SlurmNode) -> str:
    """Why nothing may be done to the node, by its state; empty when it may."""
    if node.states & NOT_TOUCHED:
        return f"node is {'+'.join(sorted(node.states))}"
    return ""


def reserved(node: SlurmNode, ours: Collection[str] = ()) -> str:
    """The reservation that the node is in, or is about to be in, unless it is one of `ours`."""
    for reservation in node.reservations:
        if reservation.name in ours:
            continue
        if reservation.active:
            return f"in reservation {reservation.name}"
        if reservation.begins_in_s < RESHAPE_S:
            return f"reservation {reservation.name} begins in {reservation.begins_in_s:.0f} s"
    return ""


def frozen(node: SlurmNode, slots: Slots) -> str:
    """The job that has every device of the node, fillers and guard too (`--exclusive`).

    A reshape under it would change what its devices are: its steps and its account break.
    """
    for allocation in node.allocations:
        if slots and len(slots) - 1 in allocation.indexes and is_filler(slots[-1].type):
            return f"job {allocation.job_id} has the whole node: frozen until it ends"
    return ""


def counted(view: NodeView) -> str:
    """The job under which the gpu count of a node without slots cannot change; empty if none."""
    for allocation in () if view.slotted else view.slurm.allocations:
        return (
            f"{view.name} has no slots (slots: false): its gpus change only while no job has any, "
            f"and job {allocation.job_id} has"
        )
    return ""


def shared(node: SlurmNode, request: JobRequest) -> list[str]:
    """The job's partitions (`-p a,b`) that have the node: Slurm starts it in any of them."""
    return [p for p in request.partition.split(",") if p in node.partitions]


def barred(node: SlurmNode, request: JobRequest) -> str:
    """Why Slurm would not start the job on the node now, gpus and CPUs apart; empty if it would."""
    active = {r.name for r in node.reservations if r.active}
    if request.reservation and request.reservation not in active:
        return f"{node.name} is not in reservation {request.reservation} now"
    if others := sorted(active - {request.reservation}):
        return f"{node.name} is in reservation {others[0]}"
    for coming in node.reservations:
        if coming.active or not coming.whole:
            continue
        if not 0 < request.time_limit_s <= coming.begins_in_s - RESHAPE_S:
            limit = f"{request.time_limit_s} s" if request.time_limit_s else "without limit"
            return (
                f"reservation {coming.name} of {node.name} begins in {coming.begins_in_s:.0f} s "
                f"and the job may run {limit}"
            )
    if request.exclusive and node.cpus_alloc:
        return f"the job asks for whole nodes and {node.name} has other jobs"
    return ""
