"""The demo: tells the story of the main job on a real Slurm, and checks each of its claims."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial

from tests.testbed.product import CUDA_JOB, ManagedCluster

RUNNERS = (("a100-1", 3), ("a100-2", 2), ("a30-1", 2))
"""Node and how many small jobs run there throughout."""
SMALL = {"a100-1": "1g.5gb", "a100-2": "1g.5gb", "a30-1": "1g.6gb"}
WANTED = ("3g.20gb", "7g.40gb", "2g.12gb")
WAIT_S = 30.0


@dataclass
class Claims:
    """What was claimed, and whether it held."""

    failed: list[str] = field(default_factory=list)

    def check(self, text: str, *, holds: bool, detail: str = "") -> None:
        print(f"  {'ok ' if holds else 'NOT'} {text}{f' ({detail})' if detail else ''}", flush=True)
        if not holds:
            self.failed.append(text)


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def show_map(cluster: ManagedCluster) -> None:
    text = cluster.run("slurm-mig", "status", env={"COLUMNS": "100"}).stdout
    print(text.split("Waiting:")[0].rstrip(), flush=True)


def start_runners(cluster: ManagedCluster) -> list[int]:
    jobs = [
        cluster.submit(CUDA_JOB, f"--gres=gpu:{SMALL[node]}:1", "-w", node)
        for node, count in RUNNERS
        for _ in range(count)
    ]
    for job in jobs:
        cluster.wait_for(partial(cluster.reports, job, "first"), 20, f"job {job} to compute")
    return jobs


def serve_waiting(cluster: ManagedCluster, claims: Claims) -> None:
    """Submit what no GPU is cut into, run the reconciler, and time each start."""
    submitted = {
        cluster.submit(CUDA_JOB, f"--gres=gpu:{profile}:1", user="bob"): (profile, time.monotonic())
        for profile in WANTED
    }
    print(cluster.run("squeue", "-t", "PENDING", "-o", "%.6i %.10b %.8u %.4t  %r").stdout, end="")
    cluster.reconcile_every(0.3)
    for job, (profile, since) in submitted.items():
        try:
            cluster.wait_for(partial(cluster.reports, job, "first"), WAIT_S, f"job {job}")
        except TimeoutError:
            claims.check(f"job {job} ({profile}) started", holds=False)
            continue
        waited = time.monotonic() - since
        report = cluster.reports(job, "first")[0]
        claims.check(
            f"job {job} ({profile}) computes on a {report['profile']}",
            holds=report["profile"] == profile,
            detail=f"{waited:.1f} s after its submit",
        )
    for done in cluster.history():
        claims.check(
            f"{done['node']} reshaped in {done['finished'] - done['started']:.2f} s",
            holds=done["phase"] == "released",
        )
    finish(cluster, list(submitted))


def finish(cluster: ManagedCluster, jobs: list[int]) -> None:
    for job in jobs:
        cluster.run("touch", f"/tmp/jobs/{job}.stop")
    for job in jobs:
        cluster.wait_job(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")


def check_runners(cluster: ManagedCluster, jobs: list[int], claims: Claims) -> None:
    finish(cluster, jobs)
    for job in jobs:
        first, second = cluster.reports(job, "first"), cluster.reports(job, "second")
        same = bool(first and second) and first[0]["uuid"] == second[0]["uuid"]
        state = cluster.job(job).get("JobState", "gone")
        claims.check(
            f"job {job} kept its device through it all, launched a further step on it, {state}",
            holds=same and state == "COMPLETED",
            detail=first[0]["uuid"] if same else cluster.output(job).strip(),
        )


def main() -> int:
    began = time.monotonic()
    claims = Claims()
    say("A private Slurm cluster with simulated GPUs")
    with ManagedCluster(timing="hardware") as cluster:
        print(cluster.describe())
        say("Without slurm-mig: a 3g.20gb job is refused, beside idle GPUs cut into 1g.5gb")
        refused = cluster.run(
            "sbatch", "--gres=gpu:3g.20gb:1", "--wrap=true", user="bob", check=False
        )
        print(refused.stderr.strip())
        claims.check("plain Slurm refuses it", holds=refused.returncode != 0)
        say("slurm-mig takes the nodes into its care")
        print(cluster.slurm_mig("enrol", *[n.name for n in cluster.nodes]).stdout, end="")
        say("Small jobs run on them, and compute")
        runners = start_runners(cluster)
        show_map(cluster)
        say(f"Jobs for {', '.join(WANTED)} are submitted; the reconciler runs")
        serve_waiting(cluster, claims)
        show_map(cluster)
        say("The small jobs that ran through it")
        check_runners(cluster, runners, claims)
    say(f"{time.monotonic() - began:.0f} s in all; the cluster is gone")
    if claims.failed:
        print(f"{len(claims.failed)} claims did not hold", file=sys.stderr)
        return 1
    print("Every claim held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
