"""The submit guarantee, two ways: the catalog's records, and an extra constraint on every job.

What each takes into the queue, keeps there over a slurmctld restart, and costs. The numbers are in
docs/hooks.md; what is asserted is what the choice rests on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster

WANTS = "--gres=gpu:3g.20gb:1"
REQUESTS = {
    "one": (),
    "array": ("--array=1-3",),
    "memory": ("--mem=60G",),
    "this node": ("-w", "n1"),
    "two nodes": ("-N2",),
    "this node and one more": ("-w", "n1", "-N2"),
    "too many CPUs": ("-c", "33"),
    "too many GPUs": ("--gres=gpu:3g.20gb:9",),
}
TAKEN_BY_BOTH = {"one", "array", "memory", "this node"}
FOUNDED = {"two nodes", "this node and one more"}
"""What could run after a reshape, too."""


@pytest.fixture(scope="module", params=["catalog", "extra"])
def way(request: pytest.FixtureRequest) -> Iterator[tuple[str, ManagedCluster]]:
    """Two nodes cut into 1g.5gb, with one of the ways; nothing is reshaped here."""
    name: str = request.param
    more = "" if name == "catalog" else "catalog: {nodes: 0}\n"
    nodes = (NodeSpec("n1", (A100,)), NodeSpec("n2", (A100,)))
    with ManagedCluster(nodes=nodes, configuration=CONFIGURATION + more) as cluster:
        if name == "extra":
            conf = cluster.read("/etc/slurm/slurm.conf")
            conf = conf.replace("nohold_on_prolog_fail", "nohold_on_prolog_fail,extra_constraints")
            cluster.write("/etc/slurm/slurm.conf", conf)
        cluster.enrol()
        if name == "extra":
            for node in ("n1", "n2"):
                cluster.run("scontrol", "update", f"NodeName={node}", 'Extra={"mig": 1}')
        yield name, cluster


def submit(way: tuple[str, ManagedCluster], *options: str) -> int:
    """The job's number; 0 when it was refused."""
    name, cluster = way
    words = ["--extra=mig=1"] if name == "extra" else []
    done = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=true", WANTS,
                       *words, *options, user="alice", check=False)  # fmt: skip
    return int(done.stdout or 0)


def test_what_queues_and_stays_over_a_restart(way: tuple[str, ManagedCluster]) -> None:
    name, cluster = way
    jobs = {what: submit(way, *options) for what, options in REQUESTS.items()}
    taken = {what for what, job in jobs.items() if job}
    if name == "catalog":
        # One record: what it could not take itself is refused, right (too many) or wrong (-N2: that
        # is what `catalog.nodes` is for).
        assert taken == TAKEN_BY_BOTH
    else:
        # Everything is kept, also what can never run.
        assert taken >= TAKEN_BY_BOTH | FOUNDED
        assert "too many GPUs" in taken
    other = cluster.submit("true", "--gres=gpu:1g.5gb:1")
    cluster.wait_job(other, "COMPLETED")
    cluster.restart_daemon("slurmctld")
    cluster.wait_for(
        lambda: cluster.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split()
        == ["idle", "idle"],
        30, "the nodes",
    )  # fmt: skip
    after = cluster.submit("true", "--gres=gpu:1g.5gb:1")
    cluster.wait_job(after, "COMPLETED")
    for what in taken & (TAKEN_BY_BOTH | FOUNDED):
        shown = cluster.job(jobs[what])
        assert shown["JobState"] == "PENDING", what
        assert "Held" not in shown["Reason"], what
        assert "BadConstraints" not in shown["Reason"], what
    cluster.run("scancel", "--user=alice", "--state=PENDING")


def test_what_it_does_to_the_clusters_totals(way: tuple[str, ManagedCluster]) -> None:
    name, cluster = way
    shown = cluster.run("scontrol", "show", "partition", "main", "-o").stdout
    nodes, cpus = (3, 96) if name == "catalog" else (2, 64)
    assert f"TotalNodes={nodes}" in shown
    assert f"TotalCPUs={cpus}" in shown
    assert "mig-catalog" not in cluster.run("sinfo", "-N").stdout


