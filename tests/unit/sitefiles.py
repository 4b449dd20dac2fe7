"""A site's slurm.conf and gres.conf, as SlurmFiles reads them from a folder of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slurm_mig.adapters.slurmfiles import FileEdit, SlurmFiles

SLURM = """\
# the site's
ClusterName=Mig
SelectType=select/cons_tres
selecttype=select/other
NodeName=DEFAULT CPUs=8 Feature=old State=UNKNOWN
NodeName=a100-[1-3] Gres=gpu:1g.5gb:14 RealMemory=64000 NodeAddr=10.0.0.[1-3] Port=7001-7003 # rack
NodeName=DEFAULT RealMemory=1000
nodename=cpu[01-02] features="new,big" \\
  Weight=3
NodeSet=big Feature=big
NodeSet=gpus Nodes=a100-[1-2]
PartitionName=DEFAULT MaxTime=60 Nodes=cpu01
PartitionName=gpu Nodes=gpus State=UP
PartitionName=all Nodes=ALL
PartitionName=rest Nodes=big,a100-3
PartitionName=own
"""
GRES = """\
AutoDetect=off
NodeName=a100-[1-2] Name=gpu Type=1g.5gb File=/dev/nvidia0
NodeName=a100-[1-3] AutoDetect=nvml
NodeName=a100-[1-3] Name=nic Count=1
"""

Make = Callable[..., SlurmFiles]


def write(folder: Path, slurm: str = SLURM, gres: str | None = GRES, **others: str) -> SlurmFiles:
    """Put the files there; `others` by name, without `.conf`."""
    (folder / "slurm.conf").write_bytes(slurm.encode())
    if gres is not None:
        (folder / "gres.conf").write_bytes(gres.encode())
    for name, text in others.items():
        (folder / f"{name}.conf").write_text(text)
    return SlurmFiles(folder / "slurm.conf", folder / "gres.conf")


def after(edits: list[FileEdit], name: str = "slurm.conf") -> str:
    return next(edit.after for edit in edits if edit.path.name == name)
