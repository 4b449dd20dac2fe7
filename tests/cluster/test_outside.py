"""A node shared by Slurm and others: what is theirs is never offered, touched nor opened.

`--reshapes N` makes the random run long, `--seed S` another one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.cluster.test_isolation import OPENS_JOB, ask, ask_new_step
from tests.cluster.test_isolation import holder as holder_of
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.jobs import no_jobs
from tests.testbed.product import CONFIGURATION, ManagedCluster
from tests.testbed.watch import gates

NODE = "mixed"
GROUPS = f"""\
groups:
- nodes: {NODE}
  outside:
  - {{owner: containers, gpus: [0], instances: {{1g.5gb: 2}}}}
  - {{owner: kubernetes, gpus: ["00000000:0a:00.0"]}}
"""
CAPS = "/dev/nvidia-caps/nvidia-cap"
PROFILES = ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb")


@dataclass
class Shared:
    """Two A100 and an L40S. Two 1g.5gb of the first are containers', the second is Kubernetes's;
    a program computes on one of each."""

    cluster: ManagedCluster
    before: dict[tuple[int, int], Any]
    pids: tuple[int, ...]
    refused: CompletedProcess[str]
    """An enrolment with a claim on what is not there."""

    def outside(self) -> dict[tuple[int, int], Any]:
        """Their instances as the simulator has them: place, ids, UUID and generation."""
        return {
            (gpu, i["start"]): i
            for gpu, i in self.cluster.instances(NODE)
            if gpu == 1 or (gpu, i["start"]) in self.theirs
        }

    theirs = frozenset({(0, 5), (0, 6)})

    def alive(self) -> bool:
        running = {p["pid"] for p in self.cluster.sim(NODE)["processes"]}
        return set(self.pids) <= running

    def devices(self) -> dict[tuple[int, int], tuple[str, set[str]]]:
        """UUID and capability files of each of their instances."""
        return {
            place: (
                i["compute_instances"][0]["uuid"],
                {f"{CAPS}{i['minor']}", f"{CAPS}{i['compute_instances'][0]['minor']}"},
            )
            for place, i in self.outside().items()
        }


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    spec = NodeSpec(NODE, (A100, A100, L40S))
    with ManagedCluster(nodes=(spec,), configuration=CONFIGURATION) as cluster:
        groups = GROUPS.replace("00000000:0a:00.0", pci(cluster, 1))
        cluster.configure(CONFIGURATION + groups.replace("1g.5gb: 2", "7g.40gb: 1"))
        refused = cluster.slurm_mig("enrol", NODE, check=False)
        cluster.configure(CONFIGURATION + groups)
        cluster.enrol()
        made = Shared(cluster, {}, (), refused)
        made.before = made.outside()
        assert len(made.before) == 9, made.before
        made.pids = tuple(
            computing(cluster, made.devices()[place][0]) for place in ((0, 5), (1, 0))
        )
        yield made


def pci(cluster: ManagedCluster, index: int) -> str:
    shown = json.loads(cluster.run("slurm-mig", "inventory", "--json", node=NODE).stdout)
    return str(shown["gpus"][index]["pci"])


def computing(cluster: ManagedCluster, uuid: str) -> int:
    """A program of somebody who is no Slurm job, on the instance."""
    cluster.sh(
        f"setsid -f env CUDA_VISIBLE_DEVICES={uuid} fake-cuda --report /tmp/jobs/{uuid} "
        ">/dev/null 2>&1 </dev/null",
        node=NODE,
    )
    text = cluster.wait_for(
        lambda: cluster.run("cat", f"/tmp/jobs/{uuid}", check=False).stdout, 10, "fake-cuda"
    )
    return int(json.loads(text)["pid"])


def gpu_of(status: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = status["nodes"][0]["gpus"][index]
    return found


def test_slurm_is_offered_the_rest(shared: Shared) -> None:
    shown = shared.cluster.node(NODE)["Gres"]
    words = {w.split(":")[1]: int(w.split(":")[2].split("(")[0]) for w in shown.split(",")}
    assert {t: n for t, n in words.items() if n} == {"1g.5gb": 5, "l40s": 1, "off": 9, "guard": 1}
    named = shared.cluster.read("/etc/slurm/slurm-mig/gres.conf")
    guard = next(line for line in named.splitlines() if "Type=guard" in line)
    assert "/dev/nvidia1" in guard
    status = shared.cluster.status()
    assert gpu_of(status, 1)["outside"] == "kubernetes"
    owners = [i["owner"] for i in gpu_of(status, 0)["instances"]]
    assert owners == ["free"] * 5 + ["containers"] * 2
    text = shared.cluster.slurm_mig("status").stdout
    assert text.count("containers") == 2
    assert text.count("kubernetes") == 7
    text = shared.cluster.slurm_mig("inventory", "--node", NODE).stdout
    assert "  1g.5gb@5 is containers's, not Slurm's\n" in text
    assert "  all of it is kubernetes's, not Slurm's\n" in text


def test_a_job_for_what_only_they_could_give_is_refused(shared: Shared) -> None:
    """No record of the catalog has a 7g.40gb: it could never run here."""
    done = shared.cluster.run(
        "sbatch", "--gres=gpu:7g.40gb:1", "--wrap=true", user="alice", check=False
    )
    assert done.returncode
    assert "7g.40gb" in done.stderr


def test_no_job_opens_theirs(shared: Shared) -> None:
    cluster = shared.cluster
    jobs = [cluster.submit(OPENS_JOB, f"--gres={g}") for g in ("gpu:1g.5gb:1", "gpu:l40s:1")]
    for job in jobs:
        cluster.wait_job(job, "RUNNING")
    wanted = gates(cluster, NODE) - {"/dev/nvidia0"}
    for job in jobs:
        mine = holder_of(cluster, job)
        for answer in (ask(cluster, mine.prefix, wanted), ask_new_step(cluster, mine, wanted)):
            opened = {file for file, error in answer.items() if not error}
            assert opened == mine.own & wanted
    cluster.run("scancel", *map(str, jobs))


def test_random_reshapes_never_touch_theirs(shared: Shared, request: pytest.FixtureRequest) -> None:
    cluster = shared.cluster
    count, seed = request.config.getoption("--reshapes"), request.config.getoption("--seed")
    dice = random.Random(seed)
    first = len(cluster.history())
    submitted, profile = 0, ""
    while (done := len(cluster.history()) - first) < count:
        profile = dice.choice([p for p in PROFILES if p != profile])
        script = f"fake-cuda --seconds {dice.choice((0.1, 0.1, 3))}"
        cluster.submit(script, f"--gres=gpu:{profile}:1")
        submitted += 1
        cluster.slurm_mig("reconcile")
        assert shared.outside() == shared.before
        assert shared.alive()
        assert submitted < 20 * count + 60, "reshapes do not come about"
    no_jobs(cluster)
    print(f"seed {seed}: {done} reshapes beside {len(shared.before)} instances of others")


def test_apply_and_mode_name_the_owner(shared: Shared) -> None:
    cluster = shared.cluster
    for words, said in (
        (("apply", "--node", NODE, "gpu0=7g.40gb"), "1g.5gb@5 of GPU 0 is held by containers"),
        (("apply", "--node", NODE, "all=1g.5gb*7"), "GPU 1 is kubernetes's, not Slurm's"),
        (("mode", "--node", NODE, "off", "1"), "GPU 1 is kubernetes's, not Slurm's"),
    ):
        done = cluster.slurm_mig(*words, check=False)
        assert done.returncode in (1, 5), done.stdout + done.stderr
        assert said in done.stderr
    assert shared.outside() == shared.before
    cluster.slurm_mig("apply", "--node", NODE, "gpu0=3g.20gb@0,1g.5gb*2")
    cluster.slurm_mig("assert", "--node", NODE, "gpu0=3g.20gb@0,1g.5gb*2")
    assert shared.outside() == shared.before
    assert shared.alive()


def test_their_owner_may_cut_their_gpu_as_he_likes(shared: Shared) -> None:
    """No drift: what is on a GPU that is not Slurm's is none of slurm-mig's business."""
    cluster = shared.cluster
    cluster.run("kill", str(shared.pids[1]))
    cluster.wait_for(lambda: not shared.alive(), 10, "the program to end")
    cluster.run("python", "-c", RECUT, node=NODE)
    job = cluster.submit("true", "--gres=gpu:2g.10gb:1")
    cluster.slurm_mig("reconcile")
    cluster.wait_job(job, "COMPLETED")


RECUT = """\
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.core.model import Placement
gpus = NvmlGpus("/dev/nvidia-caps")
for instance in gpus.gpu(1).instances:
    gpus.destroy(1, instance.gi)
