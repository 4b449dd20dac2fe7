"""PCI devices, IOMMU groups and vGPU types as the kernel shows them under /sys; changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from slurm_mig.core.exports.libvirt import PciDevice, VgpuType
from slurm_mig.errors import SlurmMigError


def address_of(nvml: str) -> str:
    """NVML's `00000000:07:00.0` as sysfs writes it, `0000:07:00.0`."""
    domain, _, rest = nvml.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


class Sysfs:
    """What is below `root`."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        self._devices = root / "bus" / "pci" / "devices"
        self._mediated = root / "class" / "mdev_bus"

    def device(self, address: str) -> PciDevice:
        """Raises SlurmMigError for a device that is not there."""
        folder = self._devices / address
        if not folder.is_dir():
            raise SlurmMigError(f"the kernel shows no PCI device {address}")
        group = _link(folder / "iommu_group")
        others = [
            f"{entry.name} {_link(entry / 'driver') or 'none'}"
            for entry in sorted((folder / "iommu_group" / "devices").glob("*"))
            if entry.name != address and not _text(entry / "class").startswith("0x0604")
        ]
        resettable = (folder / "reset").exists() or bool(_text(folder / "reset_method"))
        return PciDevice(address, group, tuple(others), _link(folder / "driver"), resettable)

    def vgpu_types(self, address: str) -> list[VgpuType]:
        """The types that the GPU or its virtual functions could have one more of."""
        functions = [address]
        for link in sorted((self._devices / address).glob("virtfn*")):
            functions.append(os.path.basename(os.path.realpath(link)))
        return [
            t for function in functions for t in (*self._mdev(function), *self._newer(function))
        ]

    def _mdev(self, address: str) -> Iterator[VgpuType]:
        for folder in sorted((self._mediated / address / "mdev_supported_types").glob("*")):
            if _text(folder / "available_instances") not in ("", "0"):
                yield VgpuType(address, folder.name, _text(folder / "name"), mediated=True)

    def _newer(self, address: str) -> Iterator[VgpuType]:
        """Lines `ID : NAME`, as the vGPU Manager writes them for a virtual function."""
        for line in _text(self._devices / address / "nvidia" / "creatable_vgpu_types").splitlines():
            ident, _, name = (part.strip() for part in line.partition(":"))
            if ident.isdigit() and name:
                yield VgpuType(address, ident, name, mediated=False)


def _link(path: Path) -> str:
    return os.path.basename(os.path.realpath(path)) if path.is_symlink() else ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
