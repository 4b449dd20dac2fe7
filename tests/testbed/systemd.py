"""A systemd beside a cluster: first process of its own pid, mount and control group namespaces.

It has our units and journald, and of the host's own units nothing that could touch the host (no
udev, sysctl, mounts or generators). It shares the head's network, files, munge and wake file; the
processes of the cluster are not its own.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any

from tests.testbed.cluster import Cluster
from tests.testbed.namespaces import group_name
from tests.testbed.product import SOURCE

UNITS = SOURCE / "etc" / "systemd"
ETC_UNITS = "/etc/systemd/system"

_OUTER = """
mkdir -p /run/cgroup2
mount -t cgroup2 cgroup2 /run/cgroup2
mkdir "/run/cgroup2/$1"
echo $$ >"/run/cgroup2/$1/cgroup.procs"
exec unshare -Cmp --fork --kill-child --propagation private sh -ec "$2" systemd "$3"
"""

_INNER = f"""
umount /run/cgroup2
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /tmp/shared
mount --rbind /run /tmp/shared
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/munge /run/slurm-mig
mount --bind /tmp/shared/munge /run/munge
mount --bind /tmp/shared/slurm-mig /run/slurm-mig
mount -t tmpfs -o mode=755 tmpfs /usr/lib/systemd/system-generators
mkdir -p {ETC_UNITS}
mount -t tmpfs -o mode=755 tmpfs {ETC_UNITS}
for unit in /usr/lib/systemd/system/*.wants/*; do
    case $unit in
        */systemd-journald*) ;;
        *) ln -sf /dev/null "{ETC_UNITS}/${{unit##*/}}" ;;
    esac
done
cp "$1"/* {ETC_UNITS}
ln -sf /usr/local/bin/slurm-mig /usr/bin/slurm-mig
export container=slurm-mig-testbed
exec /usr/lib/systemd/systemd --system --log-target=console --unit=basic.target
"""


class Systemd:
    """A context manager; `run` and `ctl` work inside."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._first: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> Systemd:
        words = ["sh", "-ec", _OUTER, "systemd", group_name(), _INNER, str(UNITS)]
        with open("/tmp/systemd.log", "wb") as log:
            self._first = self._cluster.spaces.begin(words, log)
        try:
            self._cluster.wait_for(self._is_up, 30, "systemd to be up")
        except TimeoutError as error:
            self.__exit__(None, None, None)
            raise RuntimeError(Path("/tmp/systemd.log").read_text()) from error
        return self

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
        found = self._cluster.sh("pgrep -f '^/usr/lib/systemd/systemd --system' || true").split()
        self._pid = int(found[0]) if found else 0
        return bool(found) and self.ctl("is-active", "basic.target", check=False).returncode == 0

    def run(self, *argv: str, **options: Any) -> CompletedProcess[str]:
        return self._cluster.run("nsenter", "-t", str(self._pid), "-m", "-p", "-C", "--", *argv,
                                 **options)  # fmt: skip

    def ctl(self, *words: str, **options: Any) -> CompletedProcess[str]:
        return self.run("systemctl", "--no-pager", *words, **options)

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.ctl("show", "--value", "-p", key, unit).stdout.strip()
