"""Reservations: active, about to begin, coming, with gpus; jobs that are submitted into one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import absent, gres, no_jobs, reconcile_until
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

TWO, ONE = "a100-1", "a100-2"


@pytest.fixture(scope="module")
def lab() -> Iterator[ManagedCluster]:
    """A node of two GPUs and one of one GPU; accounting, as reserved types must be counted TRES."""
    nodes = (NodeSpec(TWO, (A100, A100)), NodeSpec(ONE, (A100,)))
    with ManagedCluster(nodes=nodes, accounting=True) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(lab: ManagedCluster) -> Iterator[ManagedCluster]:
    yield lab
    no_jobs(lab)
    for line in lab.run("scontrol", "show", "res", "-o").stdout.splitlines():
        if line.startswith("ReservationName="):
            lab.run("scontrol", "delete", line.split()[0])
    lab.configure(CONFIGURATION)


def reserve(cluster: ManagedCluster, name: str, *words: str, start: str = "now") -> None:
    cluster.run("scontrol", "create", "reservation", f"ReservationName={name}",
                f"StartTime={start}", "Duration=30", *words)  # fmt: skip


def wanting(cluster: ManagedCluster, node: str, *options: str, user: str = "alice") -> int:
    """A job that this node alone may serve, once it is cut differently."""
    profile = absent(cluster, node)
    others = {TWO: ONE, ONE: TWO}[node]
    return cluster.submit("true", f"--gres=gpu:{profile}:1", f"--exclude={others}", *options,
                          user=user)  # fmt: skip


def made(cluster: ManagedCluster) -> dict[str, int]:
    return {node.name: cluster.sim(node.name)["created"] for node in cluster.nodes}


def why(cluster: ManagedCluster, job: int) -> str:
    """What `status` says of a waiting job."""
    return next((str(w["why"]) for w in cluster.status()["waiting"] if w["job"] == job), "")


def served(cluster: ManagedCluster, job: int) -> None:
    reconcile_until(cluster, job)
    cluster.wait_job(job, "COMPLETED")


@pytest.mark.parametrize("flags", [(), ("Flags=MAINT",)])
def test_a_node_in_a_reservation_is_left_alone(
    site: ManagedCluster, flags: tuple[str, ...]
) -> None:
    """From the first moment: the node's own MAINT and RESERVED flags come later."""
    wants, before = wanting(site, TWO), made(site)
    reserve(site, "other", f"Nodes={TWO}", "Users=bob", *flags)
    site.slurm_mig("reconcile")
    assert any(w in why(site, wants) for w in ("in reservation other", "+MAINTENANCE"))
    assert made(site) == before
    if flags:
        site.wait_for(lambda: "MAINT" in site.node(TWO)["State"], 30, "Slurm to flag the node")
        site.slurm_mig("reconcile")
        assert "node is IDLE+MAINT" in why(site, wants)
        assert made(site) == before
    site.run("scontrol", "delete", "ReservationName=other")
    served(site, wants)


def test_a_coming_reservation_and_the_time_a_job_may_run(site: ManagedCluster) -> None:
    """Slurm starts no job that would reach into it, so no node is reshaped for one."""
    reserve(site, "course", f"Nodes={TWO}", "Users=bob", start="now+600")
    long, before = wanting(site, TWO), made(site)
    site.slurm_mig("reconcile")
    assert "reservation course of a100-1 begins in" in why(site, long)
    assert "the job may run without limit" in why(site, long)
    hour = wanting(site, TWO, "--time=60")
    site.slurm_mig("reconcile")
    assert "the job may run 3600 s" in why(site, hour)
    assert made(site) == before
    short = wanting(site, TWO, "--time=2")
    served(site, short)
    assert site.job(long)["JobState"] == "PENDING"


def test_a_reservation_about_to_begin(site: ManagedCluster) -> None:
    reserve(site, "soon", f"Nodes={TWO}", "Users=bob", start="now+40")
    wants, before = wanting(site, TWO, "--time=1"), made(site)
    site.slurm_mig("reconcile")
    assert "reservation soon begins in" in why(site, wants)
    assert made(site) == before


def test_gpus_of_a_coming_reservation_stay(site: ManagedCluster) -> None:
    """As many of its type as it holds: Slurm itself would let them go."""
    ones = gres(site, ONE).get("1g.5gb", 0)
    reserve(site, "all", f"TRES=gres/gpu:1g.5gb={ones}", f"Nodes={ONE}", "Users=bob",
            start="now+600")  # fmt: skip
    wants, before = wanting(site, ONE, "--time=2"), made(site)
    site.slurm_mig("reconcile")
    assert why(site, wants)
    assert made(site) == before
    site.run("scontrol", "delete", "ReservationName=all")
    reserve(site, "some", "TRES=gres/gpu:1g.5gb=3", f"Nodes={ONE}", "Users=bob", start="now+600")
    served(site, wants)
    assert made(site) != before
    assert gres(site, ONE)["1g.5gb"] >= 3


def test_jobs_submitted_into_a_reservation(site: ManagedCluster) -> None:
    """Only where the configuration says that the reservation's nodes may be reshaped for them.

    The catalog's record must be in the reservation: without it Slurm refuses them at submit."""
    reserve(site, "course", f"Nodes={TWO},mig-catalog-1", "Users=alice")
    inside = wanting(site, TWO, "--reservation=course")
    before = made(site)
    site.slurm_mig("reconcile")
    assert "in reservation course" in why(site, inside)
    assert made(site) == before
    rules = CONFIGURATION.replace("policy:", "policy:\n  reservations: [course]")
    site.configure(rules)
    outside = site.submit("true", "--gres=gpu:7g.40gb:1", f"--exclude={ONE}", user="bob")
    served(site, inside)
    site.slurm_mig("reconcile")
    assert "is in reservation course" in why(site, outside)
    assert "7g.40gb" not in site.node(TWO)["Gres"].replace("7g.40gb:0", "")


def test_running_jobs_of_a_node_that_gets_reserved(site: ManagedCluster) -> None:
    """A reservation that ignores jobs comes over a running one: nothing happens to it."""
    runs = site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", f"--exclude={TWO}")
    site.wait_for(lambda: site.reports(runs, "first"), 20, "the job to compute")
    reserve(site, "over", f"Nodes={ONE}", "Users=bob", "Flags=IGNORE_JOBS")
    before = made(site)
    wanting(site, ONE)
    site.slurm_mig("reconcile")
    assert made(site) == before
    site.run("touch", f"/tmp/jobs/{runs}.stop")
    site.wait_job(runs, "COMPLETED")