gpus.create(1, Placement(0, 4, "3g.20gb"))
"""

DESTROY = """\
from slurm_mig.adapters.gpus import NvmlGpus
gpus = NvmlGpus("/dev/nvidia-caps")
(theirs,) = [i for i in gpus.gpu(0).instances if i.placement.start == 6]
gpus.destroy(0, theirs.gi)
"""


def test_an_instance_of_theirs_that_is_lost_is_named(shared: Shared) -> None:
    """And after a boot everything is back: Slurm's, theirs beside it, their GPU as last seen."""
    cluster = shared.cluster
    cluster.run("python", "-c", DESTROY, node=NODE)
    job = cluster.submit("true", "--gres=gpu:4g.20gb:1")
    said = cluster.slurm_mig("reconcile").stdout
    assert "GPU 0 1g.5gb@6 was containers's" in said
    cluster.kill_daemon("slurmd", NODE)
    cluster.run("nvml-sim", "reboot", node=NODE)
    restored = cluster.run("slurm-mig", "restore", node=NODE).stdout
    assert "GPU 0: restored" in restored
    cluster.start_daemon("slurmd", NODE)
    cluster.register(NODE)
    again = {place: i for place, i in shared.outside().items() if place[0] == 0}
    places = [(i["start"], i["profile"], i["gi"]) for i in again.values()]
    assert places == [(i["start"], i["profile"], i["gi"]) for place, i in shared.before.items()
                      if place[0] == 0]  # fmt: skip
    assert [i["profile"] for g, i in cluster.instances(NODE) if g == 1] == ["3g.20gb"]
    cluster.slurm_mig("reconcile")
    cluster.wait_job(job, "COMPLETED")


def test_a_claim_on_what_is_not_there_is_refused(shared: Shared) -> None:
    assert shared.refused.returncode == 3
    assert "containers should have 1 7g.40gb of GPU 0" in shared.refused.stderr
