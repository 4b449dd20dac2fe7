"""A second, short-lived slurmd that registers a node's new devices ahead of the real one.

Runs on the GPU node as root. Why: slurmctld refuses the first registration in which a type has
vanished under running jobs, and only then forgets the old topology (`slots.bridge_line`). A slurmd
whose *first* registration was refused has no TRES list, so every step launch that reaches it waits
for a registration that is accepted (source: slurmd/req.c `send_slurmd_conf_lite`), and it cannot be
told to register again. So another slurmd takes the refusal: the real one serves launches all the
while, and its own registration, after it, is accepted at once.

It sees the node's real configuration and spool directory (a registration without the node's steps
would end their jobs), but listens on a port of its own, writes its own pid file, starts no hook,
touches no control group, and bears a mark by which it is never taken for the real one. It is killed
once slurmctld has seen it, by `timeout` in any case.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.findslurmd import REGISTRAR
from slurm_mig.errors import UnreachableError

LIFETIME_S = 30
"""It never lives longer, whatever becomes of us."""

_PRIVATE = """
mount --bind "$1/slurm.conf" "$2"
if [ -e "$3" ]; then mount --bind "$1/cgroup.conf" "$3"; fi
shift 3
exec timeout --signal=KILL "$@"
"""
"""Run under `unshare --mount`: our changed copies hide the files, for this process alone."""


class Registrar:
    """`start` it, wait until slurmctld has refused it, `stop` it."""

    def __init__(self, slurm_conf: str, run_dir: str, node_name: str) -> None:
        self._slurm_conf = Path(slurm_conf)
        self._dir = Path(run_dir) / "registrar"
        self._node_name = node_name
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, slurmd: Sequence[str] = ("slurmd",)) -> None:
        """Start it. Raises UnreachableError when it cannot be started."""
        self.stop()
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        cgroup_conf = self._slurm_conf.parent / "cgroup.conf"
        write_atomic(self._dir / "slurm.conf", self._configuration())
        write_atomic(self._dir / "cgroup.conf", "CgroupPlugin=disabled\n")
        command = [
            "unshare", "--mount", "--propagation", "private", "sh", "-ec", _PRIVATE, "registrar",
            str(self._dir), str(self._slurm_conf), str(cgroup_conf),
            str(LIFETIME_S), *slurmd, "-D", "-N", self._node_name,
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, REGISTRAR: "1"},
            )
        except OSError as error:
            raise UnreachableError(
                f"cannot start a second slurmd for a registration: {error.strerror} "
                f"({shlex.join(command[:3])})"
            ) from error

    def stop(self) -> None:
        """Kill it, if it runs. It has nothing to save."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _configuration(self) -> str:
        """The node's own slurm.conf and what must differ: of a key given twice the last counts."""
        changes = {
            "SlurmdPort": str(_free_port()),
            "SlurmdPidFile": str(self._dir / "slurmd.pid"),
            "SlurmdLogFile": str(self._dir / "slurmd.log"),
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "HealthCheckInterval": "0",
        }
        lines = "".join(f"{key}={value}\n" for key, value in changes.items())
        return f"{self._slurm_conf.read_text()}\n{lines}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
