"""The submit plugin in the running slurmctld: every way to ask for GPUs, and every refusal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.testbed.cluster import default_nodes
from tests.testbed.product import SOURCE, ManagedCluster

TABLE = "/etc/slurm/slurm-mig/submit.lua"
WAKE = "/run/slurm-mig/ctld/wake"
LOG = "/var/log/slurm/slurmctld.log"


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    """Three nodes: partitions main, a100 and a30."""
    with ManagedCluster(nodes=default_nodes()[:3]) as cluster:
        cluster.enrol()
        yield cluster


@contextmanager
def rules(cluster: ManagedCluster, *lines: str) -> Iterator[None]:
    """The plugin's table says this for a while; it is read once a second."""
    text = cluster.read(TABLE)
    changed = text
    for line in lines:
        key = line.partition(" = ")[0]
        changed = re.sub(rf"(?m)^  {key} = .*$", f"  {line},", changed)
    assert changed != text
    cluster.write(TABLE, changed)
    time.sleep(1.1)
    try:
        yield
    finally:
        cluster.write(TABLE, text)
        time.sleep(1.1)


def refused(cluster: ManagedCluster, *options: str) -> str:
    """What the user is told; the job must not be taken."""
    done = cluster.run("sbatch", *options, "--wrap=true", user="alice", check=False)
    assert done.returncode, f"{options} was taken: {done.stdout}"
    return done.stderr


def held(cluster: ManagedCluster, *options: str, script: str = "true") -> dict[str, str]:
    return cluster.job(cluster.submit(script, "--hold", *options))


@pytest.mark.parametrize(
    ("options", "field", "wanted"),
    [
        ("--gres=gpu", "TresPerNode", "gres/gpu:1g.5gb"),
        ("--gres=gpu:2", "TresPerNode", "gres/gpu:1g.5gb:2"),
        ("--gres=gpu=2", "TresPerNode", "gres/gpu:1g.5gb:2"),
        ("--gres=gpu::2", "TresPerNode", "gres/gpu:1g.5gb:2"),
        ("--gres=gres/gpu:2", "TresPerNode", "gres/gpu:1g.5gb:2"),
        ("--gres=gpu:3g.20gb", "TresPerNode", "gres/gpu:3g.20gb"),
        ("--gres=gpu:3g.20gb:1,gpu:1g.5gb:2", "TresPerNode",
         "gres/gpu:3g.20gb:1,gres/gpu:1g.5gb:2"),
        ("--gpus=2", "TresPerJob", "gres/gpu:1g.5gb:2"),
        ("-G 3g.20gb", "TresPerJob", "gres/gpu:3g.20gb"),
        ("--gpus-per-node=1 -p a30", "TresPerNode", "gres/gpu:1g.6gb:1"),
        ("--gpus-per-socket=1 --sockets-per-node=1", "TresPerSocket", "gres/gpu:1g.5gb:1"),
        ("--gpus-per-task=1 -n2", "TresPerTask", "gres/gpu:1g.5gb:1"),
        ("--tres-per-task=cpu=2,gres/gpu=1 -n2", "TresPerTask", "cpu=2,gres/gpu:1g.5gb:1"),
        ("--gpus=2 --cpus-per-gpu=2 --mem-per-gpu=100", "TresPerJob", "gres/gpu:1g.5gb:2"),
        ("--gres=gpu:1 -p main,a100", "TresPerNode", "gres/gpu:1g.5gb:1"),
        ("--gres=gpu:0", "TresPerNode", "gres/gpu:0"),
    ],
)  # fmt: skip
def test_untyped_requests_get_a_type(
    cluster: ManagedCluster, options: str, field: str, wanted: str
) -> None:
    assert held(cluster, *options.split())[field] == wanted


