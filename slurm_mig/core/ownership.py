"""Who has a GPU, or an instance of one, instead of Slurm: Kubernetes, containers, anybody.

A site gives an owner some GPUs, or some instances of one (`Claim`); what that means on a node is
settled when it is enrolled (`Outside`). What has an owner is never offered to Slurm, never
destroyed and never moved: its slots are fillers for good, so the node's count stays constant, and
the guard has its device files. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from slurm_mig.core.model import Gpu, Placement
from slurm_mig.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Outside:
    """What of one GPU is not Slurm's."""

    owner: str
    gpu: int
    placements: tuple[Placement, ...] = ()
    """The instances at these placements; empty: the whole GPU, whatever is on it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a site gives to an owner on each node of a group."""

    owner: str
    gpus: tuple[str, ...]
    """By index, UUID or PCI address."""
    instances: Mapping[str, int] = field(default_factory=dict)
    """Count by profile, on each of these GPUs."""
    placements: tuple[str, ...] = ()
    """`3g.20gb@4`, on each of these GPUs; with neither, the whole GPU is the owner's."""


def settle(claims: Iterable[Claim], gpus: Sequence[Gpu]) -> tuple[Outside, ...]:
    """What the claims mean on a node with these GPUs.

    Raises ConfigError for a GPU that is not there, an instance that is not there, and for what is
    given away twice.
    """
    given: dict[int, list[Outside]] = {}
    for claim in claims:
        for word in claim.gpus:
            gpu = named(word, gpus)
            before = given.setdefault(gpu.index, [])
            whole = not claim.instances and not claim.placements
            if any(not b.placements for b in before) or (whole and before):
                raise ConfigError(
                    f"GPU {gpu.index} is given to {before[0].owner} and to {claim.owner}; "
                    "nothing was changed"
                )
            taken = {p for b in before for p in b.placements}
            places = () if whole else tuple(sorted(_placements(claim, gpu, taken)))
            before.append(Outside(claim.owner, gpu.index, places))
    return tuple(outside for _, parts in sorted(given.items()) for outside in parts)


def named(word: str, gpus: Sequence[Gpu]) -> Gpu:
    """The GPU that an index, a UUID or a PCI address names. Raises ConfigError."""
    for gpu in gpus:
        if word in (str(gpu.index), gpu.uuid) or (gpu.pci and pci_key(word) == pci_key(gpu.pci)):
            return gpu
    there = ", ".join(str(gpu.index) for gpu in gpus) or "none"
    raise ConfigError(f"there is no GPU {word} here (there are {there}); nothing was changed")


_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")


def pci_key(word: str) -> tuple[int, ...]:
    """A PCI address as numbers, however its domain is written; empty for what is none."""
    found = _PCI.fullmatch(word.lower())
    return tuple(int(part or "0", 16) for part in found.groups()) if found else ()


def _placements(claim: Claim, gpu: Gpu, taken: set[Placement]) -> set[Placement]:
    """The instances that the claim means: those named, then the last ones of each profile, as
    Slurm's stand best at the first places."""
    there = {str(p): p for p in gpu.layout}
    found: set[Placement] = set()
    for word in claim.placements:
        if word not in there:
            raise _missing(claim, gpu, word)
        if there[word] in taken:
            raise ConfigError(f"GPU {gpu.index}: {word} is given twice; nothing was changed")
        found.add(there[word])
    for profile, count in claim.instances.items():
        free = sorted(p for p in gpu.layout - taken - found if p.profile == profile)
        if len(free) < count:
            raise _missing(claim, gpu, f"{count} {profile}")
        found.update(free[len(free) - count :])
    return found


def _missing(claim: Claim, gpu: Gpu, what: str) -> ConfigError:
    has = ", ".join(map(str, sorted(gpu.layout))) or "no instance"
    return ConfigError(
        f"{claim.owner} should have {what} of GPU {gpu.index}, which has {has}; nothing was "
        "changed",
        hint="Cut it first (`slurm-mig apply`): what is not Slurm's is never cut on demand.",
    )


def stamped(gpus: Iterable[Gpu], outside: Sequence[Outside]) -> tuple[Gpu, ...]:
    """The GPUs with their owners, and their instances' owners, filled in."""
    return tuple(_stamped(gpu, [o for o in outside if o.gpu == gpu.index]) for gpu in gpus)


def _stamped(gpu: Gpu, parts: Sequence[Outside]) -> Gpu:
    whole = next((o.owner for o in parts if not o.placements), "")
    owners = {p: o.owner for o in parts for p in o.placements}
    instances = tuple(replace(i, owner=whole or owners.get(i.placement, ""))
                      for i in gpu.instances)  # fmt: skip
    return replace(gpu, owner=whole, instances=instances) if parts else gpu


def reserved(outside: Iterable[Outside]) -> dict[tuple[int, Placement], str]:
    """The owner of each single instance that is not Slurm's, whether it is there or not."""
    return {(o.gpu, p): o.owner for o in outside for p in o.placements}


def owner_of(outside: Sequence[Outside], gpu: int, placement: Placement | None) -> str:
    """Who has the device instead of Slurm; empty: nobody."""
    parts = (o for o in outside if o.gpu == gpu)
    return next((o.owner for o in parts if not o.placements or placement in o.placements), "")


def given_away(outside: Iterable[Outside]) -> dict[int, str]:
    """The owner of each GPU that is not Slurm's as a whole."""
    return {o.gpu: o.owner for o in outside if not o.placements}
