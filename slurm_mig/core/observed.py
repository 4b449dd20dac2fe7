"""What a machine with real GPUs showed, as data, and where the built-in tables say otherwise. Pure.

A record has nothing in it that tells whose machine it was: no UUID, serial number, bus address,
host name or process. Those in slurm_mig/data/observed are what the tables were corrected by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MEMORY_TOLERANCE = 0.1
"""Memory of a profile depends on driver and firmware: B200's 1g.23gb has been seen with 20.5 and
22 GiB. More than this share of it is a difference."""


@dataclass(frozen=True)
class SeenProfile:
    """A GPU instance profile; None for what the source did not show."""

    name: str
    id: int
    memory_mib: int | None = None
    slices: int | None = None
    max: int | None = None
    """Instances at most, as the driver says (on some A30 not the truth)."""
    enum_value: int | None = None
    sm: int | None = None
    ce: int | None = None
    dec: int | None = None
    enc: int | None = None
    jpeg: int | None = None
    ofa: int | None = None
    placements: tuple[tuple[int, int], ...] = ()
    """Start and size of each legal one, in memory slices."""


@dataclass(frozen=True)
class SeenInstance:
    """A GPU instance that was there: which id its place has tells the board's placement layout."""

    profile: str
    start: int
    size: int
    gi: int
    parts: tuple[int, ...] = ()
    """Compute slices of its compute instances."""


@dataclass(frozen=True)
class SeenGpu:
    """GPUs that are alike, but for their instances."""

    model: str
    count: int = 1
    pci_device_id: str = ""
    memory_mib: int | None = None
    mig: bool | None = None
    mode_needs_reset: bool | None = None
    profiles: tuple[SeenProfile, ...] = ()
    instances: tuple[tuple[SeenInstance, ...], ...] = ()
    """Of each GPU that had any."""


@dataclass(frozen=True)
class Record:
    """One machine, or one published output."""

    source: str
    """Where it was seen: this program, or the address of a published output."""
    driver: str
    """Empty where the source does not say."""
    gpus: tuple[SeenGpu, ...]


COMPARED = ("id", "slices", "max", "enum_value", "sm", "ce", "dec", "enc", "jpeg", "ofa")

Tables = Sequence[Mapping[str, Any]]
"""The models of data/mig-profiles.json."""


def table_of(model: str, tables: Tables) -> Mapping[str, Any] | None:
    """The table that knows this model by its own name or as a variant."""
    for table in tables:
        if model in (table["gpu"], *(variant[0] for variant in table["variants"])):
            return table
    return None


def differences(record: Record, tables: Tables) -> list[str]:
    """One sentence for each thing that the record shows otherwise than the tables say."""
    found = []
    for gpu in record.gpus:
        table = table_of(gpu.model, tables)
        if table is None:
            found += [f"{gpu.model}: no table knows it"] if gpu.profiles else []
        else:
            found += _gpu_differences(gpu, table)
    return found


def _gpu_differences(gpu: SeenGpu, table: Mapping[str, Any]) -> Iterator[str]:
    reset = table["mig_mode_change_needs_reset"]
    if gpu.mode_needs_reset is not None and gpu.mode_needs_reset != reset:
        yield f"{gpu.model}: a mode change needs a reset: {gpu.mode_needs_reset}, table: {reset}"
    known = {profile["name"]: profile for profile in table["profiles"]}
    for seen in gpu.profiles:
        if seen.name not in known:
            yield f"{gpu.model}: the table has no {seen.name}"
            continue
        for what, here, there in _profile_differences(seen, known[seen.name]):
            guess = ", inferred" if what in known[seen.name]["inferred"] else ""
            yield f"{gpu.model} {seen.name}: {what} {here}, table: {there}{guess}"


def _profile_differences(
    seen: SeenProfile, table: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    for what in COMPARED:
        here = getattr(seen, what)
        if here is not None and here != table[what]:
            yield what, here, table[what]
    memory = table["memory_mb"] or 0
    if seen.memory_mib and abs(seen.memory_mib - memory) > MEMORY_TOLERANCE * seen.memory_mib:
        yield "memory_mb", seen.memory_mib, memory
    places = sorted(tuple(place) for place in table["placements"])
    if seen.placements and sorted(seen.placements) != places:
        yield "placements", sorted(seen.placements), places
