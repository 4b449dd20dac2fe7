"""A systemd on a host of a cluster: first process of its own pid, mount and cgroup namespaces.

It has our units and journald, and of the host's own units nothing that could touch the host (no
udev, sysctl, mounts or generators). It shares its host's network, files, munge, wake file and
simulated driver; the processes of the cluster are not its own, unless `take_slurmd` has slurmd be
one, by Slurm's own unit.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any

from tests.testbed.cluster import Cluster
from tests.testbed.namespaces import ENVIRONMENT, group_name
from tests.testbed.product import SOURCE

UNITS = SOURCE / "etc" / "systemd"
ETC_UNITS = "/etc/systemd/system"

GROUPS = "/tmp/groups"
"""Where the control groups are that the cluster's daemons use; systemd has only version 2."""

_OUTER = """
echo $$ >"/run/systemd-$(hostname).outer"
mkdir -p /run/cgroup2
mount -t cgroup2 cgroup2 /run/cgroup2
mkdir "/run/cgroup2/$1"
echo $$ >"/run/cgroup2/$1/cgroup.procs"
exec unshare -Cmp --fork --kill-child --propagation private sh -ec "$2" systemd "$3" "$4"
"""

_INNER = f"""
umount /run/cgroup2
mkdir -p /tmp/shared /tmp/driver {GROUPS}
mount --bind /proc/driver /tmp/driver
mount -t proc proc /proc
mount --rbind /sys/fs/cgroup {GROUPS}
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --rbind /run /tmp/shared
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
# systemd gives its host the name that is written there.
hostname >/run/hostname
: >>/etc/hostname
mount --bind /run/hostname /etc/hostname
for folder in munge slurm-mig nvml-sim $2; do
    [ -d /tmp/shared/$folder ] || continue
    mkdir /run/$folder
    mount --bind /tmp/shared/$folder /run/$folder
done
if [ -e /run/nvml-sim/devices ]; then
    mount --bind /run/nvml-sim/devices /proc/devices
    mount --bind /tmp/driver /proc/driver
fi
mount -t tmpfs -o mode=755 tmpfs /usr/lib/systemd/system-generators
mkdir -p {ETC_UNITS} /run/systemd/system
for unit in /usr/lib/systemd/system/*.wants/*; do
    case $unit in
        */systemd-journald*) ;;
        *) ln -sf /dev/null "/run/systemd/system/${{unit##*/}}" ;;
    esac
done
if [ "$1" ]; then
    mount -t tmpfs -o mode=755 tmpfs {ETC_UNITS}
    cp "$1"/* {ETC_UNITS}
    ln -sf /usr/local/bin/slurm-mig /usr/bin/slurm-mig
fi
export container=slurm-mig-testbed
exec /usr/lib/systemd/systemd --system --log-target=console --unit=basic.target
"""


class Systemd:
    """A context manager; `run` and `ctl` work inside. `units` are put in place; None: the host's
    own /etc has what it has, and slurm-mig is where it was installed."""

    def __init__(
        self, cluster: Cluster, node: str | None = None, units: Path | None = UNITS
    ) -> None:
        self._cluster = cluster
        self._units = units
        self._name = node or "head"
        self._entered = ("on-node", node) if node else ()
        self._first: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Systemd:
        units = str(self._units or "")
        # slurmd's unit removes that folder, in which the head's daemons have their pid files.
        more = "" if self._entered else "slurm"
        words = [*self._entered, "sh", "-ec", _OUTER, "systemd", group_name(), _INNER, units, more]
        with open(self._log, "wb") as log:
            self._first = self._cluster.spaces.begin(words, log)
        try:
            self._cluster.wait_for(self._is_up, 30, "systemd to be up")
        except TimeoutError as error:
            self.__exit__(None, None, None)
            raise RuntimeError(self._log.read_text()) from error
        self._cluster.write(f"/run/systemd-{self._name}.pid", f"{self._pid}\n")
        return self

    @property
    def _log(self) -> Path:
        return Path(f"/tmp/systemd-{self._name}.log")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._first is not None
        if self._pid:
            self._cluster.run("kill", "-KILL", str(self._pid), check=False)
        else:
            self._first.terminate()
        self._first.wait(20)

    def _is_up(self) -> bool:
        outer = f"/run/systemd-{self._name}.outer"
        children = f"pgrep -P $(cat {outer}) -f '^/usr/lib/systemd/systemd --system'"
        found = self._cluster.sh(f"[ ! -e {outer} ] || {children} || true").split()
        self._pid = int(found[0]) if found else 0
        return bool(found) and self.ctl("is-active", "basic.target", check=False).returncode == 0

    def run(self, *argv: str, **options: Any) -> CompletedProcess[str]:
        inside = ("nsenter", "-t", str(self._pid), "-m", "-n", "-u", "-p", "-C", "--")
        return self._cluster.run(*inside, *argv,
                                 **options)  # fmt: skip

    def ctl(self, *words: str, **options: Any) -> CompletedProcess[str]:
        return self.run("/usr/bin/systemctl", "--no-pager", *words, **options)

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.ctl("show", "--value", "-p", key, unit).stdout.strip()

    def take_slurmd(self) -> None:
        """In place of the testbed's slurmd one that Slurm's own unit starts here, as it stands; of
        control groups that systemd does not have it sees those of the cluster."""
        assert self._entered
        self._cluster.kill_daemon("slurmd", self._name)
        folder = "/run/systemd/system/slurmd.service.d"
        lines = f"[Service]\\nBindPaths={GROUPS}:/sys/fs/cgroup\\n"
        self.run("sh", "-ec", f"[ -d {GROUPS}/devices ] || exit 0; mkdir -p {folder}; "
                 f"printf '{lines}' >{folder}/groups.conf")  # fmt: skip
        self.ctl("daemon-reload")
        self.ctl("start", "slurmd.service")


def reached(*words: str) -> list[str]:
    """The command that runs these words on the host `%h`, beside what its systemd runs."""
    enter = 'exec nsenter -t "$(cat "/run/systemd-$0.pid")" -m -n -u -p -C -- env -i "$@"'
    environment = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    return ["sh", "-c", enter, "%h", *environment, *words]
