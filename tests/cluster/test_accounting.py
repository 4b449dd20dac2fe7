"""Accounting through reshapes: limits hold, usage returns to zero, every job's account is right."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CUDA_JOB, ManagedCluster

PROFILES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")


@pytest.fixture(scope="module")
def lab() -> Iterator[ManagedCluster]:
    nodes = tuple(NodeSpec(f"a100-{n}", (A100, A100)) for n in (1, 2))
    with ManagedCluster(nodes=nodes, accounting=True) as cluster:
        cluster.enrol()
        yield cluster


def usage(cluster: ManagedCluster) -> list[str]:
    """What limits are counted against now, where it is not zero."""
    shown = cluster.run("scontrol", "show", "assoc_mgr", "flags=qos,assoc").stdout
    return [
        f"{kind}:{name}={used}"
        for kind, tres in re.findall(r"((?:Grp|Max)TRES\w*)=(\S+)", shown)
        for name, used in re.findall(r"(gres/[\w:./]+)=\w*\((\d+)\)", tres)
        if int(used) and kind == "GrpTRES"
    ]


def test_a_job_over_its_limit_causes_no_reshape(lab: ManagedCluster) -> None:
    first = lab.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1", "--qos=limited")
    lab.slurm_mig("reconcile")
    lab.wait_job(first, "RUNNING")
    assert "GrpTRES:gres/gpu:3g.20gb=1" in usage(lab)
    made = {n.name: lab.sim(n.name)["created"] for n in lab.nodes}
    second = lab.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1", "--qos=limited")
    lab.wait_for(lambda: "QOSGrpGRES" in lab.job(second)["Reason"], 20, "the limit to hold it")
    lab.slurm_mig("reconcile")
    assert {n.name: lab.sim(n.name)["created"] for n in lab.nodes} == made
    # Slurm clears the reason for a moment at each look at the job: one reading may miss it.
    lab.wait_for(
        lambda: "than resources: QOSGrpGRES" in lab.slurm_mig("status").stdout, 20, "the reason"
    )
    lab.run("touch", f"/tmp/jobs/{first}.stop", f"/tmp/jobs/{second}.stop")
    lab.wait_job(first, "COMPLETED")
    for _ in range(4):
        lab.slurm_mig("reconcile")
        if lab.job(second)["JobState"] != "PENDING":
            break
    lab.wait_job(second, "COMPLETED")


def released(cluster: ManagedCluster) -> list[dict[str, Any]]:
    """The reshapes that were carried through, from the history."""
    return [h for h in cluster.history() if h["phase"] == "released" and h["change"]["gpus"]]


def wanting(cluster: ManagedCluster, dice: random.Random, node: str) -> str:
    """A job for one node, mostly of a type that it does not have now; its type."""
    shown = demand.parse_gres(cluster.node(node)["Gres"])
    absent = [p for p in PROFILES if not shown.get(p)]
    return dice.choice(absent or PROFILES)


def recorded(cluster: ManagedCluster) -> dict[str, str]:
    """State and AllocTRES of every job, by id, as the database has them."""
    text = cluster.run("sacct", "-X", "-n", "-P", "-a", "-S", "now-5hours",
                       "-o", "JobID,State,AllocTRES").stdout  # fmt: skip
    return {line.split("|")[0]: line for line in text.splitlines()}


def test_accounts_after_many_reshapes(lab: ManagedCluster, request: pytest.FixtureRequest) -> None:
    """Random typed jobs under random reshapes; `--reshapes N` makes it long."""
    count = request.config.getoption("--reshapes")
    dice = random.Random(request.config.getoption("--seed"))
    names = [node.name for node in lab.nodes]
    jobs: dict[int, str] = {}
    before = len(released(lab))
    while len(released(lab)) - before < count:
        for node in names if len(lab.run("squeue", "-h").stdout.splitlines()) < 6 else ():
            profile = wanting(lab, dice, node)
            script = f"sleep {dice.choice((0, 1, 3))}; srun fake-cuda --seconds 0.1"
            others = ",".join(n for n in names if n != node)
            job = lab.submit(script, f"--gres=gpu:{profile}:1", "--qos=normal",
                             f"--exclude={others}")  # fmt: skip
            jobs[job] = profile
        lab.slurm_mig("reconcile")
    for _ in range(60):
        if not lab.run("squeue", "-h").stdout.strip():
            break
        lab.slurm_mig("reconcile")
    lab.wait_for(
        lambda: all("COMPLETED" in recorded(lab).get(str(j), "") for j in jobs),
        30, f"every job to have completed: {recorded(lab)}")  # fmt: skip
    accounts = recorded(lab)
    for job, profile in jobs.items():
        line = accounts[str(job)]
        assert f"gres/gpu:{profile}=1" in line
        assert "gres/gpu=1" in line
        assert f"billing={profile[0]}," in line
    lab.wait_for(lambda: not usage(lab), 20, f"every usage to be zero: {usage(lab)}")
    logs = lab.sh("cat /var/log/slurm/*.log")
    assert not re.findall(r"(?im)^.*(?:underflow|negative).*$", logs)
    fenced = sum(h["seconds"]["fenced"] for h in released(lab))
    print(f"{len(released(lab)) - before} reshapes, {len(jobs)} jobs, {fenced:.0f} s fenced")


def test_what_a_nodes_tres_show(lab: ManagedCluster) -> None:
    """Fillers count in gres/gpu and in no type; typed counts stay as slurmctld read them."""
    shown = lab.node("a100-1")["CfgTRES"]
    assert "gres/gpu=15" in shown
    assert "off" not in shown
    assert "guard" not in shown