@pytest.mark.parametrize(
    ("options", "script", "devices"),
    [
        ("--gres=gpu", "prove first", 1),
        ("--gres=gpu:1", "prove first", 1),
        ("--gres=gpu:1g.5gb:2", "prove first", 2),
        ("--gpus=1", "prove first", 1),
        ("-G 1g.5gb:2", "prove first", 2),
        ("--gpus-per-node=1g.5gb:1", "prove first", 1),
        ("--gpus-per-socket=1 --sockets-per-node=1", "prove first", 1),
        ("--gpus-per-task=1 -n2", "srun prove first", 2),
        ("--gpus-per-task=1 -n2 --gpu-bind=single:1", "srun prove first", 2),
        ("--gres=gpu:1g.5gb:2 -n2 --gpu-bind=single:1", "srun prove first", 2),
        ("--tres-per-task=cpu=1,gres/gpu=1 -n2", "srun prove first", 2),
        ("--gpus=2 -N2", "srun prove first", 2),
        ("--gres=gpu:1 -N2", "srun prove first", 2),
        ("--gres=gpu:1g.5gb:1 --array=0-2", "prove first", 3),
        ("--gpus=2 --cpus-per-gpu=2 --mem-per-gpu=100", "prove first", 2),
    ],
)
def test_every_spelling_computes_on_its_own_and_on_no_other(
    cluster: ManagedCluster, options: str, script: str, devices: int
) -> None:
    job = cluster.submit(script, *options.split(), "-C", "a100")
    computed(cluster, job, *["1g.5gb"] * devices)


def computed(cluster: ManagedCluster, job: int, *profiles: str) -> None:
    """The job, or each task of the array, has ended well: on these devices, each another, and on
    no other."""
    cluster.wait_for(
        lambda: not cluster.run("squeue", "-h", "-j", str(job), check=False).stdout,
        60, f"the end of {job}",
    )  # fmt: skip
    said = cluster.run("scontrol", "show", "job", "-o", str(job)).stdout.splitlines()
    assert all("JobState=COMPLETED" in line for line in said), cluster.output(job)
    ids = [re.findall(r"^JobId=(\d+)", line)[0] for line in said]
    reports = [report for number in ids for report in cluster.reports(int(number), "first")]
    assert sorted(report["profile"] for report in reports) == sorted(profiles)
    assert len({report["uuid"] for report in reports}) == len(reports)
    cluster.sh("rm -f " + " ".join(f"/tmp/jobs/{number}.first*" for number in ids))


def test_mixed_types_compute_on_their_own(cluster: ManagedCluster) -> None:
    """Two types in one request, by each way that takes a list."""
    reshape = ("python", "-m", "tests.testbed.reshape_once", "a100-1", "0")
    cluster.run(*reshape, "3g.20gb@4", "2g.10gb@0")
    for option in ("--gres=gpu:3g.20gb:1,gpu:1g.5gb:2", "--gpus=3g.20gb:1,1g.5gb:2",
                   "--gpus-per-node=3g.20gb:1,1g.5gb:2"):  # fmt: skip
        job = cluster.submit("prove first", option, "-N1", "-p", "a100")
        computed(cluster, job, "3g.20gb", "1g.5gb", "1g.5gb")
    cluster.run(*reshape, *(f"1g.5gb@{start}" for start in range(7)))


def test_srun_and_salloc(cluster: ManagedCluster) -> None:
    for command in (("srun", "--gres=gpu:1"), ("salloc", "--gpus=1", "srun"),
                    ("srun", "--gpus-per-task=1", "-n2")):  # fmt: skip
        cluster.sh("rm -f /tmp/jobs/*.first*")
        cluster.run(*command, "-p", "a100", "prove", "first", user="alice")
        found = cluster.sh("cat /tmp/jobs/*.first").splitlines()
        assert len(found) == len(set(found)) == (2 if "-n2" in command else 1)
        assert all('"profile": "1g.5gb"' in line for line in found)
    done = cluster.run("srun", "--gres=gpu:off:1", "true", user="alice", check=False)
    assert "no device that a job may ask for" in done.stderr


