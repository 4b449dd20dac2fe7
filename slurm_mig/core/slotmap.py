"""The slot map: which MIG device stands at which GRES index, in a form that a shell can read.

Written on the node at each publish, read by the hooks on every job's path. It is shell, as a shell
reads a whole file much faster than its lines (one read for each byte):

    # slurm-mig slots v1
    constrained=yes
    narrow=no
    slot_0='1g.5gb MIG-… /dev/nvidia0,/dev/nvidia-caps/nvidia-cap66,… PROOF'
    slot_7='off - /dev/nvidia-caps/nvidia-cap20 -'
    job_map=/run/slurm-mig/jobs
    map_0=0.7

The last two only where a job map is kept (node.job_map_dir): the slot's file in there.
PROOF is the driver's capability file, which is there exactly as long as the instance is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from slurm_mig.core.model import Gpu, Slots

HEADER = "# slurm-mig slots v1"

_LIST = re.compile(r"[0-9]{1,3}(-[0-9]{1,3})?(,[0-9]{1,3}(-[0-9]{1,3})?)*")
LONGEST_LIST = 4096
MOST_INDEXES = 1024


@dataclass(frozen=True)
class Slot:
    """One line of the map. `uuid` is empty for a filler."""

    type: str
    uuid: str
    files: tuple[str, ...]
    proof: str = ""
    """A file that the driver shows while the instance exists; empty where it shows none."""

    @property
    def is_whole(self) -> bool:
        """A GPU without MIG."""
        return self.uuid.startswith("GPU-")

    @property
    def is_part(self) -> bool:
        """A compute instance of a GPU instance that has several."""
        return re.match(r"[1-9]c\.", self.type) is not None


IN_JOB_MAP = re.compile(r"[0-9]+(\.[0-9]+)?")
"""Names that dcgm-exporter reads: `GPU` or `GPU.GPU-INSTANCE-ID` (its hpc.go, from 4.5.3)."""


@dataclass(frozen=True)
class JobMap:
    """Where it is kept which job has which device, and under what name by UUID."""

    directory: str
    names: Mapping[str, str]


def job_map(directory: str, gpus: Iterable[Gpu]) -> JobMap | None:
    """The names of what is there: GPU index, a dot and the GPU instance's id; or the index alone
    of a GPU without MIG. None where no map is wanted."""
    if not directory:
        return None
    names = {}
    for gpu in gpus:
        if not gpu.mig:
            names[gpu.uuid] = str(gpu.index)
        # dcgm-exporter knows GPU instances only: the parts of a split one have no name there.
        there = (i for i in gpu.instances if i.uuid and not i.is_split)
        names.update({i.uuid: f"{gpu.index}.{i.gi}" for i in there})
    return JobMap(directory, names)


@dataclass(frozen=True)
class SlotMap:
    """What the hooks know of their node."""

    slots: Mapping[int, Slot] = field(default_factory=dict)
    constrained: bool = False
    """Jobs see only their own devices (ConstrainDevices)."""
    narrow: bool = False
    """Capability files belong to the job's user while it runs."""
    job_map: str = ""
    """The directory of the job map; empty where none is kept."""
    mapped: Mapping[int, str] = field(default_factory=dict)
    """The name there of each device's file, by index."""

    @property
    def devices(self) -> dict[int, Slot]:
        """The slots that are devices, without fillers and guard."""
        return {index: slot for index, slot in self.slots.items() if slot.uuid}


def slot_map(
    slots: Slots,
    proofs: Mapping[str, str] = MappingProxyType({}),
    *,
    constrained: bool,
    narrow: bool = False,
    job_map: JobMap | None = None,
) -> str:
    """The map's text. `proofs`: the driver's capability file by device file."""
    words = {True: "yes", False: "no"}
    lines = [HEADER, f"constrained={words[constrained]}", f"narrow={words[narrow]}"]
    for index, device in enumerate(slots):
        proof = (proofs.get(device.files[-1]) if device.uuid and device.files else None) or "-"
        files = ",".join(device.files)
        words_of = f"{device.type} {device.uuid or '-'} {files} {proof}"
        lines.append(f"slot_{index}={shlex.quote(words_of)}")
    if job_map is not None:
        lines.append(f"job_map={shlex.quote(job_map.directory)}")
        lines += [f"map_{i}={job_map.names[d.uuid]}" for i, d in enumerate(slots)
                  if d.uuid in job_map.names]  # fmt: skip
    return "\n".join(lines) + "\n"


def parse(text: str) -> SlotMap:
    """The map that a text has; lines that are none of ours are left out."""
    slots, flags, mapped, directory = {}, {}, {}, ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "job_map":
            directory = value.strip("'")
        elif name.startswith("map_") and name[4:].isdigit() and IN_JOB_MAP.fullmatch(value):
            mapped[int(name[4:])] = value
        number = name.removeprefix("slot_")
        words = ["" if word == "-" else word for word in value.strip("'").split()]
        if name != number and number.isdigit() and len(words) == 4:
            slots[int(number)] = Slot(words[0], words[1], tuple(words[2].split(",")), words[3])
        else:
            flags[name] = value == "yes"
    constrained, narrow = flags.get("constrained", False), flags.get("narrow", False)
    return SlotMap(slots, constrained, narrow, directory, mapped)


def indexes(text: str) -> tuple[int, ...] | None:
    """`0-2,5` to its numbers, in order; None for anything else."""
    if len(text) >= LONGEST_LIST or not _LIST.fullmatch(text):
        return None
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
        if len(found) > MOST_INDEXES:
            return None
    return tuple(found)
