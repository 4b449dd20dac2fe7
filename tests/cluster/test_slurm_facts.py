"""What slurm-mig relies on in Slurm, asked of the running daemons."""

from __future__ import annotations

import time

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, Cluster, NodeSpec
from tests.testbed.product import ManagedCluster


def test_a_profile_that_no_node_has_is_refused_at_submit(plain: ManagedCluster) -> None:
    done = plain.run("sbatch", "--gres=gpu:3g.20gb:1", "--wrap=true", user="alice", check=False)
    assert "Requested node configuration is not available" in done.stderr


def test_the_catalog_record_lets_it_queue_and_is_hidden(cluster: ManagedCluster) -> None:
    job = cluster.submit("true", "--gres=gpu:4g.20gb:1", "--hold")
    cluster.run("scontrol", "release", str(job))
    assert cluster.job(job)["JobState"] == "PENDING"
    assert "mig-catalog" not in cluster.run("sinfo", "-N").stdout
    assert "mig-catalog" not in cluster.run("scontrol", "show", "node").stdout


def test_the_order_of_the_gres_line_is_the_order_of_indexes(cluster: ManagedCluster) -> None:
    """Types in the order of the node's line, inside a type in gres.conf's order."""
    job = cluster.submit("echo $SLURM_JOB_GPUS", "--gres=gpu:l40s:1", "-w", "mixed-1")
    cluster.wait_job(job, "COMPLETED")
    order = list(demand.parse_gres(cluster.node("mixed-1")["Gres"]))
    assert order == ["1g.5gb", "l40s", "guard"]
    assert cluster.output(job).strip() == "7"


def test_scontrol_cannot_change_the_total(cluster: ManagedCluster) -> None:
    done = cluster.run(
        "scontrol", "update", "NodeName=a100-1", "Gres=gpu:1g.5gb:3,gpu:guard:1", check=False
    )
    assert done.returncode
    assert "Invalid generic resource" in done.stderr


def test_after_a_resume_a_node_does_not_respond_until_it_registers(
    cluster: ManagedCluster,
) -> None:
    cluster.run("scontrol", "update", "NodeName=a30-1", "State=DRAIN", "Reason=test")
    pid = cluster.pid("slurmd", "a30-1")
    cluster.sh(f"kill -STOP {pid}")
    cluster.run("scontrol", "update", "NodeName=a30-1", "State=RESUME")
    assert "NOT_RESPONDING" in cluster.node("a30-1")["State"]
    cluster.sh(f"kill -CONT {pid}; kill -HUP {pid}")
    cluster.wait_for(
        lambda: "NOT_RESPONDING" not in cluster.node("a30-1")["State"], 10, "a30-1 to respond"
    )


def test_running_jobs_survive_slurmctlds_restart_and_a_reconfigure(
    cluster: ManagedCluster,
) -> None:
    """After a live reshape: same total, every type listed, so slurmctld kills nothing."""
    small = cluster.submit("exec sleep 60", "--gres=gpu:1g.6gb:1")
    cluster.wait_job(small, "RUNNING")
    wants = cluster.submit("exec sleep 60", "--gres=gpu:2g.12gb:1")
    cluster.slurm_mig("reconcile")
    cluster.wait_job(wants, "RUNNING")
    gres = cluster.node("a30-1")["Gres"]
    held = [cluster.job(job)["GRES"] for job in (small, wants)]
    for again in (
        lambda: cluster.restart_daemon("slurmctld"),
        lambda: cluster.run("scontrol", "reconfigure", check=False),
    ):
        again()
        cluster.wait_for(
            lambda: cluster.run("sinfo", "-h", "-n", "a30-1", "-N", "-o", "%t %G", check=False)
            .stdout.splitlines()[:1] == [f"mix {gres}"],
            40, "the node to be back with the Gres as written")  # fmt: skip
    for job, devices in zip((small, wants), held, strict=True):
        shown = cluster.job(job)
        assert (shown["JobState"], shown["GRES"]) == ("RUNNING", devices)


def test_a_suspended_job_keeps_its_index_and_is_busy(cluster: ManagedCluster) -> None:
    job = cluster.submit("exec sleep 60", "--gres=gpu:1g.6gb:1", "-w", "a30-1")
    before = cluster.wait_job(job, "RUNNING")["GRES"]
    cluster.run("scontrol", "suspend", str(job))
    assert cluster.job(job)["GRES"] == before
    owners = [
        i["owner"]
        for node in cluster.status()["nodes"]
        if node["name"] == "a30-1"
        for gpu in node["gpus"]
        for i in gpu["instances"]
    ]
    assert owners.count(f"job {job}") == 1
    cluster.run("scontrol", "resume", str(job))


