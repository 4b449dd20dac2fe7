"""slurm.conf and gres.conf as sites write them, against the running slurmctld: it reads what we
wrote, and shows the same nodes and partitions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, ETC, NodeSpec
from tests.testbed.product import ManagedCluster

NAMES = ("gpu-01", "gpu-02", "gpu-03")
NODES = tuple(NodeSpec(name, (A100,), cpus=4, memory_mib=2000) for name in NAMES)
CONF, GRES = f"{ETC}/slurm.conf", f"{ETC}/gres.conf"
FILES = (f"{ETC}/real/slurm.conf", f"{ETC}/more/nodes.inc", f"{ETC}/more/deeper/parts",
         f"{ETC}/gres.real")  # fmt: skip
OURS = f"{ETC}/slurm-mig"

NODES_INC = """\
# Nodes, and what they share.\r
nodename=DEFAULT cpus=4 REALMEMORY=2000 Features=fast\r
NODEname=gpu-[01-02,03] \\\r
    Gres=gpu:1g.5gb:7,nic:2 \\  \r
    State=UNKNOWN # of the second rack\r
Include more/deeper/parts\r
"""
PARTS = """\
NodeSet=quick Nodes=gpu-[01-02]
NodeSet=byfeature Feature=fast
PartitionName=DEFAULT MaxTime=INFINITE State=UP
PartitionName=main Nodes=gpu-[01-03] Default=YES
partitionname=sets  nodes=quick,gpu-03
PartitionName=fast Nodes=byfeature
PartitionName=all Nodes=ALL"""
"""No newline at its end."""
GRES_CONF = """\
nodename=gpu-[01-03] NAME=nic count=2   # no file
"""


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    """Three small nodes; then the site's files in another hand, read by every daemon.

    Keys are in any case; a Gres's own name is not: `Name=NIC` is no `nic` to slurmd.
    """
    with ManagedCluster(nodes=NODES) as cluster:
        rewrite_as_sites_do(cluster)
        cluster.run("scontrol", "reconfigure", check=False)
        cluster.wait_for(lambda: "nic:2" in node(cluster, "gpu-03")["Gres"], 30, "the site's files")
        cluster.wait_for(lambda: set(states(cluster)) == {"idle"}, 60, "every node to be idle")
        yield cluster


def rewrite_as_sites_do(cluster: ManagedCluster) -> None:
    """Includes relative, absolute and nested, links, CRLF, continuation, DEFAULT, node sets."""
    lines = cluster.read(CONF).splitlines()
    kept = [x for x in lines if not x.startswith(("NodeName", "PartitionName", "GresTypes"))]
    cluster.sh(f"mkdir -p {ETC}/real {ETC}/more/deeper")
    cluster.write(FILES[1], NODES_INC)
    cluster.write(FILES[2], PARTS)
    text = "\n".join(["grestypes=gpu,nic", *kept, f"INCLUDE {FILES[1]}", ""])
    cluster.write(FILES[0], text)
    cluster.sh(f"chown slurm:slurm {FILES[0]}; rm {CONF}; ln -s real/slurm.conf {CONF}")
    gpus = cluster.read(GRES)
    cluster.write(FILES[3], GRES_CONF + gpus.rstrip("\n"))
    cluster.sh(f"rm {GRES}; ln -s {FILES[3]} {GRES}")


def states(cluster: ManagedCluster) -> list[str]:
    return cluster.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()


def node(cluster: ManagedCluster, name: str) -> dict[str, str]:
    shown = cluster.run("scontrol", "show", "node", "-o", name, check=False).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word) or {"Gres": ""}


def texts(cluster: ManagedCluster) -> list[str]:
    """The bytes of the site's files, with mode and owner."""
    shown = [cluster.sh(f"stat -c '%a %U' {path}; base64 {path}") for path in FILES]
    return [*shown, cluster.sh(f"readlink {CONF} {GRES}")]


def shown(cluster: ManagedCluster, *without: str) -> dict[str, Any]:
    """What slurmctld makes of the files: nodes and partitions."""
    keys = ("NodeAddr", "CPUTot", "RealMemory", "AvailableFeatures", "Gres", "Partitions", "Port")
    nodes = {n: {k: node(cluster, n).get(k) for k in keys} for n in NAMES if n not in without}
    text = cluster.run("scontrol", "show", "partition", "-o").stdout
    partitions = {
        line.split()[0]: line.split(" Nodes=")[1].split()[0] for line in text.splitlines()
    }
    return {"nodes": nodes, "partitions": partitions}


def real_nodes(partitions: dict[str, str]) -> dict[str, str]:
    """Without the catalog's records, which slurmctld shows in a partition's list."""
    return {
        name: ",".join(n for n in nodes.split(",") if "catalog" not in n)
        for name, nodes in partitions.items()
    }


def test_one_node_of_a_range_comes_and_goes(site: ManagedCluster) -> None:
    before, texts_before = shown(site, "gpu-02"), texts(site)
    dry = site.slurm_mig("enrol", "gpu-02", "--dry-run").stdout
    assert texts(site) == texts_before
    assert f"--- {FILES[1]} (now)" in dry
    assert "+NODEname=gpu-[01,03]" in dry
    assert f"+++ {OURS}/nodes.conf (then)" in dry
    site.slurm_mig("enrol", "gpu-02")
    try:
        after = shown(site, "gpu-02")
        assert after["nodes"] == before["nodes"]
        assert real_nodes(after["partitions"]) == before["partitions"]
        ours = node(site, "gpu-02")
        assert ours["Gres"] == "gpu:1g.5gb:7,gpu:guard:1,nic:2"
        assert (ours["CPUTot"], ours["RealMemory"]) == ("4", "2000")
        assert ours["AvailableFeatures"] == "fast"
        assert set(ours["Partitions"].split(",")) == {"main", "sets", "fast", "all"}
        dry_leave = site.slurm_mig("leave", "gpu-02", "--dry-run").stdout
        assert "-NODEname=gpu-[01,03]" in dry_leave
        assert site.slurm_mig("rewrite", "--dry-run").stdout == "No file would change.\n"
        assert "nothing to do" in site.slurm_mig("reconcile").stdout
    finally:
        site.slurm_mig("leave", "gpu-02")
    assert texts(site) == texts_before
    assert shown(site, "gpu-02") == before


