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
    """The configuration with these keys for the first node's group; the other stays as it is."""
    other = "  - {nodes: a100-2, reshape: false}\n"
    return CONFIGURATION + f"groups:\n  - {{nodes: a100-1, name: front, {rules}}}\n{other}"


def both(rules: str) -> str:
    """The configuration with these keys for a group of both nodes."""
    return CONFIGURATION + f"groups:\n  - {{nodes: 'a100-[1-2]', name: front, {rules}}}\n"


def policy(rule: str) -> str:
    """The configuration with one more line of policy, for the first node."""
    return group("reshape: true").replace("policy:\n", f"policy:\n  {rule}\n")


@pytest.fixture(scope="module")
def one() -> Iterator[ManagedCluster]:
    nodes = tuple(NodeSpec(name, (A100,)) for name in ("a100-1", "a100-2"))
    with ManagedCluster(nodes=nodes) as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def site(one: ManagedCluster) -> Iterator[ManagedCluster]:
    yield one
    no_jobs(one)
    one.configure(CONFIGURATION)


def count(cluster: ManagedCluster, profile: str) -> int:
    return sum(i["profile"] == profile for _, i in cluster.instances("a100-1"))


def said(cluster: ManagedCluster, words: str) -> None:
    """All three say why: the plan, the status, and the cycle's sentence, which is logged."""
    for command in ("plan", "status", "reconcile"):
        text = " ".join(cluster.slurm_mig(command).stdout.split())
        assert words in text, (command, text)


def refused(cluster: ManagedCluster, words: str) -> None:
    """Nothing changes, and all three say why."""
    before = sorted(map(str, cluster.instances("a100-1")))
    said(cluster, words)
    assert sorted(map(str, cluster.instances("a100-1"))) == before


def test_a_minimum_and_a_maximum(site: ManagedCluster) -> None:
    site.configure(group("minimum: {1g.5gb: 3}, maximum: {3g.20gb: 1}"))
    wants = site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, "group front keeps at least 3 1g.5gb, and has 7")
    files = ("--nodes", "/tmp/nodes.json", "--jobs", "/tmp/jobs.json")
    site.slurm_mig("snapshot", *files, "--anonymous")
    elsewhere = site.slurm_mig("plan", *files).stdout
    assert "keeps at least 3 1g.5gb, and has 7" in elsewhere, "the rules are in the snapshot"
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


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("reshape: false", "a100-1: the site's groups say reshape: false"),
        ("exclude_partitions: [main]", "a100-1: policy: jobs of partition main cause no reshape"),
        ("min_wait_s: 3600", "waits less than min_wait_s (3600 s) so far"),
        ("maximum: {7g.40gb: 0}", "group front has at most 0 7g.40gb, and has 0"),
    ],
)
def test_a_groups_rule_refuses(site: ManagedCluster, rule: str, words: str) -> None:
    site.configure(group(rule))
    site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, words)


def test_a_rule_for_all_nodes_refuses(site: ManagedCluster) -> None:
    site.configure(policy("exclude_users: [alice]"))
    site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, "policy: jobs of user alice cause no reshape")


def test_a_gpu_that_was_reshaped_is_left_alone_for_a_while(site: ManagedCluster) -> None:
    site.configure(group("cooldown_s: 0"))
    first = site.submit("sleep 0.2", "--gres=gpu:4g.20gb:1")
    site.slurm_mig("reconcile")
    site.wait_job(first, "COMPLETED", "RUNNING")
    site.configure(group("cooldown_s: 3600"))
    site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, "GPU 0 was reshaped lately: cool-down for")


def test_caps_and_budgets(site: ManagedCluster) -> None:
    """Two jobs, each of which one of the nodes could serve."""
    for text, words in (
        (both("max_nodes_in_transition: 1"), "group front: 1 node(s) in transition at once"),
        (both("max_gpus_in_transition: 1"), "group front: 1 GPU(s) in transition at once"),
        (
            CONFIGURATION.replace("policy:\n", "policy:\n  max_jobs_per_user: 1\n"),
            "1 job(s) of user alice may cause changes at once",
        ),
        (both("max_jobs_per_user: 1"), "group front: 1 job(s) of user alice may cause changes"),
    ):
        site.configure(text)
        jobs = [site.submit("sleep 60", "--gres=gpu:7g.40gb:1") for _ in range(2)]
        said(site, words)
        states = [site.job(job)["JobState"] for job in jobs]
        assert sorted(states) in (["PENDING", "RUNNING"], ["PENDING", "PENDING"])
        site.run("scancel", *map(str, jobs))
        site.configure(both("baseline: {1g.5gb: 7}, baseline_after_s: 1"))
        site.wait_for(lambda: ones(site), 30, "the baseline to be back")


def test_a_job_that_starts_by_itself_on_a_groups_node(site: ManagedCluster) -> None:
    """Its only 7g is another job's, for a minute at most; the other node could be cut."""
    site.configure(group("max_jobs_per_user: 0"))
    runs = site.submit("sleep 60", "--gres=gpu:7g.40gb:1", "-w", "a100-1", "-t", "1")
    site.slurm_mig("reconcile")
    site.wait_job(runs, "RUNNING")
    site.configure(group("starts_soon_s: 600"))
    waits = site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    said(site, "starts by itself within 600 s, when running jobs on a100-1 have ended")
    assert len(list(site.instances("a100-2"))) == 7
    site.run("scancel", f"{runs}", f"{waits}")
    site.configure(both("baseline: {1g.5gb: 7}, baseline_after_s: 1"))
    site.wait_for(lambda: ones(site), 30, "the baseline to be back")


def ones(cluster: ManagedCluster) -> bool:
    """A cycle, and whether both nodes have their baseline after it."""
    cluster.slurm_mig("reconcile")
    return all(len(list(cluster.instances(name))) == 7 for name in ("a100-1", "a100-2"))


def test_a_group_may_not_withhold(site: ManagedCluster) -> None:
    runs = site.submit("sleep 60", "--gres=gpu:1g.5gb:1", "-w", "a100-1")
    site.wait_job(runs, "RUNNING")
    site.configure(group("withhold_s: 0"))
    site.submit("sleep 0.2", "--gres=gpu:7g.40gb:1")
    refused(site, "no room for 7g.40gb: in use by job")
    assert "is kept for it" not in site.slurm_mig("plan").stdout
    site.configure(group("withhold_s: 3600"))
    said(site, "GPU 0 of a100-1 is kept for it until")
