"""Which process is this node's slurmd.

Started by Slurm's own systemd unit (`slurmd --systemd`) it writes no pid file (source: slurmd.c,
`under_systemd`). Then it is looked for among the processes, which needs neither a setting nor
systemd, and is right through a reload. Runs on the GPU node as root; needs the standard library
only.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

REGISTRAR = "SLURM_MIG_REGISTRAR"
"""In the environment of a slurmd that is only passing (see adapters/registrar.py)."""

_SLURMD = re.compile(r"(?<![a-z])slurmd(?![a-z])")
"""In the name of slurmd's program, which Debian calls slurmd-wlm: not slurmstepd, not slurmdbd."""

_NAME_OPTION = re.compile(r"-[bcCDGhMsvVZ]*N(.*)")
"""`-N NAME` of slurmd, after the letters that take no value."""


def expanded(pid_file: str, node_name: str) -> Path:
    """A pid file's path as slurmd reads it: `%h` is the host's short name, `%n` the node's."""
    host = socket.gethostname().partition(".")[0]
    return Path(pid_file.replace("%h", host).replace("%n", node_name))


class SlurmdFinder:
    """Finds the slurmd of one node, by its pid file or among the processes of its host."""

    def __init__(self, pid_file: str, node_name: str, proc: Path = Path("/proc")) -> None:
        self.pid_file = expanded(pid_file, node_name)
        self._name = node_name
        self._proc = proc
        self._last = 0

    def pid(self) -> int:
        """Pid of the running slurmd, 0 if there is none. Looks at each process of the host only
        where no pid file tells and the slurmd found the last time is gone."""
        self._last = self._written() or self._still() or self._oldest()
        return self._last

    def _written(self) -> int:
        """By the pid file. One that a killed slurmd has left may name another program's process."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return 0
        return pid if self._runs_slurmd(pid) else 0

    def _still(self) -> int:
        return self._last if self._last and self._is_ours(self._last) else 0

    def _oldest(self) -> int:
        """In a reload the new slurmd runs beside the old one, which serves until it ends."""
        pids = [int(entry) for entry in os.listdir(self._proc) if entry.isdigit()]
        return min(((self._started(pid), pid) for pid in pids if self._is_ours(pid)),
                   default=(0, 0))[1]  # fmt: skip

    def _is_ours(self, pid: int) -> bool:
        """A slurmd of our user (root), in this host's network, and not one of another node."""
        try:
            return (
                # A slurmd's child that is about to become a step bears the name of a thread.
                _SLURMD.search(self._text(pid, "comm")) is not None
                and self._runs_slurmd(pid)
                and f"\nUid:\t{os.geteuid()}\t" in self._text(pid, "status")
                and self._network(str(pid)) == self._network("self")
                and self._node_of(pid) in ("", self._name)
                and f"{REGISTRAR}=" not in self._text(pid, "environ")
            )
        except OSError:
            return False

    def _runs_slurmd(self, pid: int) -> bool:
        """By the program's file, of which the process itself cannot say another name."""
        try:
            program = os.readlink(self._proc / str(pid) / "exe")
        except OSError:
            return False
        return _SLURMD.search(os.path.basename(program)) is not None

    def _node_of(self, pid: int) -> str:
        """The node that its command line names; empty where that is left to the host's name."""
        words = [*self._text(pid, "cmdline").split("\0"), ""]
        return next(_names(words), "")

    def _network(self, process: str) -> str:
        return os.readlink(self._proc / process / "ns" / "net")

    def _started(self, pid: int) -> int:
        """In clock ticks since the boot; 0 for one that has just gone."""
        try:
            return int(self._text(pid, "stat").rpartition(")")[2].split()[19])
        except (OSError, IndexError):
            return 0

    def _text(self, pid: int, name: str) -> str:
        return (self._proc / str(pid) / name).read_text(errors="replace")


def _names(words: list[str]) -> Iterator[str]:
    for word, following in pairwise(words):
        if option := _NAME_OPTION.fullmatch(word):
            yield option[1] or following
