"""`slurm-mig export FORMAT`: this node's devices in the words of other worlds; changes nothing.

Runs on the GPU node. What is Slurm's is never handed out, but for a job's own devices. With
`--check`, what the format needs of the node is looked at instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slurm_mig.adapters import squeue
from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.driverfiles import driver_files
from slurm_mig.adapters.gpus import NvmlGpus
from slurm_mig.adapters.ownedhere import Owned, owned_here
from slurm_mig.adapters.sysfs import Sysfs, address_of
from slurm_mig.config import NodeSettings
from slurm_mig.core.exports import containers, kubernetes, libvirt
from slurm_mig.core.exports.chosen import SLURM, Ask, Device, choose, devices, one_gpu
from slurm_mig.core.findings import ERROR, OK, Finding
from slurm_mig.core.model import Gpu
from slurm_mig.errors import SlurmMigError, UsageError
from slurm_mig.worlds import Worlds

FORMATS = (
    "mig-parted", "slurm", "docker", "compose", "podman", "cdi", "env", "kubernetes", "libvirt",
)  # fmt: skip

SINGLE = frozenset({"docker", "compose", "podman", "env"})
"""Formats of one container: without a choice they take one device."""


@dataclass(frozen=True)
class Exported:
    """The document, or what was found instead with `--check`."""

    text: str
    data: Any
    findings: tuple[Finding, ...] | None = None


class Exporter:
    """Exports of one node."""

    def __init__(
        self, settings: NodeSettings, name: str, gpus: NvmlGpus, sys: Path = Path("/sys")
    ) -> None:
        self._settings = settings
        self._name = name
        self._gpus = gpus
        self._sysfs = Sysfs(sys)

    def run(self, ask: Ask) -> Exported:
        """Raises UsageError for what cannot be, SlurmMigError for what may not be."""
        owned = owned_here(self._settings, self._name, self._gpus.inventory())
        if ask.format == "libvirt":
            return self._libvirt(ask, owned)
        chosen = self._chosen(ask, owned)
        makers: dict[str, Callable[[], Exported]] = {
            "docker": lambda: _text(containers.docker(chosen, ask.image), chosen),
            "podman": lambda: _text(containers.podman(chosen, ask.image), chosen),
            "env": lambda: _text(containers.environment(chosen), chosen),
            "compose": lambda: _document(containers.compose(chosen, ask.image)),
            "cdi": lambda: _document(containers.cdi(chosen, driver_files())),
            "kubernetes": lambda: self._kubernetes(ask, chosen),
        }
        if ask.format not in makers:
            raise UsageError(f"there is no format {ask.format}; there are {', '.join(FORMATS)}")
        made = makers[ask.format]()
        if not ask.check:
            return made
        found = (
            *_document_findings(ask.format, made.data),
            *self._worlds(owned, ask.format, chosen),
        )
        return Exported("", made.data, found)

    def _chosen(self, ask: Ask, owned: Owned) -> list[Device]:
        jobs = self._job_devices(ask.job, owned) if ask.job else frozenset()
        some = ask.count or ask.uuids or ask.job
        if ask.format in SINGLE and not some:
            ask = Ask(**{**_fields(ask), "count": 1, "free": True})
        return choose(devices(owned.gpus, owned.slurms), ask, jobs)

    def _job_devices(self, job: int, owned: Owned) -> frozenset[str]:
        """UUIDs of what Slurm has given the job here."""
        if not owned.managed:
            raise SlurmMigError("what a job has is known on nodes in slurm-mig's care only")
        indexes = squeue.indexes_of(job, self._name)
        if not indexes:
            raise UsageError(f"job {job} has no gpu of {self._name} now")
        slots = owned.record.slots
        return frozenset(slots[i].uuid for i in indexes if i < len(slots) and slots[i].uuid)

    def _worlds(self, owned: Owned, kind: str, chosen: Sequence[Device]) -> list[Finding]:
        worlds = Worlds(self._settings, owned)
        return [*worlds.device_files(chosen), *worlds.tools(kind), *worlds.clashes()]

    def _kubernetes(self, ask: Ask, chosen: Sequence[Device]) -> Exported:
        strategy, why = kubernetes.strategy(chosen, ask.strategy)
        told = {d.uuid: self._gpus.attributes(d.uuid) for d in chosen if d.mig}
        name = f"slurm-mig-{self._name}"
        parts = {
            "values": kubernetes.values(chosen, strategy),
            "mig-manager": kubernetes.mig_manager(chosen, name),
            "labels": kubernetes.node_labels(name, self._name, strategy),
            "discovery": kubernetes.discovery(chosen, strategy, told),
            "pod": kubernetes.pod(chosen[0], strategy, ask.image),
        }
        if ask.part != "all":
            return _document(parts[ask.part])
        text = f"# MIG strategy {strategy}: {why}.\n"
        for part, document in parts.items():
            text += f"---\n# --part {part}\n{_yaml(document)}"
        return Exported(text, parts)

    # -- virtual machines -----------------------------------------------------------------------

    def _libvirt(self, ask: Ask, owned: Owned) -> Exported:
        if ask.vgpu:
            return self._vgpu(ask, owned)
        slurms = {d.gpu.index: True for d in devices(owned.gpus, owned.slurms) if d.owner == SLURM}
        gpu = one_gpu(owned.gpus, ask, slurms)
        pci = self._sysfs.device(address_of(gpu.pci))
        found = tuple(libvirt.passthrough_findings(pci))
        if ask.check:
            return Exported("", {"address": pci.address}, found)
        bad = [f"{f.what} ({f.mend})" if f.mend else f.what for f in found if f.level == ERROR]
        if bad:
            raise SlurmMigError(f"GPU {gpu.index} cannot be passed through: {'; '.join(bad)}")
        text = libvirt.passthrough(pci)
        return Exported(text, {"xml": text, "address": pci.address})

    def _vgpu(self, ask: Ask, owned: Owned) -> Exported:
        one = Ask(**{**_fields(ask), "count": ask.count or 1, "free": True})
        (device,) = choose([d for d in devices(owned.gpus, owned.slurms) if d.mig], one)[:1]
        kind = libvirt.type_for(device, self._sysfs.vgpu_types(address_of(device.gpu.pci)))
        if ask.check:
            found = Finding(OK, f"{kind.name} can be made", kind.address)
            return Exported("", {"type": kind.name}, (found,))
        text = libvirt.vgpu(device, kind)
        return Exported(text, {"xml": text, "type": kind.name, "address": kind.address})


def keep_cdi(settings: NodeSettings, name: str, gpus: Sequence[Gpu]) -> None:
    """Write the node's CDI specification again, where `node.cdi` says so: after every change."""
    if not settings.cdi:
        return
    path = Path(settings.cdi)
    text = cdi_text(settings, owned_here(settings, name, gpus))
    if not text:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_text() != text:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(path, text)


def cdi_text(settings: NodeSettings, owned: Owned) -> str:
    """What the file should have: what is not Slurm's, or all; empty where that is nothing."""
    there = devices(owned.gpus, owned.slurms)
    chosen = [d for d in there if settings.cdi_devices == "all" or d.owner != SLURM]
    return _yaml(containers.cdi(chosen, driver_files())) if chosen else ""


def _document_findings(kind: str, data: Any) -> list[Finding]:
    faults = containers.cdi_faults(data) if kind == "cdi" else []
    return [Finding(ERROR, fault, kind) for fault in faults]


def _fields(ask: Ask) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in Ask.__dataclass_fields__}


def _text(text: str, chosen: Sequence[Device]) -> Exported:
    return Exported(text, {"text": text, "devices": [d.uuid for d in chosen]})


def _document(data: Any) -> Exported:
    return Exported(_yaml(data), data)


def _yaml(data: Any) -> str:
    """Without YAML's anchors: the same list twice is written twice."""
    plain = json.loads(json.dumps(data))
    return str(yaml.safe_dump(plain, sort_keys=False, width=1000))
