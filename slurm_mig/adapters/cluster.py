"""slurmctld through pyslurm; Slurm's own commands only for what pyslurm 25.11 gets wrong.

The only module that imports pyslurm. What it gets wrong:
* `Node(configured_gres=…)` is sent in a form that leaves the node's Gres broken for scheduling:
  Gres is set with scontrol;
* the index of an allocated device: `get_resource_layout_per_node` has the structure of an older
  Slurm and crashes under 26.05, so running jobs' devices come from `squeue --json`;
* `--gpus` and `--gpus-per-task`: see `_other_tres`.
Commands are argument vectors; nothing goes through a shell.
"""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyslurm
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet

from slurm_mig.core import demand
from slurm_mig.core.model import Allocation, JobRequest, SlurmNode
from slurm_mig.errors import GoneError, SlurmMigError, UnreachableError

SCONTROL_TIMEOUT_S = 15.0
RECONFIGURE_ANSWER_S = 1.0

HOLDS_GRES = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "STOPPED", "RESIZING"})
UNSETTLED = frozenset({"COMPLETING", "CONFIGURING"})


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except pyslurm.PyslurmError as error:
        raise _unreachable(doing, error) from error


def _unreachable(doing: str, error: Exception) -> UnreachableError:
    return UnreachableError(f"{doing}: {error}", hint="Is slurmctld up? Try `scontrol ping`.")