def test_heterogeneous_jobs_part_by_part(cluster: ManagedCluster) -> None:
    done = cluster.run("sbatch", "--hold", "--parsable", "--gres=gpu:1", "-p", "a100", ":",
                       "-p", "a30", "--gpus=1", "--wrap=true", user="alice")  # fmt: skip
    shown = cluster.run("scontrol", "show", "job", done.stdout.strip()).stdout
    assert "TresPerNode=gres/gpu:1g.5gb:1" in shown
    assert "TresPerJob=gres/gpu:1g.6gb:1" in shown
    assert "guard" in refused(cluster, "--gres=gpu:1", ":", "--gres=gpu:guard:1")
    script = "#!/bin/sh\nsrun --het-group=0,1 prove first\n"
    done = cluster.run("sbatch", "--parsable", "--output=/tmp/jobs/%j.out", "--gres=gpu:1",
                       "-p", "a100", ":", "-p", "a30", "--gpus=1", user="alice",
                       stdin=script)  # fmt: skip
    job = int(done.stdout)
    cluster.wait_job(job, "COMPLETED", "FAILED", timeout=60)
    found = [*cluster.reports(job, "first"), *cluster.reports(job + 1, "first")]
    profiles = sorted(report["profile"] for report in found)
    assert profiles == ["1g.5gb", "1g.6gb"], cluster.output(job)


@pytest.mark.parametrize("option", ["--gres=gpu:", "--gpus=", "--gpus-per-node=",
                                    "--gpus-per-socket=", "--gpus-per-task="])  # fmt: skip
@pytest.mark.parametrize("kind", ["off", "off3", "guard", "none"])
def test_fillers_can_never_be_asked_for(cluster: ManagedCluster, option: str, kind: str) -> None:
    more = ["-n1"] if "task" in option else ["--sockets-per-node=1"] if "socket" in option else []
    said = refused(cluster, f"{option}{kind}:1", *more)
    assert f"gpu:{kind} is no device that a job may ask for" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gres=gpu:9g.90gb:1", "no GPU of partition main can ever be gpu:9g.90gb; possible: 1g."),
        ("--gres=gpu:2g.6gb:1 -p a100", "nearest: 2g.10gb"),
        ("--gres=gpu:1g.5gb:1 -p a30", "nearest: 1g.6gb"),
        ("--gres=gpu:5g.30gb:1 -p a100", "nearest: 7g.40gb"),
        ("--gres=gpu:9g.90gb:1 -p a100,a30", "partition a100,a30 can ever be"),
        ("--gres=gpu:1 -p a100,a30", "say which GPU you want"),
        ("--gpus=gpu:1", "can ever be gpu:gpu"),
        (f"--gres={','.join(['gpu:1g.5gb:1'] * 400)}", "too long"),
    ],
)
def test_what_no_gpu_can_be_is_refused_with_the_nearest(
    cluster: ManagedCluster, options: str, message: str
) -> None:
    assert message in refused(cluster, *options.split())


def test_modification_is_checked_like_submission(cluster: ManagedCluster) -> None:
    job = cluster.submit("true", "--hold", "--gres=gpu:1g.5gb:1", "-p", "a100")

    def update(*words: str) -> tuple[int, str]:
        done = cluster.run("scontrol", "update", f"JobId={job}", *words, user="alice", check=False)
        return done.returncode, done.stderr

    assert update("Gres=gpu:2")[0] == 0
    assert cluster.job(job)["TresPerNode"] == "gres/gpu:1g.5gb:2"
    assert update("TimeLimit=5")[0] == 0
    code, said = update("Gres=gpu:off:1")
    assert code
    assert "no device that a job may ask for" in said
    code, said = update("Partition=a30")
    assert code
    assert "no GPU of partition a30 can ever be gpu:1g.5gb" in said
    # 26.05.5 answers a change of partition with a left-over errno now and then, with and without a
    # plugin: only that we do not refuse it is looked at.
    assert "slurm-mig" not in update("Partition=a30", "Gres=gpu:1")[1]


def test_a_modified_job_computes_on_what_it_asks_for_now(cluster: ManagedCluster) -> None:
    job = cluster.submit("prove first", "--hold", "--gres=gpu:1g.5gb:1", "-p", "a100")
    for change in (("scontrol", "update", f"JobId={job}", "Gres=gpu:2"),
                   ("scontrol", "release", str(job))):  # fmt: skip
        cluster.run(*change, user="alice")
    computed(cluster, job, "1g.5gb", "1g.5gb")


