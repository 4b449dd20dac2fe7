"""What this machine's GPUs show of themselves, for a record (core/observed.py). Only asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pynvml

from slurm_mig.adapters import nvml
from slurm_mig.adapters.nvml import translated
from slurm_mig.core.model import Gpu
from slurm_mig.core.observed import Record, SeenGpu, SeenInstance, SeenProfile

SOURCE = "slurm-mig inventory --record"


def shown(driver: str, gpus: Sequence[Gpu]) -> Record:
    """A record of these GPUs, those that are alike as one. Raises GpuError."""
    kinds: dict[SeenGpu, list[tuple[SeenInstance, ...]]] = {}
    for gpu in gpus:
        with translated(f"reading what GPU {gpu.index} shows"):
            kinds.setdefault(_kind(gpu), []).append(tuple(_instances(gpu)))
    found = (
        replace(kind, count=len(those), instances=tuple(filter(None, those)))
        for kind, those in kinds.items()
    )
    return Record(SOURCE, driver, tuple(found))


def _kind(gpu: Gpu) -> SeenGpu:
    device = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
    pci = pynvml.nvmlDeviceGetPciInfo(device)
    return SeenGpu(
        model=gpu.model,
        pci_device_id=f"0x{int(pci.pciDeviceId) >> 16:04X}",
        memory_mib=gpu.memory_mib,
        mig=gpu.mig if gpu.mig_capable else None,
        mode_needs_reset=gpu.mode_needs_reset if gpu.mig_capable else None,
        profiles=tuple(_profiles(device)) if gpu.profiles else (),
    )


def _profiles(device: Any) -> Iterator[SeenProfile]:
    total = int(pynvml.nvmlDeviceGetMemoryInfo(device).total)
    for number, info, places in nvml.offered(device):
        yield SeenProfile(
            name=nvml.profile_name(number, info, total),
            id=int(info.id),
            memory_mib=int(info.memorySizeMB),
            slices=int(info.sliceCount),
            max=int(info.instanceCount),
            enum_value=number,
            sm=int(info.multiprocessorCount),
            ce=int(info.copyEngineCount),
            dec=int(info.decoderCount),
            enc=int(info.encoderCount),
            jpeg=int(info.jpegCount),
            ofa=int(info.ofaCount),
            placements=tuple(places),
        )


def _instances(gpu: Gpu) -> Iterator[SeenInstance]:
    for instance in gpu.instances:
        place = instance.placement
        parts = tuple(compute.slices for compute in instance.computes)
        yield SeenInstance(place.profile, place.start, place.size, instance.gi, parts)
