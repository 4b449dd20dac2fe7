"""Hosts on which slurm-mig was never installed, for docs/install.md: no command of that name,
folders of their own where it is put (GPU nodes share /opt/slurm-mig), ssh between them, and a
systemd on each.

What is not theirs: pip takes what it installs from wheels of the root filesystem's own packages,
and slurmctld and slurmd are daemons of the testbed, which `systemctl restart` restarts as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.testbed.cluster import Cluster
from tests.testbed.product import CONFIGURATION, SOURCE
from tests.testbed.systemd import Systemd

PROFILE = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PIP_NO_INDEX=1 PIP_FIND_LINKS=/run/wheels PIP_DISABLE_PIP_VERSION_CHECK=1
export DEBIAN_FRONTEND=noninteractive
"""
"""What a shell on these hosts begins with."""

SITE = "\n".join(line for line in CONFIGURATION.splitlines() if "on-node" not in line).replace(
    "remote:\n", ""
)
"""What differs on the testbed from etc/slurm-mig.yaml: not how nodes are reached."""

_ONCE = f"""
mkdir /run/checkout /run/ssh
cd {SOURCE}
tar -c --exclude=./.git --exclude=./build --exclude='*.egg-info' . | tar -C /run/checkout -x
/opt/slurm-mig/venv/bin/python -m tests.testbed.wheels /run/wheels
cd /run/ssh
ssh-keygen -q -t ed25519 -N '' -f id_ed25519
ssh-keygen -q -t ed25519 -N '' -f host
cp id_ed25519.pub authorized_keys
for name; do echo "$name $(cat host.pub)"; done >known_hosts
"""

_HOST = r"""
# A folder of this host's own: links to all that was there. /run is not the same under systemd.
mount -t tmpfs -o mode=755 tmpfs /mnt
own() {
    mkdir "/mnt/$1"
    mount --bind "$2" "/mnt/$1"
    mount -t tmpfs -o mode=755 tmpfs "$2"
    /mnt/bin/ln -s "/mnt/$1"/* "$2"/
}
own bin /usr/bin
own local /usr/local/bin
own libexec /usr/libexec
rm -f /usr/bin/slurm-mig /usr/local/bin/slurm-mig /usr/libexec/slurm-mig
mkdir /mnt/prefix
mount --bind /opt/slurm-mig/venv /mnt/prefix
mkdir -p /run/prefix-$1/src /run/prefix-$1/venv
mount --bind /run/prefix-$1 /opt/slurm-mig
mount --bind /run/checkout /opt/slurm-mig/src
mount --bind /mnt/prefix /opt/slurm-mig/venv
mkdir -p /etc/tmpfiles.d
for folder in /etc/systemd/system /etc/tmpfiles.d /usr/local/share/man /root; do
    mount -t tmpfs -o mode=755 tmpfs $folder
done
mkdir -m 700 /root/.ssh
cp /run/ssh/* /root/.ssh/
chmod 600 /root/.ssh/*
cat >/root/.profile-of-sshd <<'END'
HostKey /root/.ssh/host
PasswordAuthentication no
UsePAM no
PidFile none
END
mkdir -p /run/sshd
/usr/sbin/sshd -f /root/.profile-of-sshd
cat >/usr/local/bin/systemctl <<'END'
#!/bin/sh
case $* in
    "restart slurmctld")
        pid=$(cat /run/slurm/slurmctld.pid)
        kill "$pid"
        while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
        exec setpriv --reuid=slurm --regid=slurm --init-groups slurmctld ;;
    "restart slurmd") exec restart-slurmd ;;
esac
exec nsenter -t "$(cat "/run/systemd-$(hostname).pid")" -m -p -C -- /usr/bin/systemctl "$@"
END
chmod 755 /usr/local/bin/systemctl
"""


@contextmanager
def fresh(cluster: Cluster) -> Iterator[None]:
    """Make the hosts of a running cluster such, as long as the context lasts."""
    names = [node.name for node in cluster.nodes]
    cluster.run("sh", "-ec", _ONCE, "sh", *names)
    cluster.write("/run/site.yaml", SITE + "\n")
    with ExitStack() as stack:
        for node in (None, *names):
            cluster.run("sh", "-ec", _HOST, "sh", "gpu" if node else "head", node=node)
            stack.enter_context(Systemd(cluster, node, units=None))
        yield
