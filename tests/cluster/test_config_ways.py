"""The ways of holding configuration: on the running Slurm, with jobs that live through reshapes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.core.model import is_filler
from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.jobs import (
    computing,
    ended_well,
    gres,
    index_of,
    no_jobs,
    reconcile_until,
    served,
)
from tests.testbed.product import CUDA_JOB, ManagedCluster, in_way
from tests.testbed.ways import NODE, OTHER, WAYS

NODES = (NodeSpec(NODE, (A100,)), NodeSpec(OTHER, (A100, L40S), partitions=("other",)))
SITE = ("/etc/slurm/slurm.conf", "/etc/slurm/gres.conf")
OURS = ("/etc/slurm/slurm-mig/nodes.conf", "/etc/slurm/slurm-mig/gres.conf")
PLAIN_JOB = """\
until [ -e /tmp/jobs/$SLURM_JOB_ID.stop ]; do sleep 0.2; done
srun true
"""
"""On a node that slurm-mig does not manage: there is no slot map that its hooks could read."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The two ways that differ most, or with a greater --reshapes every one."""
    if "way" in metafunc.fixturenames and not any(
        "way" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")
    ):
        short = ("per-host, node", "configless, reconfigure")
        every = tuple(way for way in WAYS if way != "shared, node")  # all other tests' way
        names = every if metafunc.config.option.reshapes > 8 else short
        metafunc.parametrize("way", names, indirect=True, scope="module")


@pytest.fixture(scope="module")
def way(request: pytest.FixtureRequest) -> Iterator[ManagedCluster]:
    """A cluster in each way, the first node enrolled; the other is the site's own."""
    with ManagedCluster(nodes=NODES, **WAYS[request.param]) as cluster:
        at_first = copies(cluster), cluster.node(NODE)["Gres"]
        cluster.slurm_mig("enrol", NODE)
        yield cluster
        # Whatever the tests did: every copy is the site's again, to the byte.
        cluster.slurm_mig("leave", NODE)
        assert (copies(cluster), cluster.node(NODE)["Gres"]) == at_first
        job = cluster.submit("true", "--gres=gpu:1g.5gb:1", "-w", NODE)
        cluster.wait_job(job, "COMPLETED")


@pytest.fixture
def cluster(way: ManagedCluster) -> Iterator[ManagedCluster]:
    """The way's cluster; afterwards no job is left."""
    yield way
    no_jobs(way)


def copies(cluster: ManagedCluster) -> list[str]:
    """The site's files as they are on the head and where the node has its own."""
    hosts = [None, *(n for n in cluster.own_files if n == NODE)]
    return [cluster.read(path, host) for host in hosts for path in SITE]


def put(cluster: ManagedCluster, host: str | None, path: str, text: str) -> None:
    """A file on one host, as a backup or configuration management brings it."""
    cluster.run("sh", "-c", f"cat > {path}", node=host, stdin=text)


def healthy(cluster: ManagedCluster) -> bool:
    return not {"INVALID_REG", "DRAIN"} & set(cluster.node(NODE)["State"].split("+"))


def starts(cluster: ManagedCluster, daemon: str) -> int:
    """How often a daemon has started anew."""
    text = cluster.read(f"/var/log/slurm/{daemon}.log")
    return text.count("Relinquishing control to new")


