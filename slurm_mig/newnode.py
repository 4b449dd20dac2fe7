"""What a node will be in our care, from its GPUs and the site's lines; changes nothing.

Called by `slurm-mig enrol`, before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slurm_mig.core import drift, geometry, ownership, slots
from slurm_mig.core.model import Gpu, Instance
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.errors import ConfigError
from slurm_mig.sitefiles import SiteFiles


@dataclass(frozen=True)
class Whole:
    """What a site says of GPUs with MIG off: their Slurm type, and whether the mode may change."""

    type: str = ""
    mode_change: str = "never"

    def allows(self, gpu: Gpu) -> bool:
        """True if the GPU's MIG mode may change. A driver of R535 or older hides the profiles of a
        GPU with MIG off: such a GPU is enrolled with MIG on, or stays as it is."""
        if not self.type or not gpu.profiles or self.mode_change == "never":
            return False
        if gpu.owner or gpu.foreign:
            return False
        return self.mode_change == "reset" or not gpu.mode_needs_reset


def managed_node(
    site: SiteFiles,
    name: str,
    facts: NodeFacts,
    caps_dir: str,
    whole: Whole = Whole(),
    own_lines: Sequence[Any] = (),
    claims: Sequence[ownership.Claim] = (),
    *,
    slotted: bool = True,
) -> ManagedNode:
    """What the node will be in our care: constant count, slots of what is there, fillers, guard.

    `own_lines` are the gpu lines of a gres.conf that the node has for itself, `claims` what the
    site gives to others than Slurm. Without slots there are no fillers, and the count is what is
    there. Raises ConfigError for a node whose GPUs or lines are not understood.
    """
    outside = ownership.settle(claims, facts.gpus)
    gpus = ownership.stamped(facts.gpus, outside)
    definition = site.node(name)
    attributes = {
        k: v for k, v in definition.attributes.items() if k.lower() not in ("nodename", "gres")
    }
    lines = [*site.gres_lines(name), *own_lines]
    switchable = frozenset(g.index for g in gpus if whole.allows(g))
    types = _whole_types(name, gpus, lines, whole.type)
    types |= {index: whole.type for index in switchable if index not in types}
    _refuse_unusual(name, gpus)
    cut = [gpu for gpu in gpus if gpu.mig or gpu.index in switchable]
    total = sum(gpu.capacity if gpu in cut else 1 for gpu in gpus)
    devices = [d for gpu in gpus for d in slots.devices_of(gpu, types.get(gpu.index, ""))]
    order = slots.arrange(total, {}, devices) if slotted else slots.in_a_row(devices)
    arranged = slots.with_files(order, gpus, caps_dir)
    most = geometry.most_of(cut, types.values())
    return ManagedNode(
        name=name,
        attributes=attributes,
        slots=arranged,
        possible=tuple(sorted(most)),
        whole_types=types,
        switchable=switchable,
        profiles={gpu.index: gpu.profiles for gpu in gpus if gpu.index in switchable},
        cores=_cores(gpus, lines),
        baseline={
            g.index: tuple(sorted(g.layout - g.foreign)) for g in gpus if g.mig and not g.owner
        },
        partitions=tuple(site.partitions_of(name)),
        cards=drift.cards(facts.gpus),
        other_gres=_other_gres(definition.get("Gres") or ""),
        slotted=slotted,
        most=most,
        outside=outside,
        part_types=tuple(sorted(slots.part_types(p for gpu in cut for p in gpu.profiles))),
    )


def not_taken_over(
    name: str, node: ManagedNode, autodetect: str | None, lines: Sequence[Any]
) -> str:
    """What the site's gres.conf says of the node's gpus that its slots will not have; empty when
    they have all. `autodetect` is what is in force for the node."""
    lost = []
    if (autodetect or "off").lower() != "off" and len(node.cores) < len(node.cards):
        lost.append(f"the cores near each GPU, which AutoDetect={autodetect} finds")
    lost += [key for key in ("Links", "Flags") if any(_attribute(line, key) for line in lines)]
    if not lost:
        return ""
    return (
        f"{name}: its gres.conf lines will be without {', '.join(lost)}; to have jobs placed by "
        "cores, write `Cores=` on lines with `File=` before `enrol` (`leave` the node first if it "
        "is enrolled)"
    )


def _other_gres(value: str) -> str:
    """The entries of a Gres value that are not about gpus."""
    entries = (entry.strip() for entry in re.split(r",(?![^(]*\))", value))
    return ",".join(e for e in entries if e and not re.match(r"gpu(:|$)", e, re.IGNORECASE))


def _refuse_unusual(name: str, gpus: Sequence[Gpu]) -> None:
    for gpu in gpus:
        if gpu.owner:
            continue
        for instance in gpu.instances:
            if instance.owner:
                continue
            if not instance.compute_instances:
                raise ConfigError(
                    f"{name} GPU {gpu.index}: {instance.placement} has no compute instance",
                    hint="Destroy that GPU instance first; nothing was changed.",
                )
            if not _comes_back(instance):
                raise ConfigError(
                    f"{name} GPU {gpu.index}: the compute instances of {instance.placement} would "
                    "come back with other ids after a boot; nothing was changed",
                    hint="Destroy that GPU instance, and make it with `slurm-mig apply`.",
                )
        if gpu.mig != gpu.mig_pending:
            raise ConfigError(
                f"{name} GPU {gpu.index}: a MIG mode change is pending; reset the GPU first"
            )


def _comes_back(instance: Instance) -> bool:
    """True if the same compute instances, made again widest first, have the same ids."""
    made = [(c.ci, c.slices) for c in instance.computes]
    return made == list(enumerate(sorted((c.slices for c in instance.computes), reverse=True)))


def _whole_types(
    name: str, gpus: Sequence[Gpu], lines: Sequence[Any], default: str
) -> dict[int, str]:
    """Slurm type of each GPU without MIG: the site's own, by its device file."""
    found = {}
    for gpu in gpus:
        if gpu.mig or gpu.owner:
            continue
        named = [_type(line) for line in lines if gpu.file in _files(line)]
        chosen = next((t for t in named if t), default)
        if not chosen:
            raise ConfigError(
                f"{name} GPU {gpu.index} ({gpu.model}) has MIG off and no Type in gres.conf",
                hint="Give it a Type there, or set whole_type in the configuration.",
            )
        found[gpu.index] = chosen
    return found


def _attribute(line: Any, key: str) -> str:
    return next((v for k, v in line.attributes.items() if k.lower() == key.lower()), "")


def _type(line: Any) -> str:
    return _attribute(line, "Type")


def _files(line: Any) -> list[str]:
    """Device files of a gres.conf line, `nvidia[0-1]` expanded."""
    text = _attribute(line, "File") or _attribute(line, "MultipleFiles")
    found = []
    for part in re.findall(r"[^,\[\]]+(?:\[[^\]]*\])?", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\]", part)
        if match:
            found += [f"{match[1]}{i}" for i in sorted(_numbers(match[2]))]
        else:
            found.append(part)
    return found


def _numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        low, _, high = part.partition("-")
        numbers.update(range(int(low), int(high or low) + 1))
    return numbers


def _cores(gpus: Sequence[Gpu], lines: Sequence[Any]) -> dict[int, str]:
    found = {}
    for gpu in gpus:
        for line in lines:
            cores = _attribute(line, "Cores")
            if cores and gpu.file in _files(line):
                found[gpu.index] = cores
    return found
