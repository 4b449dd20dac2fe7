"""`slurm-mig install` on a running cluster: what it puts, what it finds missing, what it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.adapters.installed import HOOK_DIR
from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster

CONF = "/etc/slurm/slurm.conf"
TREES = "/etc /usr/libexec /usr/local /var/lib/slurm-mig"
ENROLMENTS = ("/etc/slurm/slurm-mig", "/var/lib/slurm-mig")
"""What an enrolment wrote, and a way back from it needs, is not installation's."""
LINES = f"""\
Prolog=/etc/slurm/prolog.d/*
Epilog=/etc/slurm/own_epilog
Epilog={HOOK_DIR}/epilog
PrologSlurmctld={HOOK_DIR}/slurmctld_prolog
EpilogSlurmctld={HOOK_DIR}/slurmctld_epilog
"""


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    """A site with a directory of prologs and an epilog of its own, and our submit plugin."""
    with ManagedCluster(nodes=(NodeSpec("a100-1", (A100,)),)) as cluster:
        cluster.sh(
            f"mkdir -p /etc/slurm/prolog.d; mkdir -p {HOOK_DIR}; rm -r {HOOK_DIR}\n"
            "for f in prolog.d/10-own own_epilog; do printf '#!/bin/sh\\n' >/etc/slurm/$f; done\n"
            "chmod 755 /etc/slurm/prolog.d/10-own /etc/slurm/own_epilog\n"
            f"sed -i '/^TaskProlog=/d' {CONF}"
        )
        yield cluster


def tree(cluster: ManagedCluster) -> set[str]:
    """All there is: each folder, link and file with mode, owner and content."""
    listed = cluster.sh(f"find {TREES} -printf '%y %m %u %g %p %l\\n'; "
                        f"find {TREES} -type f -print0 | xargs -0 sha256sum")  # fmt: skip
    return set(listed.splitlines())


def wire(site: ManagedCluster, conf: str) -> None:
    """The lines go into slurm.conf, and Slurm reads them."""
    site.write("/etc/slurm/own_task", f"#!/bin/sh\n{HOOK_DIR}/task_prolog\n", "755")
    site.write(CONF, f"{conf}{LINES}TaskProlog=/etc/slurm/own_task\n")
    site.restart_daemon("slurmctld")
    site.restart_daemon("slurmd", "a100-1")


def unwire(site: ManagedCluster, conf: str) -> None:
    """The lines come out again."""
    site.write(CONF, conf)
    site.restart_daemon("slurmctld")
    site.restart_daemon("slurmd", "a100-1")
    site.sh("rm /etc/slurm/own_task")


def test_joins_checks_and_leaves_as_it_was(site: ManagedCluster) -> None:
    conf = site.read(CONF)
    plugin = site.read("/etc/slurm/job_submit.lua")
    before = tree(site)
    done = site.slurm_mig("install", check=False)
    assert done.returncode == Exit.REFUSED
    assert f"missing TaskProlog={HOOK_DIR}/task_prolog" in done.stdout
    assert "ok      JobSubmitPlugins=" in done.stdout
    assert done.stdout.endswith("and look again: `slurm-mig install --check`.\n")
    assert site.read("/etc/slurm/job_submit.lua") == plugin
    # The lines go in, Slurm reads them, and every one is found.
    wire(site, conf)
    site.write("/etc/slurm/job_submit.lua", 'dofile("/etc/slurm/slurm-mig/job_submit.lua")\n'
               "return slurm.SUCCESS\n")  # fmt: skip
    done = site.slurm_mig("install", check=False)
    assert done.returncode == Exit.OK, done.stdout
    assert "missing" not in done.stdout
    assert site.sh("readlink /etc/slurm/prolog.d/50-slurm-mig").strip() == f"{HOOK_DIR}/prolog"
    assert site.slurm_mig("install", "--check").returncode == Exit.OK
    # Slurm calls them: they stay until it does not.
    there = tree(site)
    done = site.slurm_mig("uninstall", check=False)
    assert done.returncode == Exit.REFUSED
    ours = (f"Epilog={HOOK_DIR}/epilog", f"PrologSlurmctld={HOOK_DIR}/slurmctld_prolog")
    for line in (*ours, "TaskProlog=/etc/slurm/own_task", "JobSubmitPlugins=lua"):
        assert line in done.stderr
    assert "Prolog=/etc/slurm/prolog.d/*" not in done.stderr
    assert tree(site) == there
    site.write("/etc/slurm/job_submit.lua", plugin)
    unwire(site, conf)
    done = site.slurm_mig("uninstall")
    assert f"removed {HOOK_DIR}/prolog\n" in done.stdout
    assert tree(site) == before
    assert site.slurm_mig("uninstall").stdout == ""


