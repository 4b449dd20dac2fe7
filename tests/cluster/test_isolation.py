"""No process of a job opens an instance that is not the job's, whenever either was made.

One crowd of jobs for all questions: begun before the node was cut differently and after, by sbatch
and salloc, each asked in its first process and in a step launched now. docs/isolation.md says what
is tried here.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from slurm_mig.core import demand
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.device_program import OPENS, Slot, slots
from tests.testbed.jobs import no_jobs, reconcile_until
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.watch import CAPS, gates

NODE = "mixed"
GROUPS = f"""\
groups:
- {{nodes: {NODE}, whole_type: a100, mode_change: reset}}
"""
PYTHON = "/opt/slurm-mig/venv/bin/python"
PUBLISHED = "/etc/slurm/slurm-mig/gres.conf"
RIGHTS = (f"{CAPS}1", f"{CAPS}2")
"""mig/config and mig/monitor."""

OPENS_JOB = f"exec {PYTHON} {OPENS} --wait /tmp/jobs/$SLURM_JOB_ID"
"""Answers questions from a process that is as old as the job."""

EMPTY = """\
from slurm_mig.adapters.gpus import NvmlGpus
gpus = NvmlGpus("/dev/nvidia-caps")
for instance in gpus.inventory()[1].instances:
    gpus.destroy(1, instance.gi)
"""


@dataclass(frozen=True)
class Holder:
    """A running job and the device files of its slots: neither changes while it runs."""

    job: int
    own: frozenset[str]

    @property
    def prefix(self) -> str:
        return f"/tmp/jobs/{self.job}"


@dataclass(frozen=True)
class Crowd:
    """The jobs of the module's cluster, and who is under a cgroup v2 program."""

    cluster: ManagedCluster
    jobs: Mapping[str, Holder]
    silent: frozenset[str]
    """Jobs without a process of their own: salloc."""
    at_first: tuple[Slot, ...]
    """The slots when the older jobs began."""


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    """Two A100, of which the second is in MIG mode and empty, and two L40S; older jobs; then the
    second A100 is made whole for one job and the first gets a 3g.20gb for another."""
    spec = NodeSpec(NODE, (A100, A100, L40S, L40S))
    with ManagedCluster(nodes=(spec,), configuration=CONFIGURATION + GROUPS) as cluster:
        cluster.run("python", "-c", EMPTY, node=NODE)
        cluster.enrol()
        jobs = {
            "small": running(cluster, "gpu:1g.5gb:1"),
            "beside": running(cluster, "gpu:l40s:1"),
            "without": running(cluster, "gpu:0"),
            "salloc": allocated(cluster, "gpu:1g.5gb:1"),
        }
        at_first = published(cluster)
        begin_under_v2(cluster, jobs["small"])
        jobs["whole"] = served(cluster, "gpu:a100:1")
        jobs["new"] = served(cluster, "gpu:3g.20gb:1")
        yield Crowd(cluster, jobs, frozenset({"salloc"}), at_first)


def published(cluster: ManagedCluster) -> tuple[Slot, ...]:
    return tuple(slots(cluster.read(PUBLISHED)))


def running(cluster: ManagedCluster, gres: str) -> Holder:
    """A job that answers questions, on what is free."""
    job = cluster.submit(OPENS_JOB, f"--gres={gres}")
    cluster.wait_job(job, "RUNNING")
    return holder(cluster, job)


def served(cluster: ManagedCluster, gres: str) -> Holder:
    """A job that answers questions, for which a GPU is cut."""
    job = cluster.submit(OPENS_JOB, f"--gres={gres}")
    reconcile_until(cluster, job)
    return holder(cluster, job)


def allocated(cluster: ManagedCluster, gres: str) -> Holder:
    said = cluster.run("salloc", "--no-shell", f"--gres={gres}", user="alice").stderr
    return holder(cluster, int(said.split("Granted job allocation ")[1].split()[0]))


def holder(cluster: ManagedCluster, job: int) -> Holder:
    listed = published(cluster)
    indexes = demand.gpu_indexes(cluster.job(job)["GRES"])
    return Holder(job, frozenset(file for index in indexes for file in listed[index].files))