def test_jobs_live_through_reshapes_and_a_vanishing_type(cluster: ManagedCluster) -> None:
    """1g.5gb goes to the last one while a job of another type runs, and comes back."""
    other = cluster.submit(PLAIN_JOB, "--gres=gpu:l40s:1", "-p", "other")
    cluster.wait_job(other, "RUNNING")
    first = computing(cluster, "gpu:1g.5gb:1")
    three = cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(cluster, three)
    served(cluster, three)
    ended_well(cluster, first)
    busy = index_of(cluster, three)
    four = cluster.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1")
    reconcile_until(cluster, four)
    served(cluster, four)
    assert index_of(cluster, three) == busy
    assert gres(cluster)["3g.20gb"] == 2
    assert "1g.5gb" not in gres(cluster)
    assert healthy(cluster)
    assert cluster.node(OTHER)["Gres"] == "gpu:1g.5gb:7,gpu:l40s:1"
    small = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    ended_well(cluster, four)
    reconcile_until(cluster, small)
    served(cluster, small)
    assert index_of(cluster, three) == busy
    ended_well(cluster, three, small)
    cluster.run("touch", f"/tmp/jobs/{other}.stop")
    cluster.wait_job(other, "COMPLETED")
    assert cluster.slurm_mig("reconcile").stdout.startswith("nothing to do")


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
@pytest.mark.parametrize("where", ["controller", "node"])
def test_a_stale_copy_costs_a_registration_and_no_job(cluster: ManagedCluster, where: str) -> None:
    """An old state of ours, taken up by the daemon there: the next cycle repairs."""
    host = NODE if where == "node" else None
    old = [cluster.read(path, host) for path in OURS]
    wanted = "4g.20gb" if where == "node" else "2g.10gb"
    job = cluster.submit(CUDA_JOB, f"--gres=gpu:{wanted}:1")
    reconcile_until(cluster, job)
    served(cluster, job)
    shown = {t: n for t, n in gres(cluster).items() if "off" not in t}
    for path, text in zip(OURS, old, strict=True):
        put(cluster, host, path, text)
    if host:
        # Devices of the old gres.conf are gone: this slurmd may not come up at all.
        cluster.run("restart-slurmd", node=host, check=False)
    else:
        cluster.restart_daemon("slurmctld")
        cluster.wait_for(lambda: not healthy(cluster), 60, "the refused registration")
    cluster.slurm_mig("reconcile")
    assert cluster.pid("slurmd", NODE)
    assert {t: n for t, n in gres(cluster).items() if "off" not in t} == shown
    assert healthy(cluster)
    assert [cluster.read(path, host) for path in OURS] != old
    ended_well(cluster, job)


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
def test_a_boot_that_brings_an_older_copy(cluster: ManagedCluster) -> None:
    """A node whose image has an earlier gres.conf of ours: restore writes the last one, before
    slurmd reads it. A hand edit stays, and is said."""
    old = cluster.read(OURS[1], NODE)
    wanted = next(p for p in ("7g.40gb", "2g.10gb", "4g.20gb") if p not in gres(cluster))
    job = cluster.submit(CUDA_JOB, f"--gres=gpu:{wanted}:1")
    reconcile_until(cluster, job)
    ended_well(cluster, job)
    last = cluster.read(OURS[1], NODE)
    assert last != old
    cluster.kill_daemon("slurmd", NODE)
    cluster.sh("nvml-sim reboot", node=NODE)
    put(cluster, NODE, OURS[1], old)
    done = cluster.run("slurm-mig", "restore", node=NODE)
    assert done.stdout.splitlines()[1:] == [f"{OURS[1]} is written again"]
    assert cluster.read(OURS[1], NODE) == last
    assert "written" not in cluster.run("slurm-mig", "restore", node=NODE).stdout
    put(cluster, NODE, OURS[1], last.replace("Type=guard", "Type=mine", 1))
    done = cluster.run("slurm-mig", "restore", node=NODE)
    assert f"{OURS[1]} was edited by hand and is left as it is" in done.stdout
    cluster.run("rm", OURS[1], node=NODE)
    cluster.run("slurm-mig", "restore", node=NODE)
    assert cluster.read(OURS[1], NODE) == last
    cluster.start_daemon("slurmd", NODE)
    again = cluster.submit("fake-cuda --seconds 0.1", f"--gres=gpu:{wanted}:1", "-w", NODE)
    cluster.wait_job(again, "COMPLETED")
    cluster.slurm_mig("apply", "--node", NODE, "gpu0=1g.5gb*7")
    assert cluster.slurm_mig("reconcile").stdout.startswith("nothing to do")


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
def test_the_site_brings_its_own_slurm_conf_back(cluster: ManagedCluster) -> None:
    """Configuration management replaces the node's slurm.conf: our part is put in again."""
    offered = next(t for t in gres(cluster) if not is_filler(t))
    job = computing(cluster, f"gpu:{offered}:1")
    ours = copies(cluster)
    first = cluster.run("tar", "-xOf", "/run/etc-slurm.tar", "./slurm.conf").stdout
    put(cluster, NODE, SITE[0], first)
    assert "not included" in cluster.slurm_mig("status").stdout
    cluster.slurm_mig("reconcile")
    assert copies(cluster) == ours
    assert healthy(cluster)
    ended_well(cluster, job)


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
def test_a_slurm_conf_that_lacks_its_node_stops_that_node_only(cluster: ManagedCluster) -> None:
    """Nothing of it can be published: left fenced with that reason; mended, it is released."""
    job = computing(cluster, f"gpu:{next(t for t in gres(cluster) if not is_filler(t))}:1")
    good = cluster.read(SITE[0], NODE)
    first = cluster.run("tar", "-xOf", "/run/etc-slurm.tar", "./slurm.conf").stdout
    put(cluster, NODE, SITE[0], first.replace(f"NodeName={NODE} ", "NodeName=renamed "))
    done = cluster.slurm_mig("reconcile", check=False)
    assert done.returncode == Exit.ATTENTION
    assert f"no NodeName line defines {NODE}" in done.stdout
    assert "DRAIN" in cluster.node(NODE)["State"]
    put(cluster, NODE, SITE[0], good)
    cluster.slurm_mig("reconcile")
    assert healthy(cluster)
    ended_well(cluster, job)


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
def test_a_copy_on_a_node_edited_by_hand_stops_that_node_only(cluster: ManagedCluster) -> None:
    text = cluster.read(OURS[1], NODE)
    put(cluster, NODE, OURS[1], text.replace("Type=guard", "Type=mine", 1))
    wants = cluster.submit("true", "--gres=gpu:7g.40gb:1")
    done = cluster.slurm_mig("reconcile")
    assert "its own gres.conf was edited by hand" in done.stdout
    assert "mine" in cluster.read(OURS[1], NODE)
    cluster.slurm_mig("rewrite")
    assert cluster.read(OURS[1], NODE) == text
    reconcile_until(cluster, wants)


