"""What of containers and Kubernetes is on this node, and whether it clashes with Slurm's devices.

For `slurm-mig check` and `slurm-mig export --check`; looks, never changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from slurm_mig.adapters import holders
from slurm_mig.adapters.ownedhere import Owned
from slurm_mig.config import NodeSettings
from slurm_mig.core import findings as rules
from slurm_mig.core.exports import kubernetes
from slurm_mig.core.exports.chosen import SLURM, Device, devices
from slurm_mig.core.findings import ERROR, OK, WARNING, Finding
from slurm_mig.errors import UsageError

TOOL_TIMEOUT_S = 10.0
CDI_FOLDERS = ("/etc/cdi", "/var/run/cdi")

TOOLS = (
    ("nvidia-container-toolkit", "nvidia-ctk", rules.CONTAINER_TOOLKIT),
    ("nvidia-device-plugin", "nvidia-device-plugin", rules.DEVICE_PLUGIN),
)
NEEDS = {"docker": "nvidia-ctk", "compose": "nvidia-ctk", "podman": "podman"}
"""The program without which a format is of no use on this node."""


class Worlds:
    """One node. `proc` is the kernel's; `folders` are where runtimes look for CDI files."""

    def __init__(
        self,
        settings: NodeSettings,
        owned: Owned,
        proc: Path = Path("/proc"),
        folders: Sequence[str] = CDI_FOLDERS,
    ) -> None:
        self._settings = settings
        self._owned = owned
        self._proc = proc
        self._folders = [Path(folder) for folder in folders]
        self._devices = devices(owned.gpus, owned.slurms)

    def findings(self) -> Iterator[Finding]:
        """All of it, for `check`."""
        yield from self.tools()
        yield from self.cdi_files()
        yield from self.plugins()
        yield from self.clashes()

    def tools(self, kind: str = "") -> Iterator[Finding]:
        """Container toolkit and device plugin with their versions; what a format needs."""
        for name, program, needed in TOOLS:
            if path := shutil.which(program):
                yield from rules.tool_findings(name, _version_of(path), needed)
        program = NEEDS.get(kind, "")
        if program and not shutil.which(program):
            yield Finding(ERROR, f"{program} is not installed here", kind,
                          "the export is of no use on this node without it")  # fmt: skip

    def device_files(self, chosen: Sequence[Device]) -> Iterator[Finding]:
        """Whether every device file of the export is there."""
        missing = [f for d in chosen for f in d.files if not os.path.exists(f)]
        for file in dict.fromkeys(missing):
            yield Finding(
                ERROR,
                "is not there",
                file,
                "no container can be given it",
                "nvidia-modprobe makes it; so does slurm-mig at its next publish",
            )
        if not missing:
            yield Finding(OK, f"the files of {len(chosen)} devices are there", "/dev")

    def cdi_files(self) -> Iterator[Finding]:
        """CDI files against the instances there are: stale ones, and names given twice."""
        names: dict[str, str] = {}
        for path in sorted(p for folder in self._folders for p in folder.glob("*") if p.is_file()):
            spec = _read(path)
            if not isinstance(spec, dict):
                yield Finding(WARNING, "cannot be read as a CDI specification", str(path))
                continue
            for device in spec.get("devices") or ():
                name = f"{spec.get('kind')}={device.get('name')}"
                if name in names:
                    yield Finding(ERROR, f"{name} is in {names[name]} too", str(path),
                                  "runtimes refuse a device that two files name",
                                  "remove one of the files")  # fmt: skip
                names[name] = str(path)
            yield from self._stale(path, spec)

    def _stale(self, path: Path, spec: dict[str, Any]) -> Iterator[Finding]:
        """Capability files and UUIDs that no instance has now."""
        there = {f for d in self._devices for f in d.files} | {d.uuid for d in self._devices}
        gone = []
        for device in spec.get("devices") or ():
            nodes = (device.get("containerEdits") or {}).get("deviceNodes") or ()
            files = {str(node.get("path", "")) for node in nodes}
            caps = {f for f in files if "/nvidia-cap" in f}
            if caps - there or (str(device.get("name")).startswith("MIG-") and
                                device["name"] not in there):  # fmt: skip
                gone.append(str(device.get("name")))
        if gone:
            ours = str(path) == self._settings.cdi
            yield Finding(
                WARNING,
                f"names instances that are not there: {', '.join(gone)}",
                str(path),
                "a container that asks for one fails, or gets another's files",
                "the next change of the instances writes it again"
                if ours
                else "`node.cdi` has slurm-mig keep a file up to date",
            )
        elif str(spec.get("kind", "")).startswith("nvidia.com/"):
            yield Finding(OK, "agrees with the instances", str(path))

    def plugins(self) -> Iterator[Finding]:
        """Kubernetes's device plugin: its strategy, and whether it offers what is Slurm's."""
        for folder in sorted(self._proc.glob("[0-9]*")):
            words = _strings(folder / "cmdline")
            if not words or not Path(words[0]).name.startswith("nvidia-device-plugin"):
                continue
            environment = dict(w.split("=", 1) for w in _strings(folder / "environ") if "=" in w)
            visible = environment.get("NVIDIA_VISIBLE_DEVICES", "all")
            where = f"nvidia-device-plugin, process {folder.name}"
            yield from self._offers(visible, where)
            yield from self._strategy(visible, _strategy_of(words, environment), where)

    def _visible(self, visible: str) -> list[Device]:
        named = set(visible.split(","))
        if visible in ("", "all"):
            return self._devices
        return [
            d for d in self._devices
            if {d.uuid, d.gpu.uuid, str(d.gpu.index)} & named
        ]  # fmt: skip

    def _offers(self, visible: str, where: str) -> Iterator[Finding]:
        slurms = [d for d in self._visible(visible) if d.owner == SLURM]
        if not slurms:
            yield Finding(OK, "offers nothing that is Slurm's", where)
            return
        more = f" and {len(slurms) - 3} more" if len(slurms) > 3 else ""
        listed = ", ".join(map(str, slurms[:3]))
        yield Finding(
            ERROR,
            f"offers what is Slurm's: {listed}{more}",
            where,
            "a pod and a job would get the same instance",
            "slurm-mig export kubernetes --part values: what is not Slurm's",
        )

    def _strategy(self, visible: str, chosen: str, where: str) -> Iterator[Finding]:
        try:
            kubernetes.strategy(self._visible(visible) or self._devices, chosen)
        except UsageError as error:
            yield Finding(WARNING, f"MIG strategy {chosen}: {error.args[0]}", where,
                          "it then offers nothing, or whole GPUs", "set it to mixed")  # fmt: skip

    def clashes(self) -> Iterator[Finding]:
        """Devices with an owner in whose place somebody else computes."""
        for device in self._devices:
            for pid in device.pids:
                process = holders.describe(pid, self._proc)
                if device.owner == SLURM and process.container and not process.job:
                    yield Finding(ERROR, f"{device} is Slurm's, and {process} is on it", "owners",
                                  "the next job would share it", f"end process {pid}")  # fmt: skip
                if device.owner not in ("", SLURM) and process.job:
                    yield Finding(ERROR, f"{device} is {device.owner}'s, and {process} is on it",
                                  "owners", "a job has what is not Slurm's",
                                  "ConstrainDevices=yes in cgroup.conf")  # fmt: skip


def _strategy_of(words: Sequence[str], environment: dict[str, str]) -> str:
    given = [w.partition("=")[2] for w in words if w.startswith("--mig-strategy=")]
    return given[0] if given else environment.get("MIG_STRATEGY", "none")


def _strings(path: Path) -> list[str]:
    try:
        return [w for w in path.read_bytes().decode(errors="replace").split("\0") if w]
    except OSError:
        return []


def _read(path: Path) -> Any:
    """JSON is YAML too."""
    try:
        return yaml.safe_load(path.read_text(errors="replace"))
    except (OSError, yaml.YAMLError):
        return None


def _version_of(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], check=False, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=TOOL_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout or done.stderr
