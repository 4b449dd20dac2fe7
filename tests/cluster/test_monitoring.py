"""What a cycle leaves for others to read, on a running cluster: metrics and job map."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_mig.errors import Exit
from tests.testbed.browser import LIGHT, Browser
from tests.testbed.cluster import A100, L40S, NodeSpec
from tests.testbed.jobs import no_jobs
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

FILE = "/var/log/slurm/slurm-mig.prom"
REPORT = "/var/log/slurm/report.html"
JOBS = "/run/slurm-mig/jobs"
SETTINGS = CONFIGURATION.replace("node:\n", f"node:\n  job_map_dir: {JOBS}\n") + (
    f"monitoring:\n  metrics_file: {FILE}\n  report_file: {REPORT}\n  report_interval_s: 0\n"
)
NODE = "a100-1"


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    nodes = (
        NodeSpec(NODE, (A100, L40S), partitions=("main", "a100")),
        NodeSpec("a100-2", (A100,), partitions=("main", "a100")),
    )
    with ManagedCluster(nodes=nodes, hooks=True, configuration=SETTINGS) as cluster:
        cluster.enrol()
        yield cluster


def samples(text: str) -> dict[str, float]:
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def job_map(site: ManagedCluster) -> dict[str, str]:
    """What dcgm-exporter would read: job by GPU and GPU instance."""
    found = site.sh(f"cd {JOBS}; for f in *; do echo $f $(cat $f); done", node=NODE)
    return dict(line.split() for line in found.splitlines() if not line.startswith("*"))


def start(site: ManagedCluster, gres: str) -> int:
    job = site.submit(CUDA_JOB, f"--gres=gpu:{gres}:1", "-w", NODE)
    site.wait_for(lambda: site.reports(job, "first"), 30, f"job {job} to compute")
    return job


def stop(site: ManagedCluster, *jobs: int) -> None:
    for job in jobs:
        site.run("touch", f"/tmp/jobs/{job}.stop")
    for job in jobs:
        site.wait_job(job, "COMPLETED")


def test_a_reshape_in_the_metrics_and_in_the_job_map(site: ManagedCluster) -> None:
    small, whole = start(site, "1g.5gb"), start(site, "l40s")
    (gi,) = {p["gi"] for p in site.sim(NODE)["processes"] if p["gpu"] == 0}
    assert job_map(site) == {f"0.{gi}": str(small), "1": str(whole)}
    large = site.submit(CUDA_JOB, "--gres=gpu:3g.20gb:1", "--exclude=a100-2")
    site.slurm_mig("reconcile")
    text = site.read(FILE)
    done = site.run("promtool", "check", "metrics", stdin=text, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = samples(text)
    count = f'slurm_mig_instances{{node="{NODE}",profile="%s",state="%s"}}'
    assert found[count % ("1g.5gb", "allocated")] == 1
    assert found[count % ("3g.20gb", "free")] == 1
    assert found[count % ("l40s", "allocated")] == 1
    assert found[f'slurm_mig_reshapes_total{{node="{NODE}",result="released"}}'] == 1
    for step in ("fence", "reshape", "write", "register", "release"):
        assert found[f'slurm_mig_step_seconds_count{{step="{step}"}}'] == 1
    assert 0 < found["slurm_mig_fence_seconds_sum"] < 30
    assert found["slurm_mig_last_plan_seconds"] > 0
    # The instance that was made has a name in the job map; the job's own is unchanged.
    site.wait_for(lambda: site.reports(large, "first"), 30, "the job that waited")
    mapped = job_map(site)
    assert sorted(mapped.values()) == sorted(map(str, (small, whole, large)))
    assert mapped[f"0.{gi}"] == str(small)
    stop(site, small, whole, large)
    site.wait_for(lambda: job_map(site) == {}, 20, "the epilogs")


def test_counters_survive_and_gauges_follow(site: ManagedCluster) -> None:
    before = samples(site.read(FILE))
    why = 'replace <b>"fan"</b>'
    site.run("scontrol", "update", "NodeName=a100-2", "State=DRAIN", f"Reason={why}")
    job = site.submit("true", "--gres=gpu:7g.40gb:1", f"--exclude={NODE}")
    site.slurm_mig("reconcile")
    after = samples(site.read(FILE))
    assert after['slurm_mig_node_condition{condition="admin",node="a100-2"}'] == 1
    assert after['slurm_mig_unmet_instances{profile="7g.40gb"}'] == 1
    assert after['slurm_mig_refused_jobs{reason="drained"}'] == 1
    cycles = 'slurm_mig_cycles_total{result="done"}'
    assert after[cycles] == before[cycles] + 1
    reshapes = f'slurm_mig_reshapes_total{{node="{NODE}",result="released"}}'
    assert after[reshapes] == before[reshapes]
    # A cycle that an error stops is counted, and shown by the next.
    site.sh("sed -i s/Type=guard/Type=mine/ /etc/slurm/slurm-mig/gres.conf")
    assert site.slurm_mig("reconcile", check=False).returncode == Exit.CONFIG
    site.slurm_mig("rewrite")
    shown = site.slurm_mig("metrics").stdout
    assert samples(shown)['slurm_mig_cycles_total{result="config"}'] == 1
    assert set(re.findall(r"^# TYPE (\S+)", shown, re.M)) == set(
        re.findall(r"^# TYPE (\S+)", site.read(FILE), re.M)
    )
    site.run("scancel", str(job))
    site.run("scontrol", "update", "NodeName=a100-2", "State=RESUME")


def test_the_report_of_a_running_cluster(
    site: ManagedCluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    small, whole = start(site, "1g.5gb"), start(site, "l40s")
    large = site.submit(CUDA_JOB, "--gres=gpu:2g.10gb:1", "--exclude=a100-2", user="bob")
    site.slurm_mig("reconcile")
    site.wait_for(lambda: site.reports(large, "first"), 30, "the job that waited")
    folder = request.config.getoption("--screenshots")
    why = "a fan is loud" if folder else '<img src=x onerror="document.title=1"> fan'
    site.run("scontrol", "update", "NodeName=a100-2", "State=DRAIN", f"Reason={why}")
    waits = site.submit("true", "--gres=gpu:7g.40gb:1", user="bob")
    site.slurm_mig("reconcile")
    text = site.read(REPORT)
    browser = Browser(tmp_path)
    for width in (390, 1280):
        seen = browser.measure(text, width)
        assert seen["wide"] <= width
        assert (seen["scripts"], seen["images"], seen["requests"]) == (0, 0, 0)
        jobs = [f"job {job}" for job in (small, whole, large)]
        purpose = f"for job {large} (2g.10gb)"
        for words in (*jobs, "alice", "bob", why, "1 lacking", purpose, "drained by an"):
            assert words in seen["text"], words
        states = [box["state"] for box in seen["boxes"]]
        assert states.count("allocated") == 3
        if folder:
            height = min(seen["height"], 1500)
            shot = Path(folder) / f"report-{width}.png"
            browser.screenshot(text, shot, width, height, LIGHT)
    shown = site.slurm_mig("report", "--hours", "1").stdout
    assert f"job {waits}" in shown or f">{waits}<" in shown
    assert "<script" not in shown
    site.slurm_mig("report", "--output", "/tmp/jobs/r.html")
    assert site.read("/tmp/jobs/r.html").startswith("<!DOCTYPE html>")


EVIL = (
    "x\x1b[2J\u202e'\"; touch /tmp/harm #$(touch /tmp/harm)`touch /tmp/harm`"
    "<script>alert(1)</script>"
)
SECRET = "hunter2hunter2"
EVERYWHERE = "/var/lib/slurm-mig /run/slurm-mig /etc/slurm/slurm-mig"


def test_texts_of_users_do_no_harm_and_their_secrets_stay_theirs(site: ManagedCluster) -> None:
    """A job's name, comment and environment, a node's comment and reason: through a whole cycle,
    its hooks and everything that is shown or kept."""
    no_jobs(site)
    node = ("scontrol", "update", "NodeName=a100-2")
    site.run(*node, f"Comment={EVIL}")
    site.run(*node, "State=DRAIN", f"Reason={EVIL}")
    job = site.submit(
        "true", "--gres=gpu:4g.20gb:1", f"--exclude={NODE}", f"--job-name={EVIL}",
        f"--comment={EVIL}", f"--export=ALL,TOKEN={SECRET},EVIL={EVIL}",
    )  # fmt: skip
    said = [site.slurm_mig("reconcile").stdout, site.slurm_mig("status").stdout]
    site.run(*node, "State=RESUME", "Comment=")
    for words in (("plan",), ("reconcile",), ("status",), ("history",), ("report",), ("metrics",)):
        done = site.slurm_mig(*words)
        said += [done.stdout, done.stderr]
    site.wait_job(job, "COMPLETED")
    said += [site.read(FILE), site.read(REPORT)]
    assert "<script" not in site.read(REPORT)
    assert "touch /tmp/harm" in said[1], "the reason is shown, as text"
    for text in said:
        assert not {"\x1b", "\u202e"} & set(text)
        assert SECRET not in text
    for host in (None, NODE, "a100-2"):
        assert site.run("test", "-e", "/tmp/harm", node=host, check=False).returncode
        assert not site.sh(f"grep -rl {SECRET} {EVERYWHERE} || true", node=host)