def test_a_suspended_job_that_is_put_back_into_the_queue_is_held(cluster: ManagedCluster) -> None:
    """Suspending takes its priority, which only its resume would give back."""
    job = cluster.submit("exec sleep 60", "--gres=gpu:1g.6gb:1", "-w", "a30-1")
    cluster.wait_job(job, "RUNNING")
    cluster.run("scontrol", "suspend", str(job))
    cluster.run("scontrol", "requeue", str(job))
    assert cluster.wait_job(job, "PENDING")["Reason"] == "JobHeldAdmin"
    cluster.run("scancel", str(job))


def test_a_zero_count_makes_slurmctld_rebuild_the_topology(cluster: ManagedCluster) -> None:
    """Without it, where every old type is still listed, a registration leaves the old one."""
    cluster.run("scontrol", "update", "NodeName=a100-2", "State=DRAIN", "Reason=test")
    path = "/etc/slurm/slurm-mig/gres.conf"
    ours, line = cluster.read(path), cluster.node("a100-2")["Gres"]
    first = "NodeName=a100-2 Name=gpu Type=1g.5gb"
    nodes = "/etc/slurm/slurm-mig/nodes.conf"
    conf = cluster.read(nodes)
    head, tail = conf.split("NodeName=a100-2 ", 1)
    try:
        cut = ours.rindex(first)
        changed = ours[:cut] + first.replace("1g.5gb", "extra") + ours[cut + len(first) :]
        cluster.write(path, changed)
        new = "gpu:1g.5gb:13,gpu:extra:1,gpu:guard:1"
        cluster.write(
            nodes, f"{head}NodeName=a100-2 {tail.replace('gpu:1g.5gb:14,gpu:guard:1', new, 1)}"
        )
        cluster.run("scontrol", "update", "NodeName=a100-2", f"Gres={new}")
        cluster.run("restart-slurmd", node="a100-2")
        time.sleep(1)
        assert "extra" not in cluster.node("a100-2")["Gres"]
        cluster.run("scontrol", "update", "NodeName=a100-2", f"Gres={new},gpu:none:0")
        cluster.run("restart-slurmd", node="a100-2")
        cluster.wait_for(
            lambda: demand.parse_gres(cluster.node("a100-2")["Gres"]).get("extra") == 1,
            10, "the new type to show")  # fmt: skip
    finally:
        cluster.write(path, ours)
        cluster.write(nodes, conf)
        cluster.run("scontrol", "update", "NodeName=a100-2", f"Gres={line},gpu:none:0")
        cluster.run("restart-slurmd", node="a100-2")
        cluster.wait_for(lambda: cluster.node("a100-2")["Gres"] == line, 10, "the old line")
        cluster.run("scontrol", "update", "NodeName=a100-2", "State=RESUME")
        cluster.sh(f"kill -HUP {cluster.pid('slurmd', 'a100-2')}")


