"""An outside checker: what must hold on a cluster at any moment, whatever slurm-mig does to it.

Looks at Slurm's own words, the simulator's state and the jobs' own reports, never at slurm-mig's.
Keeps every violation that it sees.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from slurm_mig.core import demand
from tests.testbed.product import ManagedCluster

ENDED_WELL = frozenset({"COMPLETED"})
ENDED = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL"}
)


@dataclass
class Watch:
    """`look` as often as possible; `finish` when every job has ended."""

    cluster: ManagedCluster
    cancelled: set[int] = field(default_factory=set)
    """Jobs that the test itself cancelled."""
    requeued: set[int] = field(default_factory=set)
    """Jobs that ran twice, so perhaps on two devices."""
    violations: list[str] = field(default_factory=list)
    looks: int = 0
    _first: dict[tuple[tuple[int, int], str], frozenset[int]] = field(default_factory=dict)
    _totals: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """One look at the running jobs and the nodes; a slurmctld that is away is not looked at."""
        done = self.cluster.run("squeue", "--json", "--states=RUNNING,SUSPENDED", check=False)
        if done.returncode:
            return
        self.looks += 1
        users: dict[str, dict[int, int]] = defaultdict(dict)
        for job in json.loads(done.stdout)["jobs"]:
            for name, indexes in _devices(job):
                # Slurm itself begins a job anew whose launch failed: that is another run of it.
                run = (int(job["job_id"]), int(job.get("restart_cnt") or 0))
                self._same_as_before(run, name, indexes)
                for index in indexes:
                    other = users[name].setdefault(index, int(job["job_id"]))
                    if other != job["job_id"]:
                        self.saw(f"{name} index {index} is jobs {other}'s and {job['job_id']}'s")
        self._same_totals()

    def _same_as_before(self, run: tuple[int, int], node: str, indexes: frozenset[int]) -> None:
        job = run[0]
        first = self._first.setdefault((run, node), indexes)
        if first != indexes and job not in self.requeued:
            self.saw(f"job {job} on {node}: indexes {sorted(first)} became {sorted(indexes)}")

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
        """Every job (by id, with its gpu type) must have ended well, on one device of its type."""
        for job, gres_type in jobs.items():
            state = self.cluster.job(job).get("JobState", "gone")
            if job in self.cancelled:
                continue
            if state not in ENDED_WELL:
                self.saw(
                    f"job {job} ({gres_type}) ended {state}: {self.cluster.output(job)[-300:]}"
                )
                continue
            self._one_device(job, gres_type)

    def _one_device(self, job: int, gres_type: str) -> None:
        first = self.cluster.reports(job, "first")
        second = self.cluster.reports(job, "second")
        if not first or not second:
            self.saw(f"job {job} ({gres_type}) did not compute twice")
            return
        changed = {r["uuid"] for r in first} - {r["uuid"] for r in second}
        if changed and job not in self.requeued:
            self.saw(f"job {job}: device {first} became {second}")
        wrong = [r for r in (*first, *second) if r["profile"] != gres_type]
        if wrong:
            self.saw(f"job {job} asked for {gres_type} and got {wrong[0]['profile']}")

    def saw(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)


def _devices(job: dict[str, Any]) -> list[tuple[str, frozenset[int]]]:
    """Node and gpu indexes of a job's allocation."""
    names = [n["name"] for n in job["job_resources"]["nodes"]["allocation"]]
    details = [demand.gpu_indexes(d) for d in job.get("gres_detail") or ()]
    return [(n, i) for n, i in zip(names, details, strict=False) if i]