def test_untyped_requests_refused_where_the_site_says_so(cluster: ManagedCluster) -> None:
    with rules(cluster, 'untyped = "refuse"'):
        said = refused(cluster, "--gpus=1", "-p", "a30")
        assert "say which GPU you want, for example --gres=gpu:1g.6gb:1" in said
        assert "4g.24gb" in said
    with rules(cluster, 'default_types = { ["main"] = "1g.5gb" }'):
        assert "partition a30 has 1g.6gb" in refused(cluster, "--gpus=1", "-p", "a30")


def test_whole_nodes_by_policy(cluster: ManagedCluster) -> None:
    assert held(cluster, "--exclusive", "--gres=gpu:1")["OverSubscribe"] == "NO"
    with rules(cluster, 'exclusive = "refuse"'):
        for options in (("--exclusive",), ("--exclusive", "--gres=gpu:1g.5gb:1")):
            assert "a whole node of partition main can't be had" in refused(cluster, *options)
        held(cluster, "--exclusive=user", "--gres=gpu:1g.5gb:1")
        job = cluster.submit("true", "--hold", "--gres=gpu:1g.5gb:1")
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5", user="alice")
    with rules(cluster, 'exclusive = "explicit"'):
        held(cluster, "--exclusive")


def test_long_names_as_configured(cluster: ManagedCluster) -> None:
    said = refused(cluster, "--gres=gpu:a100_1g.5gb:1")
    assert "can ever be gpu:a100_1g.5gb" in said
    with rules(cluster, 'long_names = { ["a100"] = "a100", ["nvidia_a30"] = "" }'):
        shown = held(cluster, "--gres=gpu:a100_3g.20gb:1")
        assert (shown["TresPerNode"], shown["Features"]) == ("gres/gpu:3g.20gb:1", "a100")
        shown = held(cluster, "--gpus=nvidia_a30_1g.6gb:1")
        assert shown["TresPerJob"] == "gres/gpu:1g.6gb:1"
        assert shown.get("Features", "(null)") == "(null)"
        shown = held(cluster, "--gres=gpu:a100_1g.5gb:1", "-C", "a100")
        assert shown["Features"] == "a100&a100"
        said = refused(cluster, "--gres=gpu:a100_1g.5gb:1", "-C", "a100|a30")
        assert "use the short name" in said
        assert "no device that a job may ask for" in refused(cluster, "--gres=gpu:off:1")


def woken(cluster: ManagedCluster) -> str:
    return cluster.sh(f"stat -c %y {WAKE} 2>/dev/null || true").strip()


def test_wakes_for_what_is_not_free_and_at_most_once_a_second(cluster: ManagedCluster) -> None:
    cluster.slurm_mig("reconcile")
    time.sleep(1.1)
    before = woken(cluster)
    held(cluster, "--gres=gpu:1g.5gb:1")
    held(cluster)
    assert woken(cluster) == before
    held(cluster, "--gres=gpu:3g.20gb:1")
    first = woken(cluster)
    assert first != before
    seen = set()
    start = time.monotonic()
    for _ in range(30):
        held(cluster, "--gres=gpu:3g.20gb:1")
        seen.add(woken(cluster))
    assert len(seen | {first}) <= 2 + int(time.monotonic() - start + 1)
    assert cluster.sh(f"stat -c %U {WAKE}").strip() == "slurm"
    time.sleep(1.1)
    before = woken(cluster)
    held(cluster, "--gres=gpu:1g.5gb:100")
    assert woken(cluster) != before


def test_a_fault_never_blocks_a_submission(cluster: ManagedCluster) -> None:
    text = cluster.read(TABLE)
    try:
        for broken in ("return nil + 1\n", "return {", "return 7\n", "return {}\n", "error({})\n"):
            cluster.write(TABLE, broken)
            time.sleep(1.1)
            assert held(cluster, "--gres=gpu:2")["TresPerNode"] == "gres/gpu:2"
        assert "slurm-mig: submit plugin" in cluster.read(LOG)
        cluster.sh(f"rm {TABLE}")
        time.sleep(1.1)
        assert held(cluster, "--gres=gpu:2")["TresPerNode"] == "gres/gpu:2"
    finally:
        cluster.write(TABLE, text)
    cluster.sh(f"rm -f {WAKE}; mkdir {WAKE}")
    time.sleep(1.1)
    try:
        shown = held(cluster, "--gres=gpu:50")
        assert shown["TresPerNode"] == "gres/gpu:1g.5gb:50"
    finally:
        cluster.sh(f"rmdir {WAKE}")


