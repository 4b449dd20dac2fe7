"""The hooks around real jobs: the ordinary way, what can be wrong, and whom they wake."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slurm_mig.core import slotmap
from tests.testbed.hooked import NODE, RUN, alive, check, ended, hooked, marks
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

WAKE = "/run/slurm-mig/ctld/wake"
DIFFERING = "/var/lib/slurm-mig/differing"


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    with hooked() as cluster:
        yield cluster


def slots(cluster: ManagedCluster) -> dict[int, list[str]]:
    """Type, UUID, files and proof of each slot that is a device."""
    known = slotmap.parse(cluster.read(f"{RUN}/slots", NODE))
    return {n: [s.type, s.uuid, ",".join(s.files), s.proof] for n, s in known.devices.items()}


def stranger(cluster: ManagedCluster, user: str, uuid: str) -> int:
    """A process outside every job that holds an instance; its pid."""
    cluster.sh(
        f"CUDA_VISIBLE_DEVICES={uuid} setsid -f setpriv --reuid={user} --regid={user} "
        f"--init-groups fake-cuda --report /tmp/stray.$$ >/tmp/stray.log 2>&1 </dev/null; "
        f"while [ ! -s /tmp/stray.$$ ]; do sleep 0.05; done; mv /tmp/stray.$$ /tmp/stray",
        node=NODE, timeout=20,
    )  # fmt: skip
    return int(json.loads(cluster.read("/tmp/stray"))["pid"])


def back_to_work(cluster: ManagedCluster, job: int) -> None:
    """A person mends the fault and resumes the node; the job, requeued, runs after all."""
    cluster.run("scontrol", "update", f"NodeName={NODE}", "State=RESUME")
    cluster.sh(f"kill -HUP $(cat /run/slurm/slurmd-{NODE}.pid)")
    # A requeued job waits a while before it may start again.
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
    ended(cluster, job)
    check(cluster)


def faulted(cluster: ManagedCluster, job: int, words: str) -> None:
    """The node is drained with a reason that says it, and the job is in the queue again."""
    cluster.wait_for(lambda: "DRAIN" in cluster.node(NODE)["State"], 60, "the node to be drained")
    reason = cluster.node(NODE)["Reason"]
    assert f"MIG fault (slurm-mig's prolog): job {job}: {words}" in reason
    cluster.wait_job(job, "PENDING", timeout=60)
    # It is no fence of ours: a cycle leaves it to a person.
    cluster.slurm_mig("reconcile")
    assert cluster.node(NODE)["Reason"] == reason


def test_the_ordinary_way(cluster: ManagedCluster) -> None:
    """A mark is emptied by the epilog and set by the check; the next prolog goes by it."""
    check(cluster)
    assert all(marks(cluster).values())
    job = cluster.submit("echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:1g.5gb:2", "-p", "a100")
    ended(cluster, job)
    uuids = cluster.output(job).split()[0].split(",")
    assert {u for u, clean in marks(cluster).items() if not clean} == set(uuids)
    assert check(cluster) == ""
    assert all(marks(cluster).values())
    assert cluster.sh(f"ls {RUN}", node=NODE).split().count("ended") == 0


def test_without_a_check_the_next_prolog_looks_itself(cluster: ManagedCluster) -> None:
    first = cluster.submit("true", "--gres=gpu:1g.5gb:7", "-p", "a100")
    ended(cluster, first)
    assert not any(marks(cluster).values())
    second = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "-p", "a100")
    cluster.wait_for(lambda: cluster.reports(second, "first"), 30, "the second job")
    assert sum(marks(cluster).values()) == 1
    cluster.run("touch", f"/tmp/jobs/{second}.stop")
    ended(cluster, second)
    check(cluster)


def test_a_check_that_lingers(cluster: ManagedCluster) -> None:
    """One process looks after each job of a quick succession, and ends when none comes."""
    cluster.begin("slurm-mig hook check --linger 3", "/tmp/check.log", node=NODE)
    cluster.wait_for(lambda: cluster.sh("pgrep -f '[h]ook check' || true"), 20, "the check")
    for _ in range(3):
        ended(cluster, cluster.submit("true", "--gres=gpu:1g.5gb:7", "-p", "a100"))
        cluster.wait_for(lambda: all(marks(cluster).values()), 5, "the marks")
    cluster.wait_for(lambda: not cluster.sh("pgrep -f '[h]ook check' || true"), 20, "its end")
    assert cluster.read("/tmp/check.log") == ""


def test_what_a_job_left_is_ended_and_nothing_else(cluster: ManagedCluster) -> None:
    uuid = slots(cluster)[0][1]
    other = stranger(cluster, "bob", slots(cluster)[3][1])
    job = cluster.submit("true", "--gres=gpu:1g.5gb:1", "-p", "a100")
    ended(cluster, job)
    left = stranger(cluster, "alice", uuid)
    assert check(cluster) == ""
    cluster.wait_for(lambda: not alive(cluster, left), 10, "the process to be ended")
    assert marks(cluster)[uuid]
    assert alive(cluster, other)
    cluster.run("kill", "-9", str(other))


def test_a_strangers_process_drains_the_node_and_requeues_the_job(cluster: ManagedCluster) -> None:
    first = cluster.submit("true", "--gres=gpu:1g.5gb:1", "-p", "a100")
    ended(cluster, first)
    uuid = slots(cluster)[0][1]
    other = stranger(cluster, "bob", uuid)
    assert "is held by process" in check(cluster)
    job = cluster.submit("prove own", "--gres=gpu:1g.5gb:1", "-p", "a100")
    faulted(cluster, job,
            f"slot 0 (1g.5gb {uuid}) is held by process {other} (fake-cuda, uid 2002)")  # fmt: skip
    assert alive(cluster, other)
    cluster.run("kill", "-9", str(other))
    back_to_work(cluster, job)


def test_an_instance_that_is_gone_drains_the_node(cluster: ManagedCluster) -> None:
    _, uuid, _, proof = slots(cluster)[0]
    gi = int(proof.split("/gi")[1].split("/")[0])
    start = next(i["start"] for _, i in cluster.instances(NODE) if i["gi"] == gi)
    change = (
        "import pynvml; pynvml.nvmlInit(); d = pynvml.nvmlDeviceGetHandleByIndex(0)\n"
        f"g = pynvml.nvmlDeviceGetGpuInstanceById(d, {gi})\n"
        "pynvml.nvmlComputeInstanceDestroy(pynvml.nvmlGpuInstanceGetComputeInstanceById(g, 0))\n"
        "pynvml.nvmlGpuInstanceDestroy(g)\n"
    )
    remake = (
        "from slurm_mig.adapters.gpus import NvmlGpus; from slurm_mig.core.model import Placement\n"
        f"NvmlGpus().create(0, Placement({start}, 1, '1g.5gb'))\n"
    )
    cluster.run("python", "-c", change, node=NODE)
    job = cluster.submit("CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES%%,*} fake-cuda --seconds 0",
                         "--gres=gpu:1g.5gb:7", "-p", "a100")  # fmt: skip
    faulted(cluster, job, f"slot 0 (1g.5gb {uuid}) does not exist")
    cluster.run("python", "-c", remake, node=NODE)
    back_to_work(cluster, job)


def test_a_missing_device_file_is_made_again(cluster: ManagedCluster) -> None:
    file = slots(cluster)[0][2].split(",")[-1]
    cluster.run("rm", file, node=NODE)
    job = cluster.submit("prove own", "--gres=gpu:1g.5gb:1", "-p", "a100")
    ended(cluster, job)
    assert cluster.sh(f"stat -c '%F %a' {file}", node=NODE) == "character special file 444\n"


def test_narrowed_device_files(cluster: ManagedCluster) -> None:
    """While alice's job runs they are hers alone: bob's process outside every job is denied."""
    cluster.sh(f"sed -i 's/^narrow=no/narrow=yes/' {RUN}/slots", node=NODE)
    try:
        job = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "-p", "a100")
        cluster.wait_for(lambda: cluster.reports(job, "first"), 30, "the job to compute")
        report = cluster.reports(job, "first")[0]
        caps = " ".join(f for f in report["files"] if "cap" in f)
        assert cluster.sh(f"stat -c '%U %a' {caps}", node=NODE).split() == ["alice", "400"] * 2
        probe = ["setpriv", "--reuid=bob", "--regid=bob", "--init-groups", "fake-cuda", "--probe"]
        done = cluster.run(*probe, report["uuid"], node=NODE, check=False)
        assert "Permission denied" in done.stdout
        cluster.run("touch", f"/tmp/jobs/{job}.stop")
        ended(cluster, job)
        assert cluster.sh(f"stat -c '%U %a' {caps}", node=NODE).split() == ["root", "444"] * 2
    finally:
        cluster.sh(f"sed -i 's/^narrow=yes/narrow=no/' {RUN}/slots", node=NODE)
        check(cluster)


def test_no_job_starts_on_a_node_whose_views_differ(cluster: ManagedCluster) -> None:
    """As after a slurmctld that forgot our fence: the batch job is requeued, not lost."""
    cluster.sh(f"mkdir -p {DIFFERING}; touch {DIFFERING}/{NODE}")
    try:
        other = cluster.submit("true", "-p", "a30")
        job = cluster.submit("true", "-p", "a100")
        ended(cluster, other)
        cluster.wait_for(
            lambda: int(cluster.job(job).get("Restarts", 0)) > 0, 30, "the job to be requeued"
        )
        assert cluster.job(job)["JobState"] != "FAILED"
        assert "JobHeld" not in cluster.job(job)["Reason"]
    finally:
        cluster.sh(f"rm {DIFFERING}/{NODE}")
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)
    ended(cluster, job)


@contextmanager
def looping(cluster: ManagedCluster) -> Iterator[None]:
    """`slurm-mig reconcile --loop` beside the test, with no timer."""
    cluster.sh(
        "rm -f /tmp/loop.log; "
        "setsid -f slurm-mig reconcile --loop 3600 >/tmp/loop.log 2>/tmp/loop.err </dev/null; "
        "while [ ! -s /tmp/loop.log ]; do sleep 0.1; done", timeout=30,
    )  # fmt: skip
    pid = cluster.sh("pgrep -f '[s]lurm_mig.cli reconcile --loop'").split()[0]
    try:
        yield
    finally:
        cluster.sh(f"kill {pid}")
        cluster.wait_for(lambda: not alive(cluster, int(pid)), 30, "the loop to end")


def sessions(cluster: ManagedCluster) -> set[int]:
    """The node commands that run, on every node."""
    return set(map(int, cluster.sh("pgrep -f '[s]lurm_mig.cli node serve' || true").split()))


def another_cycle(cluster: ManagedCluster) -> None:
    """Woken by hand; returns when it has ended."""
    before = cluster.read("/tmp/loop.log").count("\n")
    cluster.sh(f"echo >{WAKE}")
    cluster.wait_for(lambda: cluster.read("/tmp/loop.log").count("\n") > before, 30, "a cycle")


def looking(cluster: ManagedCluster, look: str) -> str:
    """What `look` says just after a cycle."""
    another_cycle(cluster)
    return cluster.sh(look)


def test_a_loop_keeps_its_sessions_with_the_nodes(cluster: ManagedCluster) -> None:
    """The same process answers cycle after cycle, lets go of the driver in between, and is replaced
    when it was ended or its configuration has changed."""
    with looping(cluster):
        kept = sessions(cluster)
        assert len(kept) == 2
        another_cycle(cluster)
        assert sessions(cluster) == kept
        uses = " ".join(f"/proc/{pid}/maps" for pid in kept)
        look = f"grep -l '/state$' {uses} || true"
        cluster.wait_for(lambda: looking(cluster, look), 20, "a look at NVML")
        cluster.wait_for(lambda: not cluster.sh(look), 10, "the driver to be let go")
        first = min(kept)
        cluster.sh(f"kill -9 {first}")
        another_cycle(cluster)
        replaced = sessions(cluster)
        assert len(replaced & kept) == 1
        cluster.configure(CONFIGURATION + "# another hand\n")
        time.sleep(1.2)  # only a session that rests is replaced
        another_cycle(cluster)
        assert len(sessions(cluster)) == 2
        assert not sessions(cluster) & replaced
        job = cluster.submit("true", "--gres=gpu:2g.10gb:1", "-p", "a100")
        ended(cluster, job)
    assert not sessions(cluster)


def test_a_submission_wakes_a_cycle_and_so_does_a_jobs_end(cluster: ManagedCluster) -> None:
    """With no timer at all; the cycles keep their minimum interval."""
    with looping(cluster):
        wants = cluster.submit(CUDA_JOB, "--gres=gpu:7g.40gb:1", "-p", "a100")
        cluster.wait_for(lambda: cluster.reports(wants, "first"), 60, "the job to be served")
        wants_next = cluster.submit("true", "--gres=gpu:3g.20gb:1", "-p", "a100")
        time.sleep(3)
        assert cluster.job(wants_next)["JobState"] == "PENDING"
        cluster.run("touch", f"/tmp/jobs/{wants}.stop")
        ended(cluster, wants, wants_next)
        start = time.monotonic()
        before = len(cluster.read("/tmp/loop.log").splitlines())
        for _ in range(20):
            cluster.sh(f"echo >{WAKE}")
            time.sleep(0.2)
        cycles = len(cluster.read("/tmp/loop.log").splitlines()) - before
        assert 0 < cycles <= time.monotonic() - start + 1