@pytest.mark.parametrize("way", ["per-host, node"], indirect=True)
def test_a_copy_on_a_node_edited_in_the_middle_waits_for_a_person(cluster: ManagedCluster) -> None:
    """As the shared files do: nothing is written over the edit, and nobody else is stopped."""
    job = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1")
    reconcile_until(cluster, job)
    served(cluster, job)
    wanted = next(p for p in ("3g.20gb", "4g.20gb", "2g.10gb") if p not in gres(cluster))
    wants = cluster.submit("true", f"--gres=gpu:{wanted}:1")
    edit = ("on-node", NODE, "sed", "-i", "s/Type=guard/Type=mine/", OURS[1])
    at = ("python", "-m", "tests.testbed.die_at", "nodes.reshape")
    cluster.run(*at, *edit, check=False, timeout=120)
    reason = cluster.node(NODE)["Reason"]
    assert f"needs a person: {NODE}: {OURS[1]} was edited by hand" in reason
    assert "mine" in cluster.read(OURS[1], NODE)
    assert cluster.slurm_mig("reconcile", check=False).returncode == Exit.ATTENTION
    assert cluster.slurm_mig("release", NODE, check=False).returncode == Exit.ATTENTION
    assert "mine" in cluster.read(OURS[1], NODE)
    cluster.run("sed", "-i", "s/Type=mine/Type=guard/", OURS[1], node=NODE)
    cluster.slurm_mig("release", NODE)
    reconcile_until(cluster, wants)
    assert healthy(cluster)
    ended_well(cluster, job)


@pytest.mark.parametrize("way", ["configless, reconfigure"], indirect=True)
def test_nodes_of_one_cycle_share_a_reconfigure(cluster: ManagedCluster) -> None:
    """And none is made again before the interval has passed; status says so."""
    cluster.slurm_mig("enrol", OTHER)
    cluster.configure(in_way("configless", "reconfigure", "reconfigure_interval_s: 3600"))
    try:
        cluster.sh("rm -f /tmp/jobs/*.stop")
        both = [
            cluster.submit(CUDA_JOB, "--gres=gpu:4g.20gb:1", "-p", partition)
            for partition in ("main", "other")
        ]
        cluster.sh("sed -i 's/\"published\": [0-9.]*/\"published\": 0.0/' "
                   "/var/lib/slurm-mig/nodes/*.json")  # fmt: skip
        before = starts(cluster, "slurmctld")
        done = cluster.slurm_mig("reconcile")
        assert f"{NODE} reshaped" in done.stdout
        assert f"{OTHER} reshaped" in done.stdout
        assert starts(cluster, "slurmctld") - before == 2, "two lines of the log for each"
        served(cluster, *both)
        later = cluster.submit("true", "--gres=gpu:2g.10gb:1")
        done = cluster.slurm_mig("reconcile")
        assert "the cluster was reconfigured lately: again in" in done.stdout
        assert cluster.job(later)["JobState"] == "PENDING"
        ended_well(cluster, *both)
    finally:
        cluster.configure(WAYS["configless, reconfigure"]["configuration"])
        cluster.run("scancel", "--user=alice")
        cluster.slurm_mig("leave", OTHER, "--wait", "20")


def test_a_way_that_slurm_conf_contradicts_is_refused(cluster: ManagedCluster) -> None:
    """Before anything is changed: files that a configless slurmd would miss are never included."""
    configless = bool(cluster.configless)
    good = cluster.read("/etc/slurm/slurm-mig.yaml")
    before = copies(cluster)
    cluster.configure(in_way("shared" if configless else "configless", "node"))
    done = cluster.slurm_mig("enrol", OTHER, check=False)
    cluster.configure(good)
    assert done.returncode == Exit.CONFIG
    assert "enable_configless" in done.stderr
    assert copies(cluster) == before
    assert "DRAIN" not in cluster.node(OTHER)["State"]
