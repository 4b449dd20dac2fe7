"""The hooks around real jobs: the ordinary way, what can be wrong, and two users on one GPU."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from slurm_mig.core import slotmap
from tests.testbed.cluster import A30, A100, NodeSpec
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODE = "a100-1"
RUN = "/run/slurm-mig"
WAKE = "/run/slurm-mig/ctld/wake"
DIFFERING = "/var/lib/slurm-mig/differing"


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    """Two nodes of different kinds, with every hook."""
    nodes = (
        NodeSpec(NODE, (A100,), partitions=("main", "a100"), features="a100"),
        NodeSpec("a30-1", (A30, A100), partitions=("main", "a30"), features="a30"),
    )
    with ManagedCluster(nodes=nodes, hooks=True) as cluster:
        cluster.enrol()
        yield cluster


def marks(cluster: ManagedCluster) -> dict[str, bool]:
    """Is each slot of the node clean, by UUID?"""
    found = cluster.sh(f"cd {RUN}/clean; stat -c '%n %s' *", node=NODE)
    return {name: size != "0" for name, size in map(str.split, found.splitlines())}


def slots(cluster: ManagedCluster) -> dict[int, list[str]]:
    """Type, UUID, files and proof of each slot that is a device."""
    known = slotmap.parse(cluster.read(f"{RUN}/slots", NODE))
    return {n: [s.type, s.uuid, ",".join(s.files), s.proof] for n, s in known.devices.items()}


def check(cluster: ManagedCluster) -> str:
    """What the path unit runs once an epilog has noted a job."""
    return cluster.run("slurm-mig", "hook", "check", node=NODE, check=False).stdout


def ended(cluster: ManagedCluster, *jobs: int, state: str = "COMPLETED") -> None:
    """The jobs have ended, epilogs and all."""
    for job in jobs:
        shown = cluster.wait_job(job, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", timeout=60)
        assert shown["JobState"] == state, cluster.output(job)
    cluster.wait_for(lambda: "COMPLETING" not in cluster.node(NODE)["State"], 30, "the epilog")


def stranger(cluster: ManagedCluster, user: str, uuid: str) -> int:
    """A process outside every job that holds an instance; its pid."""
    cluster.sh(
        f"CUDA_VISIBLE_DEVICES={uuid} setsid -f setpriv --reuid={user} --regid={user} "
        f"--init-groups fake-cuda --report /tmp/stray.$$ >/tmp/stray.log 2>&1 </dev/null; "
        f"while [ ! -s /tmp/stray.$$ ]; do sleep 0.05; done; mv /tmp/stray.$$ /tmp/stray",
        node=NODE, timeout=20,
    )  # fmt: skip
    return int(json.loads(cluster.read("/tmp/stray"))["pid"])


def alive(cluster: ManagedCluster, pid: int) -> bool:
    return cluster.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0


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
    run = "setsid -f slurm-mig hook check --linger 3 >/tmp/check.log 2>&1 </dev/null"
    cluster.sh(run, node=NODE)
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


OTHERS = """\
me=/tmp/jobs/$SLURM_JOB_ID
fake-cuda --until-file $me.stop --report $me.first &
while [ ! -s $me.other ]; do sleep 0.1; done
read -r uuid pid gi <$me.other
fake-cuda --probe $uuid >$me.probe; echo opened $?
CUDA_VISIBLE_DEVICES=$uuid fake-cuda --seconds 0; echo named $?
CUDA_VISIBLE_DEVICES=$uuid NVIDIA_VISIBLE_DEVICES=$uuid srun --overlap prove step; echo told $?
kill -9 $pid; echo killed $?
python $me.py $gi; echo destroyed $?
wait
srun fake-cuda --seconds 0.1 --report $me.second
"""
"""Computes, and meanwhile tries what it can against another job's instance and process."""

DESTROY = """\
import sys, pynvml
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
instance = pynvml.nvmlDeviceGetGpuInstanceById(gpu, int(sys.argv[1]))
compute = pynvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
for call, what in ((pynvml.nvmlComputeInstanceDestroy, compute),
                   (pynvml.nvmlGpuInstanceDestroy, instance)):
    try:
        call(what)
    except pynvml.NVMLError_NoPermission:
        continue
    sys.exit(7)
"""
"""Exits with 0 when both were denied for want of permission."""

DENIED = {"opened 0", "named 3", "told 0", "killed 1", "destroyed 0"}


