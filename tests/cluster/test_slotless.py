"""A node without slots (`slots: false`): no fillers; its gpu count changes by a reconfigure, and
never under a gpu job."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.device_program import OPENS
from tests.testbed.jobs import computing, ended_well, gres, no_jobs, reconcile_until, served
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster
from tests.testbed.watch import gates

NODE, BESIDE = "counted", "slotted"
GROUPS = f"groups: [{{nodes: {NODE}, slots: false}}]\nslurm: {{reconfigure_interval_s: 0}}\n"
FENCE = GROUPS + "policy: {cooldown_s: 0, withhold_s: 0, fence_wait_s: 60}\n"
HERE, THERE = ("-C", NODE), ("-C", BESIDE)
OPENS_JOB = f"exec /opt/slurm-mig/venv/bin/python {OPENS} --wait /tmp/jobs/$SLURM_JOB_ID"


def rules(more: str) -> str:
    """The configuration with these sections, the last of each counting."""
    kept = CONFIGURATION.split("policy:\n")[0] if "policy:" in more else CONFIGURATION
    return kept + more


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    nodes = tuple(NodeSpec(name, (A100, A100), features=name) for name in (NODE, BESIDE))
    with ManagedCluster(nodes=nodes, configuration=rules(GROUPS)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def two(site: ManagedCluster) -> Iterator[ManagedCluster]:
    """Both nodes, and a gpu job on the other one that lives through every reconfigure."""
    beside = computing(site, "gpu:1g.5gb:1", *THERE)
    yield site
    ended_well(site, beside)
    no_jobs(site)
    site.configure(rules(GROUPS))


def shown(cluster: ManagedCluster) -> dict[str, int]:
    return gres(cluster, NODE)


def agreed(cluster: ManagedCluster) -> bool:
    """slurmctld shows the instances that are there and the guard, and no filler."""
    there = [i["profile"] for _, i in cluster.instances(NODE)]
    found = [t for t, n in shown(cluster).items() for _ in range(n)]
    return sorted(found) == sorted([*there, "guard"])


def wanting(cluster: ManagedCluster) -> tuple[int, str]:
    """A job for a type that the node has not, and the type."""
    profile = next(p for p in ("3g.20gb", "4g.20gb", "2g.10gb") if p not in shown(cluster))
    return cluster.submit(CUDA_JOB, f"--gres=gpu:{profile}:1", *HERE), profile


def run_and_compute(cluster: ManagedCluster, job: int) -> None:
    reconcile_until(cluster, job)
    served(cluster, job)


def test_the_count_waits_for_gpu_jobs_and_nothing_else(two: ManagedCluster) -> None:
    """A job without gpus runs on, and can open nothing that is made under it."""
    assert agreed(two)
    count = sum(shown(two).values())
    without = two.submit(OPENS_JOB, *HERE)
    holder = computing(two, "gpu:1g.5gb:1", *HERE)
    wants, profile = wanting(two)
    said = two.slurm_mig("reconcile").stdout
    assert f"its gpus change only while no job has any, and job {holder} has" in said
    assert sum(shown(two).values()) == count
    ended_well(two, holder)
    run_and_compute(two, wants)
    assert agreed(two)
    assert shown(two)[profile] == 1
    assert sum(shown(two).values()) < count
    assert two.job(without)["JobState"] == "RUNNING"
    prefix = f"/tmp/jobs/{without}"
    two.sh(f"echo {' '.join(gates(two, NODE))} > {prefix}.q; mv {prefix}.q {prefix}.ask.1")
    answer = two.wait_for(
        lambda: two.run("cat", f"{prefix}.answer.1", check=False).stdout, 20, "an answer"
    )
    assert '""' not in answer
    ended_well(two, wants)


def test_what_is_free_serves_without_a_change(two: ManagedCluster) -> None:
    holder = two.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", *HERE)
    another = two.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", *HERE)
    for job in (holder, another):
        two.wait_for(partial(two.reports, job, "first"), 30, f"job {job} to compute")
    assert two.slurm_mig("reconcile").stdout.startswith("nothing to do")
    ended_well(two, holder, another)


def test_a_fence_lets_every_gpu_job_end(two: ManagedCluster) -> None:
    """Where policy allows one: also jobs of GPUs that the change does not touch are waited for."""
    two.configure(rules(FENCE))
    holder = computing(two, "gpu:1g.5gb:1", *HERE)
    wants, _ = wanting(two)
    two.slurm_mig("reconcile")
    two.slurm_mig("reconcile")
    assert "DRAIN" in two.node(NODE)["State"]
    assert f"job {holder} has gpus of {NODE}, whose count changes" in two.slurm_mig("status").stdout
    assert two.job(holder)["JobState"] == "RUNNING"
    ended_well(two, holder)
    run_and_compute(two, wants)
    assert agreed(two)
    ended_well(two, wants)


@pytest.mark.parametrize("point", ["nodes.reshape", "files.write", "cluster.reconfigure"])
def test_killed_after(two: ManagedCluster, point: str) -> None:
    wants, _ = wanting(two)
    died = two.run("python", "-m", "tests.testbed.die_at", point, check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    run_and_compute(two, wants)
    assert agreed(two)
    assert "DRAIN" not in two.node(NODE)["State"]
    ended_well(two, wants)


def test_it_leaves_as_it_came(two: ManagedCluster) -> None:
    """The last test of the module."""
    two.slurm_mig("leave", NODE)
    assert "guard" not in shown(two)
    two.slurm_mig("enrol", NODE)
    assert agreed(two)
