"""The simulated NVML's control program, `nvml-sim`, from Python.

Used by tests that make their own simulated node. The library itself is used through pynvml, as the
real one is; nothing here is for the product.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

SOURCE = Path(__file__).resolve().parent / "nvml"

Timing = Literal["none", "hardware"]


@dataclass(frozen=True)
class Paths:
    """What `build` made."""

    libnvml: Path
    control: Path
    cuda: Path


@dataclass(frozen=True)
class GpuSpec:
    """One simulated GPU; `layout` is which of the two placement orders its board has."""

    model: str
    mig: bool = False
    layout: Literal["N", "F"] = "N"
    minor: int | None = None
    passthrough: bool = False
    """Given to a virtual machine, which cannot reset it."""

    def word(self) -> str:
        minor = "" if self.minor is None else f":minor={self.minor}"
        vm = ":vm=passthrough" if self.passthrough else ""
        return f"{self.model}:mig={'on' if self.mig else 'off'}:layout={self.layout}{minor}{vm}"


class ComputeInstanceDump(TypedDict):
    ci: int
    uuid: str
    name: str
    profile_id: int
    start: int
    slices: int
    minor: int
    generation: int


class InstanceDump(TypedDict):
    gi: int
    profile: str
    profile_id: int
    start: int
    size: int
    minor: int
    generation: int
    compute_instances: list[ComputeInstanceDump]


class GpuDump(TypedDict):
    model: str
    uuid: str
    layout: str
    minor: int
    mig: bool
    pending: bool
    instances: list[InstanceDump]


class ProcessDump(TypedDict):
    pid: int
    started: int
    gpu: int
    gi: int
    ci: int


class FaultDump(TypedDict):
    call: str
    code: int
    gpu: int
    times: int


class Dump(TypedDict):
    """Everything that `nvml-sim dump` prints."""

    driver: str
    dev_root: str
    proc_root: str
    timing: Timing
    caps_major: int
    generation: int
    created: int
    destroyed: int
    compute_created: int
    compute_destroyed: int
    mode_changes: int
    calls: int
    gpus: list[GpuDump]
    processes: list[ProcessDump]
    faults: list[FaultDump]


def build(out_dir: Path) -> Paths:
    """Compile the library and its programs into `out_dir`. Needs make and a C compiler."""
    subprocess.run(["make", "-s", "-C", str(SOURCE), f"OUT={out_dir}"], check=True)
    return Paths(out_dir / "libnvidia-ml.so.1", out_dir / "nvml-sim", out_dir / "fake-cuda")


class Simulator:
    """One node's state file and what can be done to it from outside NVML."""

    def __init__(self, paths: Paths, state: Path) -> None:
        self.paths = paths
        self.state = state

    def environment(self) -> dict[str, str]:
        """This process's environment, for a program that is to use this node."""
        return {**os.environ, "NVML_SIM_STATE": str(self.state)}

    def create(
        self,
        gpus: Sequence[GpuSpec],
        *,
        root: Path,
        seed: str = "node",
        driver: str = "580.95.05",
        timing: Timing = "none",
        caps_major: int = 508,
    ) -> None:
        """Make the node, with its device nodes in `root`/dev and its files in `root`/proc."""
        self._run(
            "create", "--dev-root", str(root / "dev"), "--proc-root", str(root / "proc"),
            "--seed", seed, "--driver", driver, "--timing", timing,
            "--caps-major", str(caps_major), *(gpu.word() for gpu in gpus),
        )  # fmt: skip

    def dump(self) -> Dump:
        return cast(Dump, json.loads(self._run("dump")))

    def timing(self, timing: Timing) -> None:
        self._run("timing", timing)

    def reboot(self) -> None:
        """Instances are gone, as are their device nodes; the MIG mode too, but on Ampere."""
        self._run("reboot")

    def rename_profiles(self) -> None:
        """As a driver would that gives profiles other names: a gigabyte more in each."""
        self._run("hardware", "rename")

    def add_process(
        self, pid: int, gpu: int, gi: int | None = None, *, hidden: bool = False
    ) -> None:
        """Let a living process count as a compute process; `gi` None: of the whole GPU. A hidden
        one holds what it holds without being listed, like a daemon with a leaked handle."""
        where = () if gi is None else ("--gi", str(gi))
        how = ("--hidden",) if hidden else ()
        self._run("process", "add", "--pid", str(pid), "--gpu", str(gpu), *where, *how)

    def remove_process(self, pid: int) -> None:
        self._run("process", "remove", "--pid", str(pid))

    def fault(
        self,
        call: str,
        code: str | int,
        *,
        gpu: int | None = None,
        times: int = 1,
        after: int = 0,
        for_ms: int = 0,
        delay_ms: int = 0,
    ) -> None:
        """Let the next `times` calls of this symbol fail with a code, `IN_USE` or 19.

        `*` is every call. `after` calls are let through first; with `for_ms` it lasts that long
        instead. `SLOW` is no error but a delay; `LIE` a destruction that says OK and does nothing.
        """
        words = ["--code", str(code), "--after", str(after), "--delay-ms", str(delay_ms)]
        words += ["--for-ms", str(for_ms)] if for_ms else ["--times", str(times)]
        words += [] if gpu is None else ["--gpu", str(gpu)]
        self._run("fault", call, *words)

    def clear_faults(self) -> None:
        self._run("fault", "--clear")

    def _run(self, verb: str, *words: str) -> str:
        done = subprocess.run(
            [str(self.paths.control), verb, "--state", str(self.state), *words],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return done.stdout