def test_two_users_on_one_gpu(cluster: ManagedCluster) -> None:
    """Neither can open, name, end or destroy what is the other's; both compute on, and after one
    has ended the other one still does."""
    jobs = {user: cluster.submit(OTHERS, "--gres=gpu:1g.5gb:1", "-p", "a100", user=user)
            for user in ("alice", "bob")}  # fmt: skip
    for job in jobs.values():
        cluster.write(f"/tmp/jobs/{job}.py", DESTROY)
        cluster.wait_for(partial(cluster.reports, job, "first"), 30, f"{job} to compute")
    mine = {user: cluster.reports(job, "first")[0] for user, job in jobs.items()}
    assert mine["alice"]["gpu"] == mine["bob"]["gpu"]
    assert mine["alice"]["uuid"] != mine["bob"]["uuid"]
    for user, other in (("alice", "bob"), ("bob", "alice")):
        its = mine[other]
        cluster.write(f"/tmp/jobs/{jobs[user]}.other", f"{its['uuid']} {its['pid']} {its['gi']}\n")
    for user, job in jobs.items():
        cluster.wait_for(lambda job=job: "destroyed" in cluster.output(job), 30, "the tries")  # type: ignore[misc]
        assert set(cluster.output(job).splitlines()) >= DENIED, cluster.output(job)
        assert "Operation not permitted" in cluster.read(f"/tmp/jobs/{job}.probe")
        (told,) = cluster.reports(job, "step")
        assert told["uuid"] == mine[user]["uuid"]
        assert alive(cluster, mine[user]["pid"])
    cluster.run("touch", f"/tmp/jobs/{jobs['bob']}.stop")
    ended(cluster, jobs["bob"])
    check(cluster)
    assert alive(cluster, mine["alice"]["pid"])
    cluster.run("touch", f"/tmp/jobs/{jobs['alice']}.stop")
    ended(cluster, jobs["alice"])
    for user, job in jobs.items():
        assert cluster.reports(job, "second")[0]["uuid"] == mine[user]["uuid"]
    check(cluster)


def test_a_stale_uuid_does_not_reach_the_next_tenants_instance(cluster: ManagedCluster) -> None:
    """Named by the environment at submission, by a step's, and by the program itself."""
    first = cluster.submit("echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:1g.5gb:1", "-p", "a100")
    ended(cluster, first)
    stale = cluster.output(first).split()[0]
    holder = cluster.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "-p", "a100", user="bob")
    cluster.wait_for(lambda: cluster.reports(holder, "first"), 30, "bob's job")
    assert cluster.reports(holder, "first")[0]["uuid"] == stale
    old = f"CUDA_VISIBLE_DEVICES={stale} NVIDIA_VISIBLE_DEVICES={stale}"
    script = (
        f"prove batch || exit 20\n{old} srun prove step || exit 21\n{old} fake-cuda --seconds 0\n"
    )
    second = cluster.submit(script, "--gres=gpu:1g.5gb:1", "-p", "a100",
                            "--export=ALL," + old.replace(" ", ","))  # fmt: skip
    ended(cluster, second, state="FAILED")
    assert "ExitCode=3:0" in cluster.run("scontrol", "show", "job", str(second)).stdout
    assert "Operation not permitted" in cluster.output(second)
    own = {report["uuid"] for step in ("batch", "step") for report in cluster.reports(second, step)}
    assert len(own) == 1
    assert stale not in own
    cluster.run("touch", f"/tmp/jobs/{holder}.stop")
    ended(cluster, holder)
    check(cluster)


NONSENSE = ["", " ", "\n", "0\n1\nexport X=1", "$(touch /tmp/x)", "`touch /tmp/x`",
            "; touch /tmp/x", "0-999999999", "1" * 20_000, "-1", "é\x01\x7f",
            "../../etc/passwd", "%n%s", "MIG-a",
            "' \" \\", "*", "0,1,2,3,4,5,6", "/dev/null"]  # fmt: skip
NAMES = ["SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
         "SLURM_JOB_UID", "SLURM_JOB_NODELIST", "IFS", "ENV", "BASH_ENV", "slot_0", "slot_3",
         "constrained", "list", "job", "every", "1", "PS4", "LD_LIBRARY_PATH"]  # fmt: skip
"""What the hooks and the plugin read, their own variables, and what a shell believes."""

AFTER = "PATH=/usr/local/bin:/usr/bin:/bin; unset LD_LIBRARY_PATH IFS\n"


def test_a_hundred_users_worth_of_nonsense(cluster: ManagedCluster) -> None:
    """Environments, names and comments of every bad kind around real jobs: each runs, those with a
    device on their own, and the queue and the node go on."""
    dice = random.Random(5)
    jobs = []
    for number in range(100):
        gpus = number % 2
        env = {name: dice.choice(NONSENSE) for name in dice.sample(NAMES, dice.randint(1, 9))}
        options = ["--gres=gpu:1g.5gb:1"] if gpus else []
        done = cluster.run(
            "sbatch", "--parsable", "--output=/tmp/jobs/%j.out", "--chdir=/tmp/jobs", "-p", "a100",
            "--mem=1", "--export=ALL", f"--job-name={dice.choice(NONSENSE)[:500]}",
            f"--comment={dice.choice(NONSENSE)[:500]}", *options,
            user=dice.choice(("alice", "bob")), env=env,
            stdin="#!/bin/sh\n" + AFTER + ("prove own\n" if gpus else "true\n"),
        )  # fmt: skip
        jobs.append(int(done.stdout))
    for command in ("reconcile", "status"):
        cluster.slurm_mig(command)
    cluster.wait_for(lambda: not cluster.run("squeue", "-h").stdout, 120, "the queue to be empty")
    for job in jobs:
        # A name of several lines makes several lines of a job.
        shown = cluster.run("scontrol", "show", "job", str(job)).stdout
        assert "JobState=COMPLETED" in shown, shown + cluster.output(job)
    for job in jobs[1::2]:
        assert len(cluster.reports(job, "own")) == 1
    assert cluster.node(NODE)["State"] == "IDLE"
    assert cluster.run("test", "-e", "/tmp/x", check=False).returncode
    noted = cluster.sh(f"cat {RUN}/ended", node=NODE).splitlines()
    assert len(noted) == 50
    assert all(re.fullmatch(r"\d+ 200[12] [0-6]", line) for line in noted)
    assert check(cluster) == ""
    assert all(marks(cluster).values())


