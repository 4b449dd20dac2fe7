"""Private namespaces and control groups: where a cluster lives and dies.

Works inside the entered root filesystem (scripts/lib/rootfs.sh), as root. Knows nothing of Slurm.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

CGROUPS = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory")

ENVIRONMENT = {
    "PATH": "/opt/slurm-mig/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    # Compiled once, as an installed slurm-mig is, and not into the checkout.
    "PYTHONPYCACHEPREFIX": "/run/pycache",
    "TERM": "dumb",
}


def cgroup_version() -> int:
    """1 or 2 when Slurm can constrain devices with it here, 0 when it cannot."""
    if all((CGROUPS / name).is_dir() for name in ("devices", "freezer", "memory", "cpuset")):
        return 1
    controllers = CGROUPS / "cgroup.controllers"
    return 2 if controllers.exists() and controllers.read_text().strip() else 0


def group_name() -> str:
    """A new control group's name: scripts/lib/enter.sh removes what a run has left under such."""
    return f"slurm-mig-{os.environ.get('SLURM_MIG_RUN', '0')}-{uuid.uuid4().hex[:8]}"


class Namespaces:
    """Mount, pid, uts, network and cgroup namespaces that end with their first process."""

    def __init__(self) -> None:
        self.name = group_name()
        self._first: subprocess.Popen[bytes] | None = None
        self.pid = 0
        """Pid, seen from outside, of the first process."""

    def start(self) -> None:
        """Make the namespaces; returns when they can be entered."""
        groups = self._make_cgroups()
        script = (
            'for f in $1; do echo $$ > "$f"; done; '
            "exec unshare -Cmpnu --fork --kill-child --propagation private "
            'sh -ec "$2"'
        )
        files = " ".join(str(group / "cgroup.procs") for group in groups)
        inside = (
            f"mount -t proc proc /proc\nip link set lo up\n{_mount_cgroups_script()}\n"
            # The first process must reap: a dead daemon would be a zombie for ever.
            "echo ready; while :; do sleep 3600 & wait; done"
        )
        self._first = subprocess.Popen(
            ["sh", "-ec", script, "namespaces", files, inside],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != b"ready\n":
            raise RuntimeError("the testbed's namespaces could not be made")
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text()
        self.pid = int(children.split()[0])

    def _make_cgroups(self) -> list[Path]:
        version = cgroup_version()
        if version == 2:
            group = CGROUPS / self.name
            group.mkdir()
            return [group]
        groups = []
        for controller in V1_CONTROLLERS if version == 1 else ():
            group = CGROUPS / controller / self.name
            group.mkdir()
            groups.append(group)
            if controller == "cpuset":
                for key in ("cpuset.cpus", "cpuset.mems"):
                    (group / key).write_text((group.parent / key).read_text())
        return groups

    def command(self, argv: Sequence[str], user: str | None = None) -> list[str]:
        """The argument vector that runs `argv` inside."""
        # -C is left out: the cgroup mounts are the namespace's already, and the processes that
        # are entered this way stay in the caller's groups, outside every job's.
        entered = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-u", "--"]
        if user:
            entered += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        return [*entered, *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        check: bool = True,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and wait for it. Raises with its output when it fails."""
        done = subprocess.run(
            self.command(argv, user),
            env={**ENVIRONMENT, **(env or {})},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(
                f"{' '.join(argv)} exited {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def begin(self, argv: Sequence[str], output: int | IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a command inside, for the caller to wait for; all it says goes to `output`."""
        return subprocess.Popen(
            self.command(argv), env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stop(self) -> None:
        """End everything inside, and take its control groups away."""
        if self._first is not None:
            # A frozen process does not die: Slurm freezes the jobs that it ends.
            for state in (CGROUPS / "freezer" / self.name).rglob("freezer.state"):
                with contextlib.suppress(OSError):
                    state.write_text("THAWED")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            self._first.wait(timeout=10)
            if self._first.stdout is not None:
                self._first.stdout.close()
            self._first = None
        deadline = time.monotonic() + 5
        while not self._remove_cgroups() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _remove_cgroups(self) -> bool:
        tops = [CGROUPS / c / self.name for c in V1_CONTROLLERS] + [CGROUPS / self.name]
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return not any(top.exists() for top in tops)


def _mount_cgroups_script() -> str:
    """Mount the private part of the control groups where Slurm looks for them."""
    version = cgroup_version()
    if version == 2:
        return "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    if version == 0:
        return "true"
    lines = ["mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup"]
    for name in V1_CONTROLLERS:
        lines.append(f"mkdir /sys/fs/cgroup/{name}")
        lines.append(f"mount -t cgroup -o {name} cgroup /sys/fs/cgroup/{name}")
    return "\n".join(lines)
