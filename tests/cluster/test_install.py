"""`slurm-mig install` on a running cluster: what it puts, what it finds missing, what it leaves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurm_mig.adapters.installed import HOOK_DIR
from slurm_mig.errors import Exit
from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import ManagedCluster

CONF = "/etc/slurm/slurm.conf"
TREES = "/etc /usr/libexec /var/lib/slurm-mig"
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


def tree(cluster: ManagedCluster) -> str:
    """Every file of the site's with its content."""
    return cluster.sh(f"find {TREES} -type f -o -type l | grep -v -e /mnt -e '\\.pyc$' | sort "
                      "| xargs sha256sum 2>/dev/null || true")  # fmt: skip


def test_joins_checks_and_leaves_as_it_was(site: ManagedCluster) -> None:
    before = tree(site)
    done = site.slurm_mig("install", check=False)
    assert done.returncode == Exit.REFUSED
    assert f"missing TaskProlog={HOOK_DIR}/task_prolog" in done.stdout
    assert "ok      JobSubmitPlugins=" in done.stdout
    assert site.read("/etc/slurm/job_submit.lua").startswith("-- slurm-mig's submit plugin")
    # The lines go in, Slurm reads them, and every one is found.
    conf = site.read(CONF)
    site.write("/etc/slurm/own_task", f"#!/bin/sh\n{HOOK_DIR}/task_prolog\n", "755")
    site.write(CONF, f"{conf}{LINES}TaskProlog=/etc/slurm/own_task\n")
    site.write("/etc/slurm/job_submit.lua", 'dofile("/etc/slurm/slurm-mig/job_submit.lua")\n'
               "return slurm.SUCCESS\n")  # fmt: skip
    site.restart_daemon("slurmctld")
    site.restart_daemon("slurmd", "a100-1")
    done = site.slurm_mig("install", check=False)
    assert done.returncode == Exit.OK, done.stdout
    assert "missing" not in done.stdout
    assert site.sh("readlink /etc/slurm/prolog.d/50-slurm-mig").strip() == f"{HOOK_DIR}/prolog"
    assert site.slurm_mig("install", "--check").returncode == Exit.OK
    site.wait_for(lambda: site.node("a100-1")["State"] == "IDLE", 30, "the node")
    site.enrol()
    job = site.submit("echo $CUDA_VISIBLE_DEVICES", "--gres=gpu:1")
    site.wait_job(job, "COMPLETED")
    assert site.output(job).startswith("MIG-")
    noted = ("cat", "/run/slurm-mig/ended")
    site.wait_for(lambda: site.run(*noted, node="a100-1", check=False).stdout, 20, "our epilog")
    site.slurm_mig("leave", "a100-1", "--wait", "20")
    site.write(CONF, conf)
    site.sh("rm /etc/slurm/own_task")
    site.slurm_mig("uninstall")
    after = {line for line in tree(site).splitlines() if "job_submit.lua" not in line}
    gone = {line for line in before.splitlines() if "job_submit.lua" not in line} - after
    new = {line.split()[1] for line in after - set(before.splitlines())}
    assert not gone
    # What enrolment remembers is not installation's.
    assert not [path for path in new if "libexec" in path or "systemd" in path or "prolog" in path]


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
    site.sh(f"rm {HOOK_DIR}/prolog")
