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
import logging
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyslurm

from slurm_mig.adapters.nodesets import expand
from slurm_mig.adapters.slurmcommands import environment
from slurm_mig.core import demand, preemption
from slurm_mig.core.model import Allocation, JobRequest, Reservation, SlurmNode
from slurm_mig.core.records import REASON
from slurm_mig.errors import GoneError, SlurmMigError, UnreachableError

log = logging.getLogger(__name__)

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
            reservations = _reservations(nodes)
        held = _by_node(_running_jobs())
        return {
            name: _node(node, held.get(name, _Held()), reservations.get(name, []))
            for name, node in nodes.items()
        }

    def node(self, name: str) -> SlurmNode:
        """One node, read again, and nothing of the others: what a reshape asks for. Raises
        GoneError when it is not there any more."""
        node = self._load(name)
        with _translated("reading reservations from slurmctld"):
            reservations = _reservations()
        held = _by_node(_running_jobs())
        return _node(node, held.get(name, _Held()), reservations.get(name, []))

    def watch(self, name: str) -> SlurmNode:
        """One node without its jobs: quick, for waiting until its state changes. Raises as `node`
        does."""
        return _node(self._load(name), _Held(), [])

    def _load(self, name: str) -> Any:
        try:
            return pyslurm.Node.load(name)
        except pyslurm.PyslurmError as error:
            if name not in self.nodes():
                raise GoneError(f"slurmctld has no node {name} any more") from error
            raise _unreachable(f"reading node {name} from slurmctld", error) from error

    def pending(self) -> list[JobRequest]:
        """Every pending job that asks for gpus, whatever it waits for."""
        with _translated("reading jobs from slurmctld"):
            every = list(pyslurm.Jobs.load().values())
            jobs = [job for job in every if job.state == "PENDING"]
            rules = _preemption() if jobs else preemption.Rules()
        running = [_candidate(job) for job in every if job.state == "RUNNING"]
        extra = _other_tres() if any(not job.gres_per_node for job in jobs) else {}
        whole = _exclusive_partitions() if jobs else frozenset()
        requests = (
            _request(job, extra, preemption.victims(_candidate(job), running, rules), whole)
            for job in jobs
        )
        return [r for r in requests if r is not None]

    def drain(self, node: str, reason: str) -> None:
        with _translated(f"draining {node}"):
            pyslurm.Node(node).modify(pyslurm.Node(state="DRAIN", reason=reason))

    def loosen(self, node: str) -> None:
        """DRAIN becomes FAIL, which keeps jobs away as well; the reason stays. To be resumed next.

        Out of DRAIN `resume` leaves the node NOT_RESPONDING until it registers again, out of FAIL
        not (source: node_mgr.c `update_node`, 24.11 and 26.05).
        """
        with _translated(f"releasing {node}"):
            pyslurm.Node(node).modify(pyslurm.Node(state="FAIL"))

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
            env=environment(),
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
            command, capture_output=True, text=True, timeout=SCONTROL_TIMEOUT_S, check=False,
            env=environment(),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SlurmMigError(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"`{' '.join(command)}` timed out") from error
    if done.returncode:
        raise UnreachableError(
            f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}"
        )
    return done.stdout


def _reservations(shown: Mapping[str, Any] | None = None) -> dict[str, list[Reservation]]:
    """Active and coming reservations by node; `shown` are all nodes, where they are known."""
    reserved = pyslurm.Reservations.load()
    if not reserved:
        return {}
    shown = pyslurm.Nodes.load() if shown is None else shown
    cpus = {name: int(node.total_cpus or 0) for name, node in shown.items()}
    found: dict[str, list[Reservation]] = defaultdict(list)
    now = time.time()
    for reservation in reserved.values():
        nodes = expand(reservation.nodes)
        counts = demand.parse_tres(",".join(f"{k}={n}" for k, n in reservation.tres.items()))
        # `gres/gpu` is the total, the typed ones among it.
        untyped = counts.pop("", 0) - sum(counts.values())
        reserved_cpus = int(reservation.tres.get("cpu", 0) or 0)
        seen = Reservation(
            name=reservation.name,
            begins_in_s=0.0 if reservation.is_active else (reservation.start_time or 0) - now,
            whole=not reserved_cpus or reserved_cpus >= sum(cpus.get(n, 0) for n in nodes),
            gpus={**counts, **({"": untyped} if untyped > 0 else {})},
        )
        for name in nodes:
            found[name].append(seen)
    return dict(found)