def test_from_a_sites_own_plugin(cluster: ManagedCluster) -> None:
    own = (
        f'dofile("{SOURCE}/etc/job_submit.lua")\n'
        "function slurm_job_submit(job_desc, parts, uid)\n"
        "  local rc = slurm_mig.submit(job_desc, parts)\n"
        "  if rc ~= slurm.SUCCESS then return rc end\n"
        '  job_desc.comment = "site"\n'
        "  return slurm.SUCCESS\nend\n"
        "function slurm_job_modify(job_desc, job_rec, parts, uid)\n"
        "  return slurm_mig.modify(job_desc, job_rec, parts)\nend\nreturn slurm.SUCCESS\n"
    )
    ours = cluster.read("/etc/slurm/job_submit.lua")
    cluster.write("/etc/slurm/job_submit.lua", own)
    try:
        shown = held(cluster, "--gres=gpu:1")
        assert (shown["TresPerNode"], shown["Comment"]) == ("gres/gpu:1g.5gb:1", "site")
        assert "no device" in refused(cluster, "--gres=gpu:off:1")
    finally:
        cluster.write("/etc/slurm/job_submit.lua", ours)


@pytest.mark.parametrize(
    "value",
    ["gpu:" + "9" * 300, "gpu:%s%n%d:1", "gpu:$(touch /tmp/x):1", "gpu:1g.5gb:1:1:1", "gpu:é:1",
     "gpu:`id`:1", "gpu:a\nb:1", "gpu:..:1", "gpu:" + "x" * 3000 + ":1", "gpu:-1", "gpu:^.*$:1",
     "gpu:1g.5gb:-1", "gpu:,gpu:", "gpu:[[:1", "gpu:]]..os.exit():1"],
)  # fmt: skip
def test_nonsense_is_refused_or_taken_and_harms_nobody(cluster: ManagedCluster, value: str) -> None:
    for option in ("--gres", "--gpus", "--gpus-per-node"):
        word = value if option == "--gres" else value.removeprefix("gpu:")
        cluster.run("sbatch", "--hold", f"{option}={word}", "--wrap=true", user="alice",
                    check=False, timeout=20)  # fmt: skip
    assert cluster.run("test", "-e", "/tmp/x", check=False).returncode
    assert held(cluster, "--gres=gpu:1")["TresPerNode"] == "gres/gpu:1g.5gb:1"


@pytest.mark.parametrize(
    "words",
    [
        ["-w", "$(touch /tmp/x)"], ["-w", "a[1-999999999]"], ["-w", "a[1-"], ["-w", "a" * 5000],
        ["-w", "a100-1,a100-1\na30-1"], ["-w", "%s%n"], ["-x", "[[[:"], ["-x", "a[0-99,1-99999]"],
        ["-p", ""], ["-p", ",,,"], ["-p", "main," * 500], ["-p", "%s`id`"], ["-C", "[a100*2&%s]"],
        ["-C", "x" * 5000], ["--extra", "]]..os.exit()"], ["--comment", "\n\n$(touch /tmp/x)"],
        ["-n", "0"], ["-n", "999999999"], ["-N", "0-99999"], ["--array=0-99999999"],
        ["--licenses", "gpu:off:1"], ["--reservation", "a\nb"],
    ],
    ids=repr,
)  # fmt: skip
def test_nonsense_beside_the_request_harms_nobody(
    cluster: ManagedCluster, words: list[str]
) -> None:
    cluster.run("sbatch", "--hold", "--gres=gpu:3g.20gb:1", *words, "--wrap=true", user="alice",
                check=False, timeout=20)  # fmt: skip
    assert cluster.run("test", "-e", "/tmp/x", check=False).returncode
    assert held(cluster, "--gres=gpu:1")["TresPerNode"] == "gres/gpu:1g.5gb:1"
    assert "no device" in refused(cluster, "--gres=gpu:off:1")
