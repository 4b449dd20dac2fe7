"""Virtual machines: a whole GPU passed through, or one MIG instance as a vGPU; libvirt's XML. Pure.

adapters/sysfs.py reads what the kernel says of the PCI devices.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slurm_mig.core.exports.chosen import Device
from slurm_mig.core.findings import ERROR, NOTE, OK, Finding
from slurm_mig.errors import SlurmMigError

SPACE = uuid.UUID("0b3de2a4-27c5-5f0e-9a8e-5d1ab6a4f7d1")
"""The name space of our mediated devices' UUIDs: one instance always gets the same."""

CONDITIONS = """\
<!-- A vGPU needs NVIDIA's vGPU software: the vGPU Manager as the host's driver (not the data
     centre driver), its guest driver in the virtual machine, and a licence for it. -->
"""


@dataclass(frozen=True)
class PciDevice:
    """A PCI device in sysfs."""

    address: str
    """`0000:07:00.0`."""
    iommu_group: str = ""
    neighbours: tuple[str, ...] = ()
    """Other devices of the group that are no bridges, each with its driver: `0000:07:00.1 snd`."""
    driver: str = ""
    resettable: bool = False


@dataclass(frozen=True)
class VgpuType:
    """A vGPU type that a PCI device, or one of its virtual functions, could have now."""

    address: str
    id: str
    """`nvidia-699`, or its number alone in the newer way."""
    name: str
    """`GRID A100-3-20C`."""
    mediated: bool
    """Made as a mediated device; otherwise by its virtual function itself (newer kernels)."""


def passthrough(pci: PciDevice) -> str:
    """The `hostdev` of the whole GPU; libvirt binds it to vfio-pci and back."""
    return (
        "<hostdev mode='subsystem' type='pci' managed='yes'>\n"
        f"  <source>\n    {_address(pci.address)}\n  </source>\n"
        "</hostdev>\n"
    )


def _address(address: str) -> str:
    domain, bus, rest = address.split(":")
    slot, function = rest.split(".")
    return (
        f"<address domain='0x{domain[-4:]}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
    )


def passthrough_findings(pci: PciDevice) -> Iterator[Finding]:
    """Whether the GPU can be passed through now."""
    where = pci.address
    if not pci.iommu_group:
        yield Finding(
            ERROR,
            "it is in no IOMMU group",
            where,
            "no virtual machine can have it",
            "switch the IOMMU on: intel_iommu=on or amd_iommu=on, and in the firmware",
        )
    else:
        yield Finding(OK, f"IOMMU group {pci.iommu_group}", where)
    for other in pci.neighbours:
        if not other.endswith((" vfio-pci", " none")):
            yield Finding(
                ERROR,
                f"{other} is in the same IOMMU group",
                where,
                "all of a group goes to one virtual machine",
                "bind it to vfio-pci too",
            )
    if pci.driver != "vfio-pci":
        yield Finding(
            NOTE,
            f"bound to {pci.driver or 'no driver'}",
            where,
            "libvirt binds it to vfio-pci when the machine starts: nobody may use it then",
        )
    if not pci.resettable:
        yield Finding(
            ERROR,
            "the kernel knows no way to reset it",
            where,
            "the next user would find what the last one left",
        )


def memory_word(name: str) -> str:
    """`3-20` of `GRID A100-3-20C`: compute slices and gigabytes; empty for a type without MIG."""
    found = re.search(r"-(\d+-\d+)C(?:ME)?$", name)
    return found[1] if found else ""


def type_for(device: Device, types: Sequence[VgpuType]) -> VgpuType:
    """The MIG-backed type of the device's profile. Raises SlurmMigError with what there is."""
    found = re.match(r"(\d+)g\.(\d+)gb", device.name)
    wanted = f"{found[1]}-{found[2]}" if found else ""
    for kind in types:
        if memory_word(kind.name) == wanted:
            return kind
    offered = ", ".join(sorted({t.name for t in types})) or "none"
    raise SlurmMigError(
        f"GPU {device.gpu.index} offers no vGPU type for a {device.name} now; it offers {offered}",
        hint="Types are offered once the vGPU Manager is the host's driver, its virtual functions "
        "are on (sriov-manage -e), and the instance has no vGPU yet.",
    )


def mdev_uuid(device: Device) -> str:
    return str(uuid.uuid5(SPACE, device.uuid))


def vgpu(device: Device, kind: VgpuType) -> str:
    """How the vGPU is made, and its `hostdev`."""
    if not kind.mediated:
        return (
            f"{CONDITIONS}<!-- First: echo {kind.id} > "
            f"/sys/bus/pci/devices/{kind.address}/nvidia/current_vgpu_type -->\n"
            "<hostdev mode='subsystem' type='pci' managed='no'>\n"
            f"  <source>\n    {_address(kind.address)}\n  </source>\n</hostdev>\n"
        )
    ident = mdev_uuid(device)
    return (
        f"{CONDITIONS}<!-- First: echo {ident} > "
        f"/sys/class/mdev_bus/{kind.address}/mdev_supported_types/{kind.id}/create -->\n"
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci' display='off'>\n"
        f"  <source>\n    <address uuid='{ident}'/>\n  </source>\n</hostdev>\n"
    )