def _running_jobs() -> list[Mapping[str, Any]]:
    """Every job that holds resources, as Slurm's own JSON has it."""
    text = _run("squeue", "--json", "--local", f"--states={','.join(sorted(HOLDS_GRES))}")
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
        user = str(job.get("user_name") or "?")
        for name, indexes in demand.gpus_by_node(job):
            held = Allocation(job_id, user, indexes, min(states), _end(job))
            found[name].allocations.append(held)
        for state in sorted(states & UNSETTLED):
            for name in expand(job.get("nodes")):
                found[name].unsettled.append(f"job {job_id} is {state}")
        if job.get("batch_flag") and states == {"RUNNING"}:
            found[str(job.get("batch_host"))].batch_jobs.add(job_id)
    return dict(found)


def _end(job: Mapping[str, Any]) -> int:
    """When the job's time limit ends it; 0 without one (Slurm then says a year from its start)."""
    limit, end = job.get("time_limit") or {}, job.get("end_time") or {}
    return int(end.get("number") or 0) if limit.get("set") and end.get("set") else 0


def _node(node: Any, held: _Held, reservations: Iterable[Reservation]) -> SlurmNode:
    return SlurmNode(
        name=node.name,
        states=_states(node),
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
        reservations=tuple(reservations),
        slurmd_start=int(node.slurmd_start_time or 0),
    )


def _states(node: Any) -> frozenset[str]:
    """A fence of ours that was being lifted when we ended (`loosen`) is still our fence."""
    states = frozenset(node.state.split("+"))
    if "FAIL" in states and (node.reason or "").startswith(f"{REASON}:"):
        return states - {"FAIL"} | {"DRAIN"}
    return states


def _preemption() -> preemption.Rules:
    """Whom Slurm's configuration lets preempt whom."""
    config = pyslurm.slurmctld.Config.load()
    kind = (config.preempt_type or "").removeprefix("preempt/")
    if kind == "partition_prio":
        return preemption.Rules(
            kind,
            tiers={n: int(p.priority_tier or 0) for n, p in pyslurm.Partitions.load().items()},
            modes={n: p.preempt_mode or "" for n, p in pyslurm.Partitions.load().items()},
            mode=config.preempt_mode or "",
        )
    if kind == "qos":
        try:
            text = _run("sacctmgr", "-nP", "show", "qos", "format=name,preempt,preemptmode")
        except UnreachableError as error:
            log.warning("whom a QOS may preempt is not known now: %s", error)
            return preemption.Rules()
        lists, modes = preemption.parse_qos(text)
        return preemption.Rules(kind, lists=lists, modes=modes, mode=config.preempt_mode or "")
    return preemption.Rules()


def _candidate(job: Any) -> preemption.Candidate:
    return preemption.Candidate(int(job.id), job.partition or "", job.qos or "")


def _exclusive_partitions() -> frozenset[str]:
    """Partitions whose jobs all get whole nodes (OverSubscribe=EXCLUSIVE)."""
    text = _run("scontrol", "show", "partition", "--oneliner")
    shown = (dict(w.split("=", 1) for w in line.split() if "=" in w) for line in text.splitlines())
    return frozenset(
        p["PartitionName"]
        for p in shown
        if p.get("Exclusive") == "NODE" or p.get("OverSubscribe") == "EXCLUSIVE"
    )


def _request(
    job: Any,
    extra: Mapping[int, tuple[str, str]],
    preempts: frozenset[int],
    whole_partitions: frozenset[str],
) -> JobRequest | None:
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
        account=job.account or "",
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
        het_job=int(job.heterogeneous_id or 0),
        time_limit_s=60 * int(job.time_limit or 0),
        reservation=job.reservation or "",
        exclusive=job.resource_sharing == "NO" or job.partition in whole_partitions,
        preempts=preempts,
    )


def _other_tres() -> dict[int, tuple[str, str]]:
    """`--gpus` and `--gpus-per-task` of every pending job, by job id.

    pyslurm 25.11 splits these at `=`, Slurm 26.05 writes `gres/gpu:3g.20gb:1`: they are lost.
    """
    text = _run(
        "squeue",
        "--noheader",
        "--local",
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