def test_a_node_with_other_gres_is_reshaped_and_keeps_them(site: ManagedCluster) -> None:
    """A job has gpu and nic on the node throughout; another one gets both after the reshape."""
    site.slurm_mig("enrol", "gpu-01")
    try:
        stop = "/tmp/jobs/$SLURM_JOB_ID.stop"
        running = site.submit(f"until [ -e {stop} ]; do sleep 0.1; done; srun true",
                              "--gres=gpu:1g.5gb:1,nic:1")  # fmt: skip
        site.wait_job(running, "RUNNING")
        wants = site.submit("true", "--gres=gpu:3g.20gb:1,nic:1")
        site.slurm_mig("reconcile")
        site.wait_job(wants, "COMPLETED")
        assert node(site, "gpu-01")["Gres"].endswith(",nic:2")
        site.run("touch", f"/tmp/jobs/{running}.stop")
        assert site.wait_job(running, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    finally:
        site.run("scancel", "--user=alice")
        site.slurm_mig("leave", "gpu-01", "--wait", "20")


def test_what_is_not_understood_is_refused_with_its_place(site: ManagedCluster) -> None:
    before = texts(site)
    site.write(FILES[2], PARTS + "\nNodeName=x[1-3 CPUs=2\n")
    done = site.slurm_mig("enrol", "gpu-01", check=False)
    assert done.returncode == Exit.CONFIG
    assert f"{FILES[2]}:8: " in done.stderr
    assert "nothing was changed" in done.stderr
    site.write(FILES[2], PARTS)
    assert texts(site) == before


def test_a_backup_comes_back_and_slurmctld_shows_it(site: ManagedCluster) -> None:
    """The site's own text of then; a node that is enrolled meanwhile stays so."""
    site.slurm_mig("enrol", "gpu-03")
    try:
        gres = node(site, "gpu-03")["Gres"]
        listed = site.slurm_mig("restore-config").stdout.splitlines()
        assert any("_more_nodes.inc." in line for line in listed)
        site.sh(f"sed -i 's/Features=fast/Features=slow/' {FILES[1]}")
        site.slurm_mig("rewrite")
        site.run("scontrol", "reconfigure", check=False)
        site.wait_for(lambda: node(site, "gpu-01").get("AvailableFeatures") == "slow", 30, "slow")
        wanted = next(line.split()[0] for line in listed if "_more_nodes.inc." in line)
        dry = site.slurm_mig("restore-config", wanted, "--dry-run").stdout
        assert "+nodename=DEFAULT cpus=4 REALMEMORY=2000 Features=fast" in dry
        done = site.slurm_mig("restore-config", wanted)
        assert "brought back; slurmctld shows every node as the files say" in done.stdout
        assert node(site, "gpu-01")["AvailableFeatures"] == "fast"
        assert node(site, "gpu-03")["Gres"] == gres
        assert "nothing to do" in site.slurm_mig("reconcile").stdout
        assert "brought back by root" in site.slurm_mig("history", "--last", "1").stdout
    finally:
        site.slurm_mig("leave", "gpu-03")


def test_a_backup_that_would_cost_jobs_is_refused(site: ManagedCluster) -> None:
    """A node of the site's own has another Gres now: slurmctld would end its gpu jobs."""
    site.slurm_mig("enrol", "gpu-03")
    site.slurm_mig("leave", "gpu-03")
    listed = site.slurm_mig("restore-config").stdout.splitlines()
    newest = next(line.split()[0] for line in listed if "_more_nodes.inc." in line)
    before = texts(site)
    site.sh(f"sed -i 's/nic:2/nic:1/' {FILES[1]}")
    edited = texts(site)
    done = site.slurm_mig("restore-config", newest, check=False)
    assert done.returncode == Exit.REFUSED
    assert "gpu-01, gpu-02" in done.stderr
    assert texts(site) == edited
    assert site.slurm_mig("restore-config", "no-such", check=False).returncode == Exit.USAGE
    done = site.slurm_mig("restore-config", newest, "--write-only")
    assert "No daemon has read it" in done.stdout
    site.sh(f"sed -i 's/nic:1/nic:2/' {FILES[1]}")
    assert "gpu-[01-02,03]" in site.read(FILES[1])
    assert site.sh(f"stat -c %U {FILES[0]}").strip() == "slurm"
    assert texts(site)[0] == before[0]


@pytest.mark.parametrize("path", ["/var/lib/slurm-mig", OURS, f"{ETC}/slurm-mig.yaml"])
def test_what_everybody_may_write_is_not_gone_by(site: ManagedCluster, path: str) -> None:
    site.run("mkdir", "-p", OURS)
    mode = site.sh(f"stat -c %a {path}").strip()
    site.run("chmod", "o+w", path)
    try:
        for words in (("reconcile",), ("status",), ("enrol", "gpu-01")):
            done = site.slurm_mig(*words, check=False)
            assert done.returncode == Exit.CONFIG
            assert f"everybody may write {path}" in done.stderr
    finally:
        site.run("chmod", mode, path)
    site.slurm_mig("status")
