"""What nearly every test on a running cluster does with jobs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from slurm_mig.core import demand
from slurm_mig.core.model import is_filler
from tests.testbed.product import CUDA_JOB, ManagedCluster

USERS = ("alice", "bob", "root")
PROFILES = ("3g.20gb", "4g.20gb", "2g.10gb", "7g.40gb")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")


def no_jobs(cluster: ManagedCluster, within_s: float = 30) -> None:
    """Every job is cancelled and gone; what waits goes first, so that none starts meanwhile."""
    for state in (["--state=PENDING"], []):
        for user in USERS:
            cluster.run("scancel", f"--user={user}", *state, check=False)
    cluster.wait_for(
        lambda: not cluster.run("squeue", "-h").stdout.strip(), within_s, "every job to be gone"
    )


def gres(cluster: ManagedCluster, node: str = "a100-1") -> dict[str, int]:
    """Gpus by type, as slurmctld shows the node."""
    return demand.parse_gres(cluster.node(node)["Gres"])


def offered(cluster: ManagedCluster, node: str = "a100-1") -> str:
    """A type that a job can have on the node now."""
    return next(t for t, n in gres(cluster, node).items() if n and not is_filler(t))


def absent(cluster: ManagedCluster, *nodes: str, among: Sequence[str] = PROFILES) -> str:
    """The first of these profiles that none of the nodes offers now."""
    shown = [gres(cluster, node) for node in nodes]
    return next(p for p in among if not any(types.get(p) for types in shown))


def index_of(cluster: ManagedCluster, job: int) -> frozenset[int]:
    return demand.gpu_indexes(cluster.job(job)["GRES"])


def computing(cluster: ManagedCluster, wanted: str, *options: str, user: str = "alice") -> int:
    """A job that computes on its devices until `ended_well` tells it to stop."""
    job = cluster.submit(CUDA_JOB, f"--gres={wanted}", *options, user=user)
    served(cluster, job, within_s=30)
    return job


def served(cluster: ManagedCluster, *jobs: int, within_s: float = 20) -> None:
    """Each of these `CUDA_JOB`s computes."""
    for job in jobs:
        cluster.wait_for(
            partial(cluster.reports, job, "first"), within_s,
            f"job {job} to compute: {cluster.output(job)}",
        )  # fmt: skip


def ended_well(cluster: ManagedCluster, *jobs: int) -> None:
    """Tell the jobs to stop; each must have kept its device and used it in a further step."""
    for job in jobs:
        cluster.run("touch", f"/tmp/jobs/{job}.stop")
    for job in jobs:
        shown = cluster.wait_job(job, *ENDED)
        assert shown["JobState"] == "COMPLETED", cluster.output(job)
        first, second = cluster.reports(job, "first"), cluster.reports(job, "second")
        assert first[0]["uuid"] == second[0]["uuid"]


def reconcile_until(cluster: ManagedCluster, *jobs: int, cycles: int = 8) -> None:
    """Cycles until all of the jobs have started."""
    for _ in range(cycles):
        cluster.slurm_mig("reconcile")
        if all(cluster.job(job)["JobState"] != "PENDING" for job in jobs):
            break
    for job in jobs:
        cluster.wait_job(job, "RUNNING", "COMPLETING", "COMPLETED")


def registrations_refused(cluster: ManagedCluster) -> int:
    """How many registrations slurmctld has refused: the first of two."""
    return cluster.read("/var/log/slurm/slurmctld.log").count("count too low")