def test_removing_a_type_under_a_job_is_refused_until_two_registrations(
    cluster: ManagedCluster,
) -> None:
    """A type of the topology with count 0 in the line: refused while a job uses the node's gpus."""
    job = cluster.submit("exec sleep 60", "--gres=gpu:l40s:1", "-w", "mixed-1")
    cluster.wait_job(job, "RUNNING")
    cluster.run("scontrol", "update", "NodeName=mixed-1", "State=DRAIN", "Reason=test")
    text = cluster.read("/etc/slurm/slurm-mig/gres.conf")
    line = cluster.node("mixed-1")["Gres"]
    changed = text
    for _ in range(7):
        changed = _as_filler(changed)
    try:
        cluster.write("/etc/slurm/slurm-mig/gres.conf", changed)
        conf = cluster.read("/etc/slurm/slurm-mig/nodes.conf")
        cluster.write(
            "/etc/slurm/slurm-mig/nodes.conf",
            conf.replace("gpu:1g.5gb:7,gpu:l40s:1", "gpu:off:7,gpu:l40s:1,gpu:1g.5gb:0", 1)
            if conf.count("gpu:1g.5gb:7,gpu:l40s:1") == 1
            else pytest.fail("unexpected nodes.conf"),
        )
        true_line = "gpu:off:7,gpu:l40s:1,gpu:guard:1,gpu:1g.5gb:0,gpu:none:0"
        cluster.run("scontrol", "update", "NodeName=mixed-1", f"Gres={true_line}")
        cluster.run("restart-slurmd", node="mixed-1")
        cluster.wait_for(
            lambda: "INVALID_REG" in cluster.node("mixed-1")["State"], 10, "the refusal"
        )
        assert "gres/gpu type changed and jobs are using them" in cluster.node("mixed-1")["Reason"]
        bridge = "gpu:off:6,gpu:l40s:1,gpu:guard:1,gpu:1g.5gb:1,gpu:none:0"
        cluster.run("scontrol", "update", "NodeName=mixed-1", f"Gres={bridge}")
        cluster.run("restart-slurmd", node="mixed-1")
        cluster.wait_for(
            lambda: demand.parse_gres(cluster.node("mixed-1")["Gres"]).get("off") == 7,
            10, "the topology to be rebuilt")  # fmt: skip
        cluster.run("scontrol", "update", "NodeName=mixed-1", f"Gres={true_line}")
        cluster.run("restart-slurmd", node="mixed-1")
        cluster.wait_for(
            lambda: "INVALID_REG" not in cluster.node("mixed-1")["State"], 10, "it to be accepted"
        )
        assert cluster.job(job)["JobState"] == "RUNNING"
    finally:
        cluster.run("scancel", str(job))
        cluster.wait_job(job, "CANCELLED", "COMPLETED")
        cluster.slurm_mig("rewrite")
        cluster.run("scontrol", "update", "NodeName=mixed-1", f"Gres={line},gpu:none:0")
        cluster.run("restart-slurmd", node="mixed-1")
        cluster.wait_for(
            lambda: cluster.node("mixed-1")["Gres"] == line, 10, "the old line to be back"
        )
        cluster.run("scontrol", "update", "NodeName=mixed-1", "State=RESUME")
        cluster.sh(f"kill -HUP {cluster.pid('slurmd', 'mixed-1')}")


def _as_filler(text: str) -> str:
    return text.replace(
        "NodeName=mixed-1 Name=gpu Type=1g.5gb", "NodeName=mixed-1 Name=gpu Type=off", 1
    )


def test_components_of_a_heterogeneous_job_never_share_a_node(plain: Cluster) -> None:
    """They wait beside a node that has room for both, until another one is free."""
    plain.run("scontrol", "update", "NodeName=a100-2,mixed-1", "State=DRAIN", "Reason=test")
    try:
        gres = "--gres=gpu:1g.5gb:1"
        job = plain.submit("true", "-n1", gres, ":", "-n1", gres)
        plain.sh("sleep 4")
        assert plain.job(job)["JobState"] == "PENDING"
    finally:
        plain.run("scontrol", "update", "NodeName=a100-2,mixed-1", "State=RESUME")
        for node in ("a100-2", "mixed-1"):
            plain.sh(f"kill -HUP {plain.pid('slurmd', node)}")
    plain.wait_job(job, "COMPLETED")


RARELY = """\
SchedulerParameters=batch_sched_delay=300,sched_interval=600,bf_interval=600
Epilog=/bin/true
"""


def test_only_a_jobs_end_has_slurm_start_others_at_once() -> None:
    """A batch job is not tried when it is submitted. Nothing that may be done to it or to its node
    has it started before the scheduler's next pass, which is why a reshape ends with a wait. A
    job's end does, where nodes have an Epilog."""
    nodes = (NodeSpec("n1", (A100,)), NodeSpec("n2", (A100,)))
    with Cluster(nodes=nodes, extra_conf=RARELY) as cluster:
        # slurmctld reads these parameters in its first pass.
        cluster.wait_job(cluster.submit("true"), "COMPLETED")
        cluster.sh("setsid -f srun -w n2 sh -c 'until [ -e /tmp/jobs/go ]; do sleep 0.1; done' "
                   ">/dev/null 2>&1 </dev/null", user="alice")  # fmt: skip
        cluster.wait_for(lambda: "R" in cluster.run("squeue", "-h", "-o", "%t").stdout.split(), 20,
                         "the interactive job to be started at once")  # fmt: skip
        cluster.run("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
        job = cluster.submit("true", "-w", "n1")
        cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME")
        cluster.sh(f"kill -HUP {cluster.pid('slurmd', 'n1')}")
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5")
        cluster.run("scontrol", "hold", str(job))
        cluster.run("scontrol", "release", str(job))
        cluster.run("scontrol", "top", str(job))
        time.sleep(4)
        assert cluster.node("n1")["State"] == "IDLE"
        assert cluster.job(job)["JobState"] == "PENDING"
        cluster.run("touch", "/tmp/jobs/go")
        cluster.wait_job(job, "COMPLETED", timeout=60)