def test_a_node_without_the_mark_gets_no_job_at_all(way: tuple[str, ManagedCluster]) -> None:
    """The price of the constraint: every node in our care must carry it, always."""
    name, cluster = way
    if name == "catalog":
        job = submit(way, "--gres=gpu:1g.5gb:1")
        assert cluster.wait_job(job, "COMPLETED")
        return
    for node in ("n1", "n2"):
        cluster.run("scontrol", "update", f"NodeName={node}", "Extra=")
    job = submit(way, "--gres=gpu:1g.5gb:1")
    cluster.wait_for(
        lambda: cluster.job(job)["Reason"] == "Constraints", 20, "the job to wait for a constraint"
    )
    assert cluster.node("n1")["State"] == "IDLE"
    cluster.run("scancel", str(job))


@pytest.fixture(scope="module")
def shapes() -> Iterator[ManagedCluster]:
    """Two alike nodes and one of another kind, with up to two records for each shape."""
    nodes = (
        NodeSpec("a1", (A100,), partitions=("main", "a100"), features="a100"),
        NodeSpec("a2", (A100,), partitions=("main", "a100"), features="a100"),
        NodeSpec("b1", (A30,), cpus=16, memory_mib=128000, partitions=("main", "a30"),
                 features="a30"),
    )  # fmt: skip
    configuration = CONFIGURATION + "catalog: {nodes: 2}\n"
    with ManagedCluster(nodes=nodes, configuration=configuration) as cluster:
        cluster.enrol()
        yield cluster


@pytest.mark.parametrize(
    ("options", "queues"),
    [
        ("--gres=gpu:3g.20gb:1 -C a100", True),
        ("--gres=gpu:3g.20gb:1 -N2 -p a100", True),
        ("--gres=gpu:3g.20gb:2 -c 32 --mem=60G --array=1-2", True),
        ("--gres=gpu:4g.24gb:1 -c 16 --mem=120G -p a30", True),
        # No node could ever run these: more nodes, CPUs, memory or devices than one kind has.
        ("--gres=gpu:3g.20gb:1 -C a30", False),
        ("--gres=gpu:3g.20gb:1 -N3", False),
        ("--gres=gpu:4g.24gb:1 -N2 -p main", False),
        ("--gres=gpu:4g.24gb:1 -c 17", False),
        ("--gres=gpu:3g.20gb:1 --mem=100G", False),
        ("--gres=gpu:3g.20gb:3", False),
        # By name: what those nodes could run after a reshape, whatever others are.
        ("--gres=gpu:3g.20gb:1 -w a1", True),
        ("--gpus=3g.20gb:1 -w a2 -n 4", True),
        ("--gres=gpu:3g.20gb:2 -w a[1-2] -c 32 --array=1-2", True),
        ("--gres=gpu:3g.20gb:1 -w a1,a2 -N2 --mem=60G -p a100", True),
        ("--gres=gpu:4g.24gb:1 -w b1 -c 16 -x a2", True),
        ("--gres=gpu:3g.20gb:1 -w a1 -c 33", False),
        ("--gres=gpu:4g.24gb:1 -w b1 -c 20", False),
        ("--gres=gpu:3g.20gb:1 -w a1 --mem=100G", False),
        ("--gres=gpu:3g.20gb:1 -w b1", False),
        ("--gres=gpu:3g.20gb:1 -w a1 -x a1", False),
        ("--gres=gpu:3g.20gb:1 -w a1 -p a30", False),
        ("--gres=gpu:3g.20gb:3 -w a1", False),
        # Another node beside the named one: Slurm's own test, which knows no record.
        ("--gres=gpu:3g.20gb:1 -w a1 -N2", False),
        ("--gres=gpu:3g.20gb:1 -w nowhere", False),
    ],
)
def test_what_could_run_queues_and_nothing_else(
    shapes: ManagedCluster,
    options: str,
    queues: bool,  # noqa: FBT001
) -> None:
    done = shapes.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=true",
                      *options.split(), user="alice", check=False)  # fmt: skip
    shapes.run("scancel", "--user=alice")
    assert (done.returncode == 0) == queues, done.stderr


