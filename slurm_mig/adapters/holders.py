"""Who holds a GPU, beyond NVML's own list: by open device files under /proc, and kernel modules.

Runs on the GPU node as root; needs the standard library only. What has ended meanwhile is left out.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

COMMAND_LENGTH = 60
"""Characters of a command line that are shown."""

KERNEL_USERS = (
    "nvidia_drm",
    "nvidia_modeset",
    "nvidia_uvm",
    "nvidia_fs",
    "nvidia_peermem",
    "gdrdrv",
)
"""Modules that may hold the driver; nvidia_drm with modesetting holds GPUs for good."""


@dataclass(frozen=True)
class Process:
    """A process in words that lead to who started it."""

    pid: int
    command: str
    unit: str = ""
    """systemd unit, `nvidia-dcgm.service`."""
    container: str = ""
    """Short id of its container."""
    job: int = 0
    """Slurm job, 0 for none."""

    def __str__(self) -> str:
        where = [
            f"job {self.job}" if self.job else "",
            f"unit {self.unit}" if self.unit and not self.job else "",
            f"container {self.container}" if self.container else "",
        ]
        words = ", ".join(filter(None, where))
        return f"process {self.pid} ({self.command}){': ' + words if words else ''}"


def describe(pid: int, proc: Path = Path("/proc")) -> Process:
    """What is known of a process; only its pid when it has ended."""
    folder = proc / str(pid)
    unit, container, job = _control_group(_read(folder / "cgroup"))
    return Process(pid, _command(folder), unit, container, job or _job_of(folder))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _command(folder: Path) -> str:
    words = _read(folder / "cmdline").replace("\0", " ").strip()
    words = "".join(c if c.isprintable() else "?" for c in words)
    words = words or _read(folder / "comm").strip() or "ended"
    return words if len(words) <= COMMAND_LENGTH else f"{words[: COMMAND_LENGTH - 1]}…"


def _control_group(text: str) -> tuple[str, str, int]:
    """Unit, container and job by the names of the groups that the process is in."""
    units = re.findall(r"/([^/\n]+\.(?:service|scope))(?=/|\n|$)", text)
    containers = re.findall(r"[/:-]([0-9a-f]{64})(?:\.scope)?(?=/|\n|$)", text)
    jobs = re.findall(r"/job_(\d+)(?=/|\n|$)", text)
    return (
        units[-1] if units else "",
        containers[-1][:12] if containers else "",
        int(jobs[-1]) if jobs else 0,
    )


def _job_of(folder: Path) -> int:
    found = re.search(r"(?:\A|\0)SLURM_JOB_ID=(\d+)(?:\0|\Z)", _read(folder / "environ"))
    return int(found[1]) if found else 0


def by_files(files: Iterable[str], proc: Path = Path("/proc")) -> dict[str, list[Process]]:
    """Processes that have one of these device files open, by file. A file in a container counts
    by its device number, whatever its name is there."""
    numbers: dict[int, str] = {}
    for file in files:
        with suppress(OSError):
            info = os.stat(file)
            if stat.S_ISCHR(info.st_mode):
                numbers[info.st_rdev] = file
    found: dict[str, set[int]] = {}
    for folder in proc.glob("[0-9]*"):
        for number in _open_devices(folder):
            if number in numbers:
                found.setdefault(numbers[number], set()).add(int(folder.name))
    return {
        file: [describe(pid, proc) for pid in sorted(pids)] for file, pids in sorted(found.items())
    }


def _open_devices(folder: Path) -> set[int]:
    devices: set[int] = set()
    try:
        descriptors = os.listdir(folder / "fd")
    except OSError:
        return devices
    for name in descriptors:
        with suppress(OSError):
            info = os.stat(folder / "fd" / name)
            if stat.S_ISCHR(info.st_mode):
                devices.add(info.st_rdev)
    return devices


def kernel_users(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> Mapping[str, str]:
    """Kernel modules on top of the driver, each with what it does to a GPU."""
    found = {}
    for line in _read(proc / "modules").splitlines():
        name, _, count, *_ = [*line.split(), "", "", ""][:4]
        if name in KERNEL_USERS:
            found[name] = f"{count or 0} users"
    if "nvidia_drm" in found:
        on = _read(sys / "module/nvidia_drm/parameters/modeset").strip() in ("Y", "1")
        found["nvidia_drm"] += ", modesetting on: it holds every GPU" if on else ", modesetting off"
    return found
