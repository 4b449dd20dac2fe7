"""What slurm-mig relies on in Slurm, asked of the running daemons."""

from __future__ import annotations

import pytest

from slurm_mig.core import demand
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
    cluster.run("scontrol", "update", "NodeName=a30-1", "State=RESUME")
    pid = cluster.pid("slurmd", "a30-1")
    cluster.sh(f"kill -HUP {pid}")
    cluster.wait_for(
        lambda: "NOT_RESPONDING" not in cluster.node("a30-1")["State"], 10, "a30-1 to respond"
    )


def test_slurmd_waits_for_a_device_file_that_is_missing(cluster: ManagedCluster) -> None:
    """Why every File is made before slurmd may read gres.conf."""
    log = cluster.read("/var/log/slurm/slurmd-a100-1.log")
    assert "can't stat gres.conf file" not in log


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