def test_a_job_that_may_need_more_than_the_named_nodes_is_slurms(shapes: ManagedCluster) -> None:
    """33 tasks do not fit on one node: Slurm finds the other one."""
    job = shapes.submit("true", "-w", "a1", "-n", "33", "-p", "a100", "--mem=1G",
                        "--gres=gpu:1g.5gb:1")  # fmt: skip
    assert shapes.job(job)["ReqNodeList"] == "a1"
    assert shapes.wait_job(job, "COMPLETED", timeout=30)["NodeList"] == "a[1-2]"


def test_the_catalog_is_shown_and_what_queues_runs_after_a_reshape(shapes: ManagedCluster) -> None:
    shown = json.loads(shapes.slurm_mig("catalog", "--json").stdout)["records"]
    assert [(r["name"], r["like"], r["partitions"]) for r in shown] == [
        ("mig-catalog-1", ["a1", "a2"], ["a100", "main"]),
        ("mig-catalog-2", ["a1", "a2"], ["a100", "main"]),
        ("mig-catalog-3", ["b1"], ["a30", "main"]),
    ]
    assert all(r["line"] in shapes.read("/etc/slurm/slurm-mig/nodes.conf") for r in shown)
    job = shapes.submit("srun true", "--gres=gpu:3g.20gb:1", "-N2", "-C", "a100", "--mem=1G")
    for _ in range(4):
        shapes.slurm_mig("reconcile")
        if shapes.job(job)["JobState"] != "PENDING":
            break
    shapes.wait_job(job, "COMPLETED", timeout=30)


def test_a_job_for_a_node_by_name_starts_there_and_nowhere_else(shapes: ManagedCluster) -> None:
    """It names that node to Slurm by excluding the others, which a slurmctld restart keeps."""
    job = shapes.submit("true", "--gres=gpu:7g.40gb:1", "-w", "a2", "--mem=1G")
    shown = shapes.job(job)
    assert (shown["ReqNodeList"], shown["NumNodes"]) == ("(null)", "1")
    assert shown["ExcNodeList"] == "a1,b1,mig-catalog-3"
    shapes.restart_daemon("slurmctld")
    shapes.wait_for(
        lambda: set(shapes.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split())
        == {"idle"},
        30, "the nodes",
    )  # fmt: skip
    assert shapes.job(job)["JobState"] == "PENDING"
    for _ in range(4):
        shapes.slurm_mig("reconcile")
        if shapes.job(job)["JobState"] != "PENDING":
            break
    assert shapes.wait_job(job, "COMPLETED", timeout=30)["NodeList"] == "a2"
    interactive = shapes.run("srun", "-w", "a2", "--gres=gpu:7g.40gb:1", "hostname", user="alice")
    assert interactive.stdout == "a2\n"


def test_a_node_by_name_is_told_what_it_can_never_have(shapes: ManagedCluster) -> None:
    done = shapes.run("sbatch", "-w", "b1", "--gres=gpu:3g.20gb:1", "--wrap=true", user="alice",
                      check=False)  # fmt: skip
    assert "node b1 can never have gpu:3g.20gb; possible: 1g.6gb" in done.stderr


def test_a_waiting_job_by_name_is_not_held_when_its_type_goes(shapes: ManagedCluster) -> None:
    """One that Slurm tests against that node alone is: BadConstraints."""
    wants = ("--gres=gpu:7g.40gb:1", "--begin=now+1hour", "--mem=1G")
    ours = shapes.submit("true", "-w", "a2", *wants)
    slurms = shapes.submit("true", *wants)
    shapes.run("scontrol", "update", f"JobId={slurms}", "ReqNodeList=a2")
    shapes.run("python", "-m", "tests.testbed.reshape_once", "a2", "0", "1g.5gb@0")
    for job in (ours, slurms):
        shapes.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    shapes.wait_for(
        lambda: "BadConstraints" in shapes.job(slurms)["Reason"], 30, "a look at the jobs"
    )
    shapes.wait_for(lambda: shapes.job(ours)["Reason"] not in ("BeginTime", "None"), 30, "a look")
    shown = shapes.job(ours)
    assert shown["JobState"] == "PENDING"
    assert "BadConstraints" not in shown["Reason"]
    assert shapes.job(slurms)["Priority"] == "0" != shown["Priority"]
    shapes.run("scancel", str(ours), str(slurms))
