"""The site's rules for a node group, on a running cluster: what is refused is said by `plan`, by
`status` and by the cycle."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from slurm_mig.core.windows import DAYS
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import no_jobs
from tests.testbed.product import CONFIGURATION, ManagedCluster


def group(rules: str) -> str:
    """The configuration with these keys for the node's group."""
    return CONFIGURATION + f"groups:\n  - {{nodes: a100-1, name: front, {rules}}}\n"


@pytest.fixture(scope="module")
def one() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=(NodeSpec("a100-1", (A100,)),)) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(one: ManagedCluster) -> Iterator[ManagedCluster]:
    yield one
    no_jobs(one)
    one.configure(CONFIGURATION)


def count(cluster: ManagedCluster, profile: str) -> int:
    return sum(i["profile"] == profile for _, i in cluster.instances("a100-1"))


def refused(cluster: ManagedCluster, words: str) -> None:
    """Nothing changes, and all three say why."""
    before = sorted(map(str, cluster.instances("a100-1")))
    for command in ("plan", "status", "reconcile"):
        said = cluster.slurm_mig(command).stdout
        assert words in said, (command, said)
    assert sorted(map(str, cluster.instances("a100-1"))) == before


def test_a_minimum_and_a_maximum(site: ManagedCluster) -> None:
    site.configure(group("minimum: {1g.5gb: 3}, maximum: {3g.20gb: 1}"))
    wants = site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, "group front keeps at least 3 1g.5gb, and has 7")
    site.run("scancel", str(wants))
    first, second = (site.submit("sleep 60", "--gres=gpu:3g.20gb:1") for _ in range(2))
    site.slurm_mig("reconcile")
    site.wait_job(first, "RUNNING")
    assert count(site, "1g.5gb") >= 3
    refused(site, "group front has at most 1 3g.20gb, and has 1")
    site.run("scancel", str(first), str(second))


def test_a_window_and_an_excluded_user(site: ManagedCluster) -> None:
    other_day = DAYS[(time.localtime().tm_wday + 3) % 7]
    site.configure(group(f"windows: [{other_day}]"))
    wants = site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, f"a100-1: reshapes only {other_day}: again in")
    site.configure(group("exclude_users: [alice]"))
    refused(site, "a100-1: policy: jobs of user alice cause no reshape")
    site.configure(group("windows: []"))
    site.slurm_mig("reconcile")
    site.wait_job(wants, "COMPLETED", "RUNNING")


def test_an_idle_gpu_gets_its_groups_baseline(site: ManagedCluster) -> None:
    site.configure(group("baseline: {3g.20gb: 1, 2g.10gb: 2}, baseline_after_s: 1"))
    time.sleep(1)
    said = site.slurm_mig("reconcile").stdout
    assert "a100-1 reshaped" in said, said
    assert (count(site, "3g.20gb"), count(site, "2g.10gb")) == (1, 2)
    assert "nothing to do" in site.slurm_mig("reconcile").stdout
