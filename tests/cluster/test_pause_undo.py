"""Pause, resume, history and undo on a running cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODES = tuple(NodeSpec(f"a100-{n}", (A100, A100), features=f"n{n}") for n in (1, 2))
GROUPED = CONFIGURATION + "groups:\n  - {nodes: a100-1, name: first}\n"
JOB_SECONDS = "sleep 0.3"


@pytest.fixture(scope="module")
def two() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=NODES, configuration=GROUPED) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(two: ManagedCluster) -> Iterator[ManagedCluster]:
    yield two
    no_jobs(two)
    for pause in two.status()["pauses"]:
        two.slurm_mig("resume", *filter(None, [pause["scope"]]))


def layouts(cluster: ManagedCluster, node: str) -> list[tuple[int, str, int]]:
    return sorted((g, i["profile"], i["start"]) for g, i in cluster.instances(node))


def serve(cluster: ManagedCluster, job: int) -> None:
    cluster.slurm_mig("reconcile")
    cluster.wait_job(job, "COMPLETED", "RUNNING")


def test_a_paused_cluster_is_left_alone_and_says_so(site: ManagedCluster) -> None:
    said = site.slurm_mig("pause", "--reason", "new driver").stdout
    assert said == "paused: the cluster, by root: new driver\n"
    before = [layouts(site, node.name) for node in NODES]
    wants = site.submit(JOB_SECONDS, "--gres=gpu:3g.20gb:1")
    cycle = site.slurm_mig("reconcile").stdout
    assert "paused: the cluster, by root: new driver" in cycle
    assert [layouts(site, node.name) for node in NODES] == before
    assert "paused: the cluster" in site.slurm_mig("plan").stdout
    status = site.slurm_mig("status").stdout
    assert "paused: the cluster, by root: new driver; `slurm-mig resume` lifts it" in status
    site.slurm_mig("resume")
    serve(site, wants)


def test_a_paused_group_and_a_paused_node(site: ManagedCluster) -> None:
    site.slurm_mig("pause", "@first", "a100-2")
    wants = site.submit(JOB_SECONDS, "--gres=gpu:7g.40gb:1")
    site.slurm_mig("reconcile")
    assert site.job(wants)["JobState"] == "PENDING"
    refused = site.slurm_mig("resume", check=False)
    assert refused.returncode == 2
    assert "the cluster has no pause of its own" in refused.stderr
    assert "still paused: group first" in site.slurm_mig("resume", "a100-2").stdout
    first = layouts(site, "a100-1")
    serve(site, wants)
    assert layouts(site, "a100-1") == first
    for word in ("@second", "a100-7"):
        assert site.slurm_mig("pause", word, check=False).returncode == 2


def test_a_pause_lets_what_was_begun_be_finished(site: ManagedCluster) -> None:
    """A reconciler died in the middle; paused or not, the next cycle recovers the node."""
    wants = site.submit(JOB_SECONDS, "--gres=gpu:2g.10gb:1")
    died = site.run("python", "-m", "tests.testbed.die_at", "files.write", check=False)
    assert died.returncode == -9
    site.slurm_mig("pause")
    shown = site.status()
    assert shown["transitions"]
    site.slurm_mig("reconcile")
    assert not site.status()["transitions"]
    assert all("DRAIN" not in site.node(node.name)["State"] for node in NODES)
    site.wait_job(wants, "COMPLETED")


def test_undo_brings_the_layout_back_under_running_jobs(site: ManagedCluster) -> None:
    running = site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "--nodelist=a100-1")
    site.wait_for(lambda: site.reports(running, "first"), 20, f"job {running} to compute")
    before = layouts(site, "a100-1")
    profiles = {profile for _, profile, _ in before}
    wanted = next(p for p in ("3g.20gb", "4g.20gb", "2g.10gb") if p not in profiles)
    wants = site.submit(JOB_SECONDS, f"--gres=gpu:{wanted}:1", "--constraint=n1")
    serve(site, wants)
    site.wait_job(wants, "COMPLETED")
    after = layouts(site, "a100-1")
    assert after != before
    dry = site.slurm_mig("undo", "a100-1", "--dry-run").stdout
    assert "a100-1: undo of " in dry
    assert layouts(site, "a100-1") == after
    assert "a100-1 reshaped in" in site.slurm_mig("undo", "a100-1").stdout
    assert layouts(site, "a100-1") == before
    site.slurm_mig("undo", "a100-1")
    assert layouts(site, "a100-1") == after, "undone twice, a change is there again"
    holder = site.submit(CUDA_JOB, f"--gres=gpu:{wanted}:1", "--constraint=n1")
    site.wait_for(lambda: site.reports(holder, "first"), 20, f"job {holder} to compute")
    refused = site.slurm_mig("undo", "a100-1", check=False)
    assert refused.returncode == 5
    assert f"job {holder} has {wanted}" in refused.stderr
    assert layouts(site, "a100-1") == after
    for job in (running, holder):
        site.run("touch", f"/tmp/jobs/{job}.stop")
        site.wait_job(job, "COMPLETED")
        first, second = site.reports(job, "first"), site.reports(job, "second")
        assert first[0]["uuid"] == second[0]["uuid"]


def test_the_history_says_what_when_why_and_by_which_plan(site: ManagedCluster) -> None:
    wants = site.submit(JOB_SECONDS, "--gres=gpu:4g.20gb:1,gpu:3g.20gb:1", "--constraint=n2")
    serve(site, wants)
    site.slurm_mig("pause", "a100-2", "--reason", "fan")
    text = site.slurm_mig("history", "--node", "a100-2", "--last", "2").stdout
    assert f"for job {wants} (3g.20gb, 4g.20gb)" in text
    assert "fence " in text
    assert "release " in text
    assert "a100-2 paused by root: fan" in text
    entries = json.loads(site.slurm_mig("history", "--json", "--since", "5m").stdout)["entries"]
    change = next(e for e in reversed(entries) if e["kind"] == "transaction")
    assert change["node"] == "a100-2"
    assert change["serves"] == [wants]
    assert change["plan"]
    assert set(change["seconds"]) >= {"fence", "reshape", "write files", "register", "release"}