def ask(cluster: ManagedCluster, prefix: str, words: Iterable[str]) -> dict[str, str]:
    """What a process that waits since its beginning may open now."""
    number = int(cluster.sh(f"ls {prefix}.answer.* 2>/dev/null | wc -l")) + 1
    answer_file = f"{prefix}.answer.{number}"
    cluster.sh(f"echo {' '.join(words)} > {prefix}.q; mv {prefix}.q {prefix}.ask.{number}")
    text = cluster.wait_for(
        lambda: cluster.run("cat", answer_file, check=False).stdout, 20, f"an answer at {prefix}"
    )
    answer: dict[str, str] = json.loads(text)
    return answer


def ask_new_step(cluster: ManagedCluster, job: Holder, words: Iterable[str]) -> dict[str, str]:
    """What a step that the job launches now may open."""
    argv = ("srun", f"--jobid={job.job}", "--overlap", PYTHON, str(OPENS), *words)
    answer: dict[str, str] = json.loads(cluster.run(*argv, user="alice").stdout)
    return answer


def allowed(answer: Mapping[str, str]) -> set[str]:
    """What was opened. EPERM is a control group's word: EACCES would be the file's mode."""
    assert set(answer.values()) <= {"", "EPERM"}, answer
    return {file for file, error in answer.items() if not error}


def begin_under_v2(cluster: ManagedCluster, job: Holder) -> None:
    """Two processes that have the job's slot under cgroup v2, one not knowing the guard."""
    listed = published(cluster)
    own = next(i for i, slot in enumerate(listed) if job.own == set(slot.files))
    for name, option in (("guarded", ""), ("unguarded", "--without-guard")):
        run = os.environ["SLURM_MIG_RUN"]
        command = (
            f"python -m tests.testbed.device_program {PUBLISHED} {own} /tmp/jobs/{name} {option}"
        )
        cluster.sh(
            f"SLURM_MIG_RUN={shlex.quote(run)} setsid -f {command} "
            f">/tmp/jobs/{name}.log 2>&1 </dev/null",
            node=NODE,
        )
        log = f"/tmp/jobs/{name}.log"
        cluster.wait_for(lambda log=log: "begun" in cluster.read(log), 20, log)  # type: ignore[misc]


def test_a_process_as_old_as_its_job_opens_the_jobs_own(crowd: Crowd) -> None:
    """GPUs and instances made after it are denied: a whole GPU, a 3g.20gb."""
    wanted = gates(crowd.cluster, NODE)
    for name, job in crowd.jobs.items():
        if name not in crowd.silent:
            found = allowed(ask(crowd.cluster, job.prefix, wanted))
            assert found == job.own & wanted, name
            assert found or name == "without"


@pytest.mark.parametrize("name", ["small", "beside", "salloc", "without", "whole", "new"])
def test_a_step_launched_now_opens_its_jobs_own(crowd: Crowd, name: str) -> None:
    job, wanted = crowd.jobs[name], gates(crowd.cluster, NODE)
    assert allowed(ask_new_step(crowd.cluster, job, wanted)) == job.own & wanted


def test_the_same_under_cgroup_v2(crowd: Crowd) -> None:
    """A program of the shape that Slurm makes there, over what we published when it began."""
    small, new = crowd.jobs["small"], crowd.jobs["new"]
    listed = {file for slot in crowd.at_first for file in slot.files}
    wanted = gates(crowd.cluster, NODE) | listed
    found = allowed(ask(crowd.cluster, "/tmp/jobs/guarded", wanted))
    assert found == small.own, "neighbours, fillers, what was made later"
    assert small.own <= wanted

    found = allowed(ask(crowd.cluster, "/tmp/jobs/unguarded", wanted))
    guarded = {f for slot in crowd.at_first if slot.type == "guard" for f in slot.files}
    assert found == small.own | guarded, "without the guard all that was made later is open"
    assert new.own & guarded
    assert crowd.jobs["whole"].own <= guarded


def test_the_right_to_change_mig_is_nobodys(crowd: Crowd) -> None:
    cluster = crowd.cluster
    slot_map = cluster.read("/run/slurm-mig/slots", NODE).replace(",", " ").split()
    assert not {*RIGHTS} & {*slot_map, *(f for slot in published(cluster) for f in slot.files)}
    ways = [f"{RIGHTS[0]}", *(f"{file}+{how}" for file in RIGHTS for how in ("w", "mknod"))]
    for name in ("small", "new"):
        answer = ask(cluster, crowd.jobs[name].prefix, ways)
        assert all(answer.values()), answer


