"""What a node's tenants get, and what they can do to each other: two users on one GPU, steps and
tasks, jobs over nodes of different kinds, nonsense in the environment."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.testbed.hooked import NODE, RUN, alive, check, ended, hooked, marks
from tests.testbed.product import CUDA_JOB, ManagedCluster


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    with hooked() as cluster:
        yield cluster


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
