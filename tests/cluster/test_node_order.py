"""Node names with two numbers: which node of a job has which gpus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from slurm_mig.core import demand
from slurm_mig.core.hostlists import expand
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.jobs import no_jobs
from tests.testbed.product import ManagedCluster

NAMES = ("r1n1", "r1n2", "r2n1", "r2n2", "r2n3")
PYTHON = "/opt/slurm-mig/venv/bin/python"
BELIEVED = """\
import json
from slurm_mig.adapters.cluster import PyslurmCluster
nodes = PyslurmCluster().nodes()
print(json.dumps([[n, a.job_id, sorted(a.indexes)] for n in nodes for a in nodes[n].allocations]))
"""
FILTERS = {"SQUEUE_STATES": "PENDING", "SQUEUE_USERS": "root", "SLURM_CLUSTERS": "elsewhere"}
"""What an administrator may have in the environment."""


@pytest.fixture(scope="module")
def racks() -> Iterator[ManagedCluster]:
    nodes = tuple(NodeSpec(name, (A100,)) for name in NAMES)
    with ManagedCluster(nodes=nodes) as cluster:
        cluster.enrol()
        yield cluster


def told(cluster: ManagedCluster, job: int) -> dict[str, frozenset[int]]:
    """Which gpus a job has on which node, as scontrol pairs them."""
    shown = cluster.run("scontrol", "show", "job", "-d", str(job)).stdout
    return {
        name: demand.gpu_indexes(gres)
        for nodes, gres in re.findall(r"\bNodes=(\S+) .*?\bGRES=(\S*)", shown)
        for name in expand(nodes, "scontrol")
    }


def believed(cluster: ManagedCluster, job: int, *before: str) -> dict[str, frozenset[int]]:
    rows = json.loads(cluster.run(*before, PYTHON, "-c", BELIEVED).stdout)
    return {node: frozenset(indexes) for node, j, indexes in rows if j == job}


def test_a_jobs_gpus_are_busy_on_the_nodes_that_have_them(racks: ManagedCluster) -> None:
    """Whatever the environment says to Slurm's commands."""
    for asked in (("-w", "r1n1"), ("-w", "r2n2"), ("-w", "r2n2"), ("-N5",)):
        job = racks.submit("sleep 100", "--gres=gpu:1g.5gb:1", *asked)
        racks.wait_job(job, "RUNNING")
    there = told(racks, job)
    assert set(there) == set(NAMES)
    assert len({there["r1n1"], there["r1n2"], there["r2n2"]}) == 3
    assert there["r1n1"] != there["r2n1"]
    assert there["r2n2"] != there["r1n2"]
    assert believed(racks, job) == there
    filtered = [f"{name}={value}" for name, value in FILTERS.items()]
    assert believed(racks, job, "env", *filtered) == there
    no_jobs(racks)
