"""The default remote command for real: ssh between the hosts' namespaces, with a key that may do
one thing. As docs/many-nodes.md says it, step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.testbed.cluster import A100, NodeSpec
from tests.testbed.product import CONFIGURATION, CUDA_JOB, ManagedCluster

NODES = tuple(NodeSpec(f"a100-{n}", (A100,), features=f"n{n}") for n in (1, 2, 3))
SSH_KEYS = "/etc/slurm/ssh"
SSH = (
    f"ssh, -i, {SSH_KEYS}/key, -o, BatchMode=yes, -o, ConnectTimeout=3, "
    f"-o, UserKnownHostsFile={SSH_KEYS}/known_hosts, -o, IdentitiesOnly=yes, "
    "-o, ServerAliveInterval=5, root@%h, slurm-mig, node, serve"
)
OVER_SSH = CONFIGURATION.replace('[on-node, "%h", slurm-mig, node, serve]', f"[{SSH}]").replace(
    "remote:\n", "remote:\n  timeout_s: 20\n  observe_s: 4\n  rest_s: 6\n"
)
PATH = "/opt/slurm-mig/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FORCED = f'restrict,command="env PATH={PATH} slurm-mig node serve"'
SSHD = f"""\
mkdir -p /run/sshd {SSH_KEYS}
cat > {SSH_KEYS}/sshd_config-$(hostname) <<'END'
Port 22
HostKey {SSH_KEYS}/host_key
AuthorizedKeysFile {SSH_KEYS}/authorized_keys
PasswordAuthentication no
PermitRootLogin forced-commands-only
StrictModes no
UsePAM no
PidFile /run/sshd-HOST.pid
END
sed -i "s/HOST/$(hostname)/" {SSH_KEYS}/sshd_config-$(hostname)
/usr/sbin/sshd -f {SSH_KEYS}/sshd_config-$(hostname)
"""
BOUNDED = (
    "setpriv", "--no-new-privs", "--bounding-set=-all,+chown,+dac_override,+fowner",
    "--inh-caps=-all",
)  # fmt: skip
"""What slurm-mig.service leaves of root's power."""


@pytest.fixture(scope="module")
def site() -> Iterator[ManagedCluster]:
    with ManagedCluster(nodes=NODES, configuration=OVER_SSH) as cluster:
        cluster.sh(
            f"mkdir -p {SSH_KEYS}; chmod 700 {SSH_KEYS}; cd {SSH_KEYS}\n"
            "ssh-keygen -q -t ed25519 -N '' -f key; ssh-keygen -q -t ed25519 -N '' -f host_key\n"
            f"printf '%s %s\\n' '{FORCED}' \"$(cat key.pub)\" > authorized_keys\n"
            "for n in 1 2 3; do echo a100-$n $(cut -d' ' -f1,2 host_key.pub); done > known_hosts\n"
        )
        for node in NODES:
            cluster.sh(SSHD, node=node.name)
        cluster.enrol()
        yield cluster


def ssh(site: ManagedCluster, node: str, *words: str, stdin: str = "") -> tuple[int, str]:
    done = site.run(
        "ssh", "-i", f"{SSH_KEYS}/key", "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={SSH_KEYS}/known_hosts", f"root@{node}", *words,
        stdin=stdin, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def serve(site: ManagedCluster, number: int, profile: str) -> None:
    wants = site.submit("true", f"--gres=gpu:{profile}:1", f"--constraint=n{number}")
    site.slurm_mig("reconcile")
    site.wait_job(wants, "COMPLETED")


def test_a_reshape_over_ssh_while_a_job_runs(site: ManagedCluster) -> None:
    running = site.submit(CUDA_JOB, "--gres=gpu:1g.5gb:1", "--constraint=n1")
    site.wait_for(lambda: site.reports(running, "first"), 20, f"job {running} to compute")
    serve(site, 1, "3g.20gb")
    site.run("touch", f"/tmp/jobs/{running}.stop")
    assert site.wait_job(running, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"


def test_with_what_the_unit_leaves_of_roots_power(site: ManagedCluster) -> None:
    wants = site.submit("true", "--gres=gpu:4g.20gb:1", "--constraint=n1")
    done = site.run(*BOUNDED, "slurm-mig", "reconcile", timeout=120)
    assert f"for job {wants}" in done.stdout
    site.wait_job(wants, "COMPLETED")


@pytest.mark.parametrize(
    "words", [("id",), ("cat", "/etc/shadow"), ("sh", "-c", "'touch /tmp/harm'"), ("-N",)]
)
def test_the_key_is_good_for_the_protocol_and_nothing_else(
    site: ManagedCluster, words: tuple[str, ...]
) -> None:
    """Whatever is asked for, the node's command answers, and it knows its verbs only."""
    code, said = ssh(site, "a100-1", *(w for w in words if w != "-N"), stdin='{"verb": "sh"}\n')
    assert code == 0, said
    answer = next(line for line in said.splitlines() if line.startswith("{"))
    assert "unknown request; known verbs: observe" in json.loads(answer)["error"]["message"]
    assert "uid=" not in said
    assert site.run("test", "-e", "/tmp/harm", check=False).returncode


def test_no_forwarding_and_no_terminal(site: ManagedCluster) -> None:
    for option, refused in (("-tt", "PTY allocation request failed"), ("-A", ""), ("-X", "")):
        done = site.run(
            "ssh", option, "-i", f"{SSH_KEYS}/key", "-o", "BatchMode=yes", "-o",
            f"UserKnownHostsFile={SSH_KEYS}/known_hosts", "root@a100-1", "tty; env",
            stdin='{"verb": "env"}\n', check=False,
        )  # fmt: skip
        assert "SSH_AUTH_SOCK" not in done.stdout
        assert refused in done.stderr
        assert refused or "unknown request" in done.stdout


def test_a_node_that_ssh_does_not_reach_is_left_out(site: ManagedCluster) -> None:
    """slurmctld still takes it for well; the others are served in the same cycle."""
    site.sh("kill $(cat /run/sshd-a100-3.pid)", node="a100-3")
    assert third(site)["condition"] == "away"
    assert "Connection refused" in third(site)["note"]
    serve(site, 2, "3g.20gb")
    # A host that swallows packets: no answer at all.
    site.sh("ip link set eth0 down", node="a100-3")
    serve(site, 1, "2g.10gb")
    # It has kept that cycle waiting: the next ones leave it alone for a while.
    assert "it has kept a cycle waiting once and is asked again in" in third(site)["note"]
    site.sh("ip link set eth0 up; ip route add default via 10.77.0.1 || true", node="a100-3")
    site.sh(SSHD, node="a100-3")
    site.wait_for(lambda: third(site)["condition"] == "usable", 30, "it to be asked again")
    site.slurm_mig("reconcile")
    assert not site.report()["silent"]


def third(site: ManagedCluster) -> dict[str, str]:
    return next(n for n in site.status()["nodes"] if n["name"] == "a100-3")


def test_a_host_that_is_not_who_it_was_is_not_spoken_to(site: ManagedCluster) -> None:
    site.sh(f"sed -i.kept '/^a100-3/d' {SSH_KEYS}/known_hosts")
    try:
        assert "Host key verification failed" in third(site)["note"]
    finally:
        site.sh(f"mv {SSH_KEYS}/known_hosts.kept {SSH_KEYS}/known_hosts")
