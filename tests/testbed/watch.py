"""An outside checker: what must hold on a cluster at any moment, whatever slurm-mig does to it.

Looks at Slurm's own words, the files that slurmd reads, the simulator's state and the jobs' own
reports, never at slurm-mig's. Keeps every violation that it sees.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from slurm_mig.core import demand
from tests.testbed.device_program import slots
from tests.testbed.product import ManagedCluster

ENDED_WELL = frozenset({"COMPLETED"})

CAPS = "/dev/nvidia-caps/nvidia-cap"
PUBLISHED = "/etc/slurm/slurm-mig/gres.conf"


def gates(cluster: ManagedCluster, node: str) -> frozenset[str]:
    """Every GPU of the node and every GPU instance that it can ever have, by the driver's word.

    CUDA needs the files of an instance all: who is denied its GPU instance's, or its GPU's, has
    nothing from a compute instance's.
    """
    lines = cluster.read("/proc/driver/nvidia-caps/mig-minors", node).splitlines()
    numbers = dict(line.split() for line in lines)
    gpus = [gpu["minor"] for gpu in cluster.sim(node)["gpus"]]
    caps = {f"{CAPS}{numbers[f'gpu{g}/gi{i}/access']}" for g in gpus for i in range(15)}
    return frozenset(caps | {f"/dev/nvidia{gpu}" for gpu in gpus})


Run = tuple[int, int, str]
"""A job's one run on a node: job id, how often it was put back into the queue, node."""


@dataclass(frozen=True)
class Held:
    """What a run has of its node: GRES indexes, and the device files there."""

    indexes: frozenset[int]
    files: frozenset[str]