@pytest.mark.parametrize("command", ["reconcile", "status", "plan", "metrics", "report", "pause"])
def test_a_user_is_told_that_the_controllers_commands_are_roots(
    site: ManagedCluster, command: str
) -> None:
    """No node answers a user: `plan` would say that there is nothing to change."""
    done = site.run("slurm-mig", command, user="alice", check=False)
    said = f"slurm-mig: `slurm-mig {command}` needs root; nothing was changed\n"
    assert (done.returncode, done.stdout, done.stderr) == (Exit.REFUSED, "", said)


def test_a_slurmd_is_found_where_the_pid_file_is_another(site: ManagedCluster) -> None:
    """By its process; with a word that this could be had for less."""
    runs = f"a100-1: slurmd runs (process {site.pid('slurmd', 'a100-1')})"
    other = "SlurmdPidFile is /run/slurm/slurmd-a100-1.pid, and `node.pid_file` is /run/slurmd.pid"
    site.configure(CONFIGURATION.replace("/run/slurm/slurmd-%n.pid", "/run/slurmd.pid"))
    try:
        said = site.run("slurm-mig", "check", node="a100-1").stdout
        assert runs in said
        assert other in said
    finally:
        site.configure(CONFIGURATION.replace("slurmd-%n.pid", "slurmd-%h.pid"))
    said = site.run("slurm-mig", "check", node="a100-1").stdout
    assert runs in said
    assert "SlurmdPidFile" not in said
    site.configure(CONFIGURATION)


def test_around_enrolled_nodes_and_a_job(site: ManagedCluster) -> None:
    """The same with work in between: only what the enrolment itself remembers is left."""
    conf, before = site.read(CONF), tree(site)
    site.slurm_mig("install", check=False)
    wire(site, conf)
    site.slurm_mig("install")
    site.wait_for(lambda: site.node("a100-1")["State"] == "IDLE", 30, "the node")
    site.enrol()
    job = site.submit("prove own", "--gres=gpu:1")
    site.wait_job(job, "COMPLETED", "FAILED")
    assert len(site.reports(job, "own")) == 1, site.output(job)
    noted = ("cat", "/run/slurm-mig/ended")
    site.wait_for(lambda: site.run(*noted, node="a100-1", check=False).stdout, 20, "our epilog")
    site.slurm_mig("leave", "a100-1", "--wait", "20")
    unwire(site, conf)
    site.slurm_mig("uninstall")
    differing = {line.split()[4 if len(line.split()) > 2 else 1] for line in before ^ tree(site)}
    assert {path for path in differing if not path.startswith(ENROLMENTS)} == set()


def test_units_that_were_enabled_go_with_what_starts_them(site: ManagedCluster) -> None:
    """A slurmd that requires a unit that is gone would not start after the next boot."""
    before = tree(site)
    site.slurm_mig("install", "--role", "node", check=False)
    site.run(
        "/usr/bin/systemctl", "--root=/", "enable", "slurm-mig-restore", "slurm-mig-check.path"
    )
    links = "/etc/systemd/system/slurmd.service.requires/slurm-mig-restore.service"
    assert site.run("test", "-L", links).returncode == 0
    assert f"removed {links}\n" in site.slurm_mig("uninstall").stdout
    assert tree(site) == before


def test_a_file_of_the_sites_that_is_just_ours_stays_the_sites(site: ManagedCluster) -> None:
    source = "/opt/slurm-mig/src/scripts"
    site.sh(f"mkdir -p {HOOK_DIR}; cp {source}/prolog {HOOK_DIR}/prolog")
    before = tree(site)
    site.slurm_mig("install", "--role", "node", check=False)
    assert site.slurm_mig("uninstall").returncode == Exit.OK
    assert tree(site) == before
    site.sh(f"rm -r {HOOK_DIR}")


def test_what_a_person_changed_is_left(site: ManagedCluster) -> None:
    site.slurm_mig("install", "--role", "node", check=False)
    site.sh(f"echo '# mine' >>{HOOK_DIR}/prolog")
    done = site.slurm_mig("install", "--role", "node", check=False)
    assert done.returncode == Exit.CONFIG
    assert f"{HOOK_DIR}/prolog is there and is not as slurm-mig put it" in done.stderr
    done = site.slurm_mig("uninstall", check=False)
    assert done.returncode == Exit.REFUSED
    assert f"left    {HOOK_DIR}/prolog: changed by another hand" in done.stdout
    assert site.run("test", "-e", f"{HOOK_DIR}/epilog", check=False).returncode
    site.sh(f"rm -r {HOOK_DIR}")


def test_without_slurmctld_nothing_goes_unless_told(site: ManagedCluster) -> None:
    site.slurm_mig("install", "--role", "node", check=False)
    there = tree(site)
    site.kill_daemon("slurmctld")
    try:
        done = site.slurm_mig("uninstall", check=False)
        assert done.returncode == Exit.UNREACHABLE
        assert tree(site) == there
        assert f"removed {HOOK_DIR}/epilog" in site.slurm_mig("uninstall", "--force").stdout
    finally:
        site.start_daemon("slurmctld")