class PyslurmCluster:
    """The cluster that slurm.conf names, with the rights of the calling user (root)."""

    def nodes(self) -> dict[str, SlurmNode]:
        """Every node that slurmctld shows, with the gpu slots that its jobs have."""
        with _translated("reading nodes from slurmctld"):
            nodes = pyslurm.Nodes.load()
            reserved = _reserved_nodes()
        held = _by_node(_running_jobs())
        return {
            name: _node(node, held.get(name, _Held()), reserved=name in reserved)
            for name, node in nodes.items()
        }

    def node(self, name: str) -> SlurmNode:
        """One node, read again. Raises UnreachableError also when it is not there any more."""
        try:
            return self.nodes()[name]
        except KeyError:
            raise GoneError(f"slurmctld has no node {name} any more") from None

    def watch(self, name: str) -> SlurmNode:
        """One node without its jobs: quick, for waiting until its state changes."""
        try:
            return _node(pyslurm.Node.load(name), _Held(), reserved=False)
        except pyslurm.PyslurmError as error:
            if name not in self.nodes():
                raise GoneError(f"slurmctld has no node {name} any more") from error
            raise _unreachable(f"reading node {name} from slurmctld", error) from error

    def pending(self) -> list[JobRequest]:
        """Every pending job that asks for gpus, whatever it waits for."""
        with _translated("reading jobs from slurmctld"):
            jobs = [job for job in pyslurm.Jobs.load().values() if job.state == "PENDING"]
        extra = _other_tres() if any(not job.gres_per_node for job in jobs) else {}
        requests = (_request(job, extra) for job in jobs)
        return [r for r in requests if r is not None]

    def drain(self, node: str, reason: str) -> None:
        with _translated(f"draining {node}"):
            pyslurm.Node(node).modify(pyslurm.Node(state="DRAIN", reason=reason))

    def resume(self, node: str) -> None:
        with _translated(f"resuming {node}"):
            pyslurm.Node(node).modify(pyslurm.Node(state="RESUME"))

    def set_gres(self, node: str, gres: str) -> None:
        _scontrol("update", f"NodeName={node}", f"Gres={gres}")

    def reconfigure(self) -> None:
        """Ask all daemons to read their configuration again; the caller verifies by state.

        The answer of 26.05 often never comes although it is done (the client then waits 10 s), so
        only a refusal, which is quick, is waited for.
        """
        process = subprocess.Popen(
            ["scontrol", "reconfigure"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, said = process.communicate(timeout=RECONFIGURE_ANSWER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return
        if process.returncode:
            raise UnreachableError(f"scontrol reconfigure failed: {said.strip()}")


def _scontrol(*words: str) -> None:
    _run("scontrol", *words)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise SlurmMigError(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"`{' '.join(command)}` timed out") from error
    if done.returncode:
        raise UnreachableError(
            f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def _reserved_nodes() -> frozenset[str]:
    """Nodes in a reservation that is active now."""
    found: set[str] = set()
    for reservation in pyslurm.Reservations.load().values():
        if reservation.is_active:
            found.update(expand(reservation.nodes))
    return frozenset(found)


def expand(nodes: str | None) -> frozenset[str]:
    """`a100-[1-2]` to its names."""
    return frozenset(NodeSet(nodes, resolver=RESOLVER_NOGROUP)) if nodes else frozenset()


def _running_jobs() -> list[Mapping[str, Any]]:
    """Every job that holds resources, as Slurm's own JSON has it."""
    text = _run("squeue", "--json", f"--states={','.join(sorted(HOLDS_GRES))}")
    try:
        jobs: list[Mapping[str, Any]] = json.loads(text)["jobs"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError(
            f"squeue --json answered something else than jobs: {error}"
        ) from error
    return jobs


@dataclass
class _Held:
    """What the jobs of one node have and do."""

    allocations: list[Allocation] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    batch_jobs: set[int] = field(default_factory=set)


def _by_node(jobs: Iterable[Mapping[str, Any]]) -> dict[str, _Held]:
    """Allocations, and reasons for not being settled, by node name."""
    found: dict[str, _Held] = defaultdict(_Held)
    for job in jobs:
        job_id, states = int(job["job_id"]), frozenset(job["job_state"])
        names = _in_order(job.get("nodes"))
        for name, detail in zip(names, job.get("gres_detail") or (), strict=False):
            indexes = demand.gpu_indexes(detail)
            if indexes:
                held = Allocation(job_id, str(job.get("user_name") or "?"), indexes, min(states))
                found[name].allocations.append(held)
        for state in sorted(states & UNSETTLED):
            for name in names:
                found[name].unsettled.append(f"job {job_id} is {state}")
        if job.get("batch_flag") and states == {"RUNNING"}:
            found[str(job.get("batch_host"))].batch_jobs.add(job_id)
    return dict(found)


def _in_order(nodes: str | None) -> list[str]:
    """A job's nodes in Slurm's order, which is that of its `gres_detail`."""
    return list(NodeSet(nodes, resolver=RESOLVER_NOGROUP)) if nodes else []


def _node(node: Any, held: _Held, *, reserved: bool) -> SlurmNode:
    return SlurmNode(
        name=node.name,
        states=frozenset(node.state.split("+")),
        reason=node.reason or "",
        gres={
            key.partition(":")[2]: int(count)
            for key, count in node.configured_gres.items()
            if key.startswith("gpu:")
        },
        cpus=int(node.effective_cpus or 0),
        cpus_alloc=int(node.allocated_cpus or 0),
        memory_mib=int(node.real_memory or 0),
        memory_alloc_mib=int(node.allocated_memory or 0),
        partitions=frozenset(node.partitions or ()),
        features=frozenset(node.active_features or ()),
        allocations=tuple(held.allocations),
        unsettled=tuple(held.unsettled),
        batch_jobs=frozenset(held.batch_jobs),
        reserved=reserved,
        slurmd_start=int(node.slurmd_start_time or 0),
    )


def _request(job: Any, extra: Mapping[int, tuple[str, str]]) -> JobRequest | None:
    nodes = int(job.num_nodes or 1)
    per_node = ",".join(f"{key}:{count}" for key, count in job.gres_per_node.items())
    per_job, per_task = extra.get(int(job.id), ("", ""))
    gpus = demand.gpus_per_node(
        per_node, per_job, per_task, nodes=nodes, tasks=int(job.ntasks or 1)
    )
    if not gpus:
        return None
    return JobRequest(
        job_id=int(job.id),
        user=job.user_name or "?",
        partition=job.partition or "",
        priority=int(job.priority or 0),
        gpus=gpus,
        nodes=nodes,
        cpus=-(-int(job.cpus or 1) // nodes),
        memory_mib=_memory(job, nodes),
        features=demand.parse_constraint(",".join(job.constraints or ())),
        required_nodes=expand(job.required_nodes),
        excluded_nodes=expand(job.excluded_nodes),
        tasks=_array_tasks(job),
        submit_time=int(job.submit_time or 0),
        reason=(job.state_reason or "None").split(",")[0].split(" ")[0],
    )


def _other_tres() -> dict[int, tuple[str, str]]:
    """`--gpus` and `--gpus-per-task` of every pending job, by job id.

    pyslurm 25.11 splits these at `=`, Slurm 26.05 writes `gres/gpu:3g.20gb:1`: they are lost.
    """
    text = _run(
        "squeue",
        "--noheader",
        "--states=PENDING",
        "--Format=JobID:|,tres-per-job:|,tres-per-task:|",
    )
    found = {}
    for line in text.splitlines():
        job_id, per_job, per_task, *_ = (*line.split("|"), "", "", "")
        if job_id.strip().isdigit():
            found[int(job_id)] = (per_job.strip(), per_task.strip())
    return found


def _memory(job: Any, nodes: int) -> int:
    if job.memory_per_node:
        return int(job.memory_per_node)
    if job.memory_per_cpu:
        return int(job.memory_per_cpu) * -(-int(job.cpus or 1) // nodes)
    return 0


def _array_tasks(job: Any) -> int:
    """How many tasks of an array record still wait; its `%N` throttle caps them."""
    text = job.array_tasks_waiting
    if not text:
        return 1
    total = 0
    for part in str(text).split(","):
        span, _, step = part.partition(":")
        low, _, high = span.partition("-")
        if low.isdigit():
            total += (int(high or low) - int(low)) // int(step or 1) + 1
    limit = int(job.array_tasks_parallel or 0)
    return max(1, min(total, limit) if limit else total)