def test_another_name_for_a_device_is_no_way_in(crowd: Crowd) -> None:
    """Device numbers are denied, not names."""
    gate = next(iter(crowd.jobs["new"].own - {"/dev/nvidia0"}))
    crowd.cluster.run("cp", "-a", gate, "/dev/copy", node=NODE)
    answer = ask(crowd.cluster, crowd.jobs["small"].prefix, ["/dev/copy"])
    assert answer == {"/dev/copy": "EPERM"}


def test_what_is_withheld_is_nobodys(crowd: Crowd) -> None:
    """Instances that are there but published as fillers: for jobs begun before and after."""
    cluster = crowd.cluster
    wants = cluster.submit("true", "--gres=gpu:7g.40gb:1")
    offered = {file for slot in published(cluster) if slot.type == "1g.5gb" for file in slot.files}
    done = cluster.slurm_mig("reconcile")
    still = {file for slot in published(cluster) if slot.type == "1g.5gb" for file in slot.files}
    withheld = (offered - still) & gates(cluster, NODE)
    there = {f"{CAPS}{i['minor']}" for _, i in cluster.instances(NODE)}
    assert withheld, done.stdout
    assert withheld <= there
    later = running(cluster, "gpu:l40s:1")
    assert not allowed(ask(cluster, later.prefix, withheld))
    assert not allowed(ask_new_step(cluster, later, withheld))
    for name in ("small", "new"):
        assert not allowed(ask(cluster, crowd.jobs[name].prefix, withheld))
        assert not allowed(ask_new_step(cluster, crowd.jobs[name], withheld))
    cluster.run("scancel", str(wants))


FORGET = "find /dev/nvidia-caps -type c ! -name nvidia-cap1 ! -name nvidia-cap2 -delete"
"""What a reload of the driver leaves: instances' nodes come back when somebody asks for them."""


@pytest.fixture
def alone(crowd: Crowd) -> ManagedCluster:
    """The node without a job. The last tests of the module."""
    cluster = crowd.cluster
    no_jobs(cluster)
    return cluster


def missing(cluster: ManagedCluster) -> list[str]:
    there = cluster.sh("ls -d /dev/nvidia* /dev/nvidia-caps/*", node=NODE).split()
    return [file for slot in published(cluster) for file in slot.files if file not in there]


def test_slurmd_comes_up_after_the_driver_took_its_device_nodes(alone: ManagedCluster) -> None:
    alone.sh(FORGET, node=NODE)
    assert missing(alone)
    made = served(alone, "gpu:2g.10gb:1")
    assert not missing(alone)
    assert allowed(ask(alone, made.prefix, gates(alone, NODE))) == made.own & gates(alone, NODE)


def test_all_files_are_there_before_gres_conf_names_them(alone: ManagedCluster) -> None:
    """Nothing of ours runs any more after the files were written; somebody restarts slurmd."""
    wants = alone.submit(OPENS_JOB, "--gres=gpu:7g.40gb:1")
    alone.sh(FORGET, node=NODE)
    died = alone.run("python", "-m", "tests.testbed.die_at", "files.write", check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    assert "7g.40gb" in [slot.type for slot in published(alone)]
    assert not missing(alone)
    alone.restart_daemon("slurmd", NODE)
    alone.slurm_mig("reconcile")
    alone.wait_job(wants, "RUNNING")


def test_slurmd_comes_up_after_a_crash_and_a_reload_of_the_driver(alone: ManagedCluster) -> None:
    """Between write and register everything of the node went: slurmd, and the files it needs."""
    wants = alone.submit(OPENS_JOB, "--gres=gpu:4g.20gb:1")
    died = alone.run("python", "-m", "tests.testbed.die_at", "files.write", check=False)
    assert died.returncode == -9, died.stdout + died.stderr
    alone.kill_daemon("slurmd", NODE, "KILL")
    alone.sh(FORGET, node=NODE)
    alone.slurm_mig("reconcile")
    alone.wait_job(wants, "RUNNING")
    assert not missing(alone)
