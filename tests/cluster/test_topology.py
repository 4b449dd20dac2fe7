"""The catalog beside topology/tree: a record that is on no switch takes no job."""

from __future__ import annotations

from tests.testbed.cluster import A100, ETC, NodeSpec
from tests.testbed.product import ManagedCluster


def test_a_job_for_an_absent_profile_queues_once_the_record_is_on_a_switch() -> None:
    with ManagedCluster(nodes=(NodeSpec("a100-1", (A100,)),)) as cluster:
        tree(cluster, "a100-1")
        cluster.sh(f"echo TopologyPlugin=topology/tree >>{ETC}/slurm.conf")
        cluster.restart_daemon("slurmctld")
        cluster.restart_daemon("slurmd", "a100-1")
        cluster.wait_for(lambda: cluster.node("a100-1")["State"] == "IDLE", 30, "the node")
        cluster.enrol()
        refused = cluster.run("sbatch", "--gres=gpu:3g.20gb:1", "--wrap=true", check=False)
        assert "Requested node configuration is not available" in refused.stderr, refused
        tree(cluster, "a100-1,mig-catalog-1")
        cluster.run("scontrol", "reconfigure")
        cluster.wait_for(lambda: cluster.node("a100-1")["State"] == "IDLE", 30, "the node")
        job = cluster.submit("true", "--gres=gpu:3g.20gb:1")
        cluster.slurm_mig("reconcile")
        cluster.wait_job(job, "COMPLETED")


def tree(cluster: ManagedCluster, nodes: str) -> None:
    cluster.write(f"{ETC}/topology.conf", f"SwitchName=leaf1 Nodes={nodes}\n")
