"""A machine whose /dev, /proc/driver and slurm-mig's own places are a simulated node's.

Programs that know nothing of the simulator are run there as they are on a real one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.nvml_sim import Simulator

SOURCE = Path(__file__).parents[3]

NODES = ("null", "zero", "full", "random", "urandom", "tty")

PLACES = {"/dev": "dev", "/proc/driver": "proc", "/etc/slurm": "etc", "/var/lib/slurm-mig": "var"}
"""What is somewhere else there, below the machine's folder."""


@dataclass
class Machine:
    """Below `root` a node that the simulator has made with `root` as its root."""

    sim: Simulator
    root: Path

    def __post_init__(self) -> None:
        for name in NODES:
            info = os.stat(f"/dev/{name}")
            os.mknod(self.root / "dev" / name, info.st_mode, info.st_rdev)
            os.chmod(self.root / "dev" / name, 0o666)

    def run(
        self, *words: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command in a mount namespace of its own."""
        inside = ""
        for place, folder in PLACES.items():
            (self.root / folder).mkdir(exist_ok=True)
            inside += f"mkdir -p {place}; mount --bind {self.root / folder} {place} || exit 99; "
        library = str(self.sim.paths.libnvml.parent)
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{inside}exec "$@"', "sh", *words],
            check=False, capture_output=True, text=True, cwd=SOURCE, stdin=subprocess.DEVNULL,
            env={**self.sim.environment(), "LD_LIBRARY_PATH": library, **(environment or {})},
        )  # fmt: skip
