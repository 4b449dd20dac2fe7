"""What of this node is Slurm's and what is others', as the node itself can know it.

On a node in the controller's care by what the controller left here; elsewhere by gres.conf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters import gresfile
from slurm_mig.adapters.bootrecord import BootRecord, Recorded
from slurm_mig.adapters.managedhere import managed_here
from slurm_mig.config import NodeSettings
from slurm_mig.core.model import Gpu, is_filler
from slurm_mig.core.ownership import stamped


@dataclass(frozen=True)
class Owned:
    """The GPUs with their owners, and the UUIDs of the devices that Slurm has."""

    gpus: tuple[Gpu, ...]
    slurms: frozenset[str]
    record: Recorded
    managed: bool


def owned_here(settings: NodeSettings, name: str, gpus: Sequence[Gpu]) -> Owned:
    """Raises ConfigError for a record or a gres.conf that cannot be read."""
    record = BootRecord(Path(settings.state_dir)).load() or Recorded()
    if managed_here(settings, name):
        found = stamped(gpus, record.outside)
        mine = {uuid for gpu in found for uuid in _uuids(gpu)}
        return Owned(found, frozenset(mine), record, managed=True)
    return Owned(tuple(gpus), _listed(settings, name, gpus), record, managed=False)


def _uuids(gpu: Gpu) -> list[str]:
    """Devices of the GPU that have no other owner: all that is not given away is Slurm's."""
    if gpu.owner:
        return []
    if not gpu.mig:
        return [gpu.uuid]
    return [c.uuid for i in gpu.instances if not i.owner for c in i.computes]


def _listed(settings: NodeSettings, name: str, gpus: Sequence[Gpu]) -> frozenset[str]:
    """Devices that gres.conf names; all of them where Slurm detects them itself."""
    path = Path(settings.slurm_conf).parent / "gres.conf"
    if not path.exists():
        return frozenset()
    file = gresfile.read(path, name)
    if file.autodetect not in ("", "off"):
        return frozenset(uuid for gpu in gpus for uuid in _uuids(gpu))
    named = {f for d in file.devices if not is_filler(d.type) for f in d.files}
    found = {gpu.uuid for gpu in gpus if not gpu.mig and gpu.file in named}
    for gpu in gpus:
        for instance in gpu.instances:
            if set(instance.files[1:2]) & named:
                found |= {compute.uuid for compute in instance.computes}
    return frozenset(found)