STEPS = """\
prove batch || exit
srun -n1 prove whole_step || exit
srun -n1 --gres=gpu:1g.5gb:1 prove fewer || exit
srun -n1 --gres=none prove without || exit
srun -n2 --gpu-bind=map_gpu:1,0 prove map || exit
srun -n2 --gpu-bind=single:1 prove single || exit
srun -n2 --gpus-per-task=1 prove per_task || exit
srun -n2 --tres-bind=gres/gpu:map:1,0 prove tres || exit
srun -n1 --exact --gres=gpu:1g.5gb:1 prove beside &
srun -n1 --exact --gres=gpu:1g.5gb:1 prove beside || exit
wait $!
"""


def test_each_step_and_task_computes_on_its_own_and_on_no_other(cluster: ManagedCluster) -> None:
    """Steps with all of the job's, with fewer, with none; tasks bound to one each."""
    job = cluster.submit(STEPS, "--gres=gpu:1g.5gb:2", "-n2", "-p", "a100")
    ended(cluster, job)
    own = {report["uuid"] for report in cluster.reports(job, "batch")}
    assert len(own) == 2
    for step, tasks in (("whole_step", 1), ("map", 2), ("single", 2), ("per_task", 2),
                        ("tres", 2), ("beside", 2)):  # fmt: skip
        reports = cluster.reports(job, step)
        assert len(reports) == 2, step
        assert {report["uuid"] for report in reports} == own, step
        # A task with one of the two is denied the other one.
        tried = cluster.read(f"/tmp/jobs/{job}.{step}.tried").split()
        assert tried == [str(7 - 2 // tasks)] * tasks, step
    (fewer,) = cluster.reports(job, "fewer")
    assert fewer["uuid"] in own
    assert not cluster.reports(job, "without")
    assert cluster.read(f"/tmp/jobs/{job}.without.tried") == "7\n"
    check(cluster)


def test_a_job_without_gpus_has_none_whatever_it_says(cluster: ManagedCluster) -> None:
    pretends = ("--export=ALL,SLURM_JOB_GPUS=0-6,SLURM_STEP_GPUS=0,CUDA_VISIBLE_DEVICES=0", "-p")
    script = "echo $CUDA_VISIBLE_DEVICES\nunset CUDA_VISIBLE_DEVICES\nprove none\n"
    job = cluster.submit(script, *pretends, "a100")
    ended(cluster, job)
    assert "MIG-" not in cluster.output(job)
    assert cluster.read(f"/tmp/jobs/{job}.none.tried") == "7\n"
    check(cluster)


@pytest.mark.parametrize(
    ("options", "profiles", "tried"),
    [
        ("--gpus=1g.5gb:1 -p a100 : --gres=gpu:1g.6gb:2 -p a30", ["1g.5gb", "1g.6gb", "1g.6gb"],
         ["6", "9"]),
        ("-N2 --gres=gpu:1g.5gb:2", ["1g.5gb"] * 4, ["5", "9"]),
        ("-N2 -n2 --gpus-per-task=1g.5gb:1", ["1g.5gb"] * 2, ["10", "6"]),
    ],
)  # fmt: skip
def test_a_job_over_nodes_of_different_kinds(
    cluster: ManagedCluster, options: str, profiles: list[str], tried: list[str]
) -> None:
    """As a heterogeneous job, and as one job whose instances have other indexes on each node."""
    cluster.sh("rm -f /tmp/jobs/*.kinds*")
    step = ("srun", "--het-group=0,1") if ":" in options.split() else ("srun",)
    cluster.run("salloc", *options.split(), *step, "prove", "kinds", user="alice")
    found = [json.loads(line) for line in cluster.sh("cat /tmp/jobs/*.kinds").splitlines()]
    assert sorted(report["profile"] for report in found) == profiles
    assert len({report["uuid"] for report in found}) == len(profiles)
    assert sorted(cluster.sh("cat /tmp/jobs/*.kinds.tried").split()) == tried


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