@dataclass
class Watch:
    """`look` as often as possible; `finish` when every job has ended."""

    cluster: ManagedCluster
    cancelled: set[int] = field(default_factory=set)
    """Jobs that the test itself cancelled."""
    requeued: set[int] = field(default_factory=set)
    """Jobs that may run twice under another count of restarts, so perhaps on two devices."""
    violations: list[str] = field(default_factory=list)
    looks: int = 0
    opened: int = 0
    """How many jobs' devices were compared with what they could open."""
    _first: dict[Run, Held] = field(default_factory=dict)
    _totals: dict[str, int] = field(default_factory=dict)
    _gates: dict[str, frozenset[str]] = field(default_factory=dict)

    def look(self) -> None:
        """One look at the running jobs and the nodes; not at a slurmctld that is away, nor while
        somebody publishes."""
        files = self._published()
        done = self.cluster.run("squeue", "--json", "--states=RUNNING,SUSPENDED", check=False)
        if done.returncode or files != self._published():
            return
        self.looks += 1
        users: dict[str, dict[int, int]] = defaultdict(dict)
        for job in json.loads(done.stdout)["jobs"]:
            for name, indexes in _devices(job):
                has = frozenset(f for i in indexes if name in files for f in files[name][i])
                self._same_as_before(
                    (int(job["job_id"]), int(job["restart_cnt"]), name), Held(indexes, has)
                )
                for index in indexes:
                    other = users[name].setdefault(index, int(job["job_id"]))
                    if other != job["job_id"]:
                        self.saw(f"{name} index {index} is jobs {other}'s and {job['job_id']}'s")
        self._same_totals()
        self._none_held()

    def _none_held(self) -> None:
        """Slurm holds for good what it believes to be impossible, or could not launch."""
        shown = self.cluster.run("squeue", "-h", "-t", "PD", "-o", "%A %r", check=False).stdout
        for line in shown.splitlines():
            job, _, reason = line.partition(" ")
            if reason.startswith(("JobHeld", "BadConstraints", "launch failed")):
                find = ("grep", "-hE", rf"JobId={job}\b", "/var/log/slurm/slurmctld.log")
                said = self.cluster.run(*find, check=False).stdout
                self.saw(f"job {job} is held: {reason}\n{said}")

    def _published(self) -> dict[str, list[tuple[str, ...]]]:
        """The files of each GRES index, by node, as slurmd reads them."""
        by_node: dict[str, list[str]] = defaultdict(list)
        for line in self.cluster.read(PUBLISHED).splitlines():
            if match := re.match(r"NodeName=(\S+) Name=gpu", line):
                by_node[match[1]].append(line)
        return {name: [slot.files for slot in slots("\n".join(lines))]
                for name, lines in by_node.items()}  # fmt: skip

    def _same_as_before(self, run: Run, held: Held) -> None:
        first = self._first.setdefault(run, held)
        if first != held and run[0] not in self.requeued:
            self.saw(f"job {run[0]} on {run[2]}: {first} became {held}")

    def _same_totals(self) -> None:
        shown = self.cluster.run("scontrol", "show", "node", "-o", check=False).stdout
        for line in shown.splitlines():
            name = re.match(r"NodeName=(\S+)", line)
            gres = re.search(r" Gres=(\S+)", line)
            # Between two registrations a fenced node shows what the first one brought.
            fenced = re.search(r" State=\S*DRAIN", line)
            if name and gres and not fenced and "mig-catalog" not in name[1]:
                total = sum(demand.parse_gres(gres[1]).values())
                before = self._totals.setdefault(name[1], total)
                if total != before:
                    self.saw(f"{name[1]}: {before} gpus became {total}")

    def finish(self, jobs: dict[int, str]) -> None:
        """Every job (by id, with its gpu type, empty for any) must have ended well, on one device
        of its type, and have been able to open what it had and nothing else."""
        for job, gpu_type in jobs.items():
            shown = self.cluster.job(job)
            state = shown.get("JobState", "gone")
            if job in self.cancelled:
                continue
            if state not in ENDED_WELL:
                self.saw(f"job {job} ({gpu_type}) ended {state}: {self.cluster.output(job)[-300:]}")
                continue
            self._one_device(job, gpu_type, again=shown["Restarts"] != "0")
            self._only_its_own(job, every=not gpu_type)

    def _one_device(self, job: int, gpu_type: str, *, again: bool) -> None:
        first = self.cluster.reports(job, "first")
        second = self.cluster.reports(job, "second")
        if not first or not second:
            self.saw(f"job {job} ({gpu_type}) did not compute twice")
            return
        changed = {r["uuid"] for r in first} - {r["uuid"] for r in second}
        if changed and not again and job not in self.requeued:
            self.saw(f"job {job}: device {first} became {second}")
        wanted = gpu_type if gpu_type[:1].isdigit() else "whole"
        wrong = [r for r in (*first, *second) if gpu_type and r["profile"] != wanted]
        if wrong:
            self.saw(f"job {job} asked for {gpu_type} and got {wrong[0]['profile']}")

    def _only_its_own(self, job: int, *, every: bool) -> None:
        """A step of a job that has every device gets as many as it asks for."""
        for node, could in self._opened(job):
            seen = [held.files for (j, _, n), held in self._first.items() if (j, n) == (job, node)]
            if not seen:
                continue  # it came and went between two looks
            self.opened += 1
            if node not in self._gates:
                self._gates[node] = gates(self.cluster, node)
            own = [files & self._gates[node] for files in seen]
            if could not in own and not (every and could and could <= own[0]):
                self.saw(f"job {job} on {node} could open {sorted(could)}, had {seen}")

    def _opened(self, job: int) -> Iterator[tuple[str, set[str]]]:
        """Node and files that a step of the job could open there, by its own report."""
        text = self.cluster.run("cat", f"/tmp/jobs/{job}.opened", check=False).stdout
        for line in text.splitlines():
            node, _, answer = line.partition(" ")
            yield node, {file for file, error in json.loads(answer).items() if not error}

    def saw(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)


def _devices(job: dict[str, Any]) -> list[tuple[str, frozenset[int]]]:
    """Node and gpu indexes of a job's allocation."""
    names = [n["name"] for n in job["job_resources"]["nodes"]["allocation"]]
    details = [demand.gpu_indexes(d) for d in job.get("gres_detail") or ()]
    return [(n, i) for n, i in zip(names, details, strict=False) if i]
