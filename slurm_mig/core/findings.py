"""What the doctor finds, and the rules that need no look at the machine. Pure.

A finding says what, where, why it matters and the command that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from slurm_mig.core.model import Gpu, is_filler
from slurm_mig.errors import Exit

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"

EXITS = {
    OK: Exit.OK,
    NOTE: Exit.OK,
    WARNING: Exit.REFUSED,
    ERROR: Exit.ATTENTION,
}
"""Exit code of `check` by its worst finding."""

REQUIRED_DRIVER = (470,)
"""MIG with capability device files and today's UUIDs (470.42.01)."""

RECOMMENDED_DRIVER = (535,)

CONTAINER_TOOLKIT = (1, 7)
DEVICE_PLUGIN = (0, 13)


@dataclass(frozen=True)
class Finding:
    """One thing that the doctor looked at."""

    level: str
    what: str
    where: str
    why: str = ""
    mend: str = ""
    """The command that mends it, or what to do."""

    @property
    def exit(self) -> int:
        return int(EXITS[self.level])


def version(text: str) -> tuple[int, ...]:
    """`R525.85.12` and `580.95.05` as numbers; empty when there is none in the text."""
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def driver_findings(driver: str, minimum: Mapping[str, str], gpus: Sequence[Gpu]) -> list[Finding]:
    """The driver against what MIG, this project and each model need."""
    has, where = version(driver), f"driver {driver}"
    if has < REQUIRED_DRIVER:
        return [
            Finding(
                ERROR, "the driver is older than 470", where,
                "it makes no capability device files that Slurm could hand to a job",
                "install driver 535 or newer",
            )
        ]  # fmt: skip
    found = []
    for model in sorted({gpu.model for gpu in gpus}):
        needed = minimum.get(model, "")
        if has < version(needed):
            found.append(
                Finding(
                    ERROR, f"a {model} needs driver {needed.lstrip('R')} for MIG", where,
                    "its MIG mode or profiles are missing or wrong", "install a newer driver",
                )
            )  # fmt: skip
    if not found and has < RECOMMENDED_DRIVER:
        found.append(
            Finding(
                WARNING, "the driver is older than 535", where,
                "it does not say whether a mode change needs a reset, nor the profiles while MIG "
                "is off", "install driver 535 or newer",
            )
        )  # fmt: skip
    return found or [Finding(OK, "the driver is new enough", where)]


def mode_findings(gpu: Gpu, *, persistent: bool) -> Iterator[Finding]:
    """A GPU's MIG mode, pending changes, and what is half made."""
    where = f"GPU {gpu.index}"
    if not gpu.mig_capable:
        yield Finding(NOTE, f"a {gpu.model} cannot do MIG", where)
        return
    word = {True: "on", False: "off"}
    if gpu.mig != gpu.mig_pending:
        yield Finding(
            WARNING, f"MIG is {word[gpu.mig]}, and a change to {word[gpu.mig_pending]} is pending",
            where, "it comes with the next reset or boot, and takes every instance with it",
            f"slurm-mig mode {word[gpu.mig]} {gpu.index} takes it back; or reboot",
        )  # fmt: skip
    elif gpu.mig and not gpu.instances:
        yield Finding(
            WARNING, "MIG is on and there is no instance", where,
            "such a GPU runs nothing, and slurmd with AutoDetect=nvml offers it as a whole one",
            f"slurm-mig apply gpu{gpu.index}=DEVICES, or slurm-mig mode off {gpu.index}",
        )  # fmt: skip
    for instance in gpu.instances:
        if not instance.compute_instances:
            yield Finding(
                ERROR, f"{instance.placement} (GPU instance {instance.gi}) has no compute instance",
                where, "no job can use it: a change stopped half way",
                "slurm-mig apply with the layout that you want",
            )  # fmt: skip
    if gpu.mig and not persistent and not gpu.mode_needs_reset:
        yield Finding(
            WARNING, "persistence mode is off", where,
            "on this generation the MIG mode and every instance end with the driver's last user",
            "systemctl enable --now nvidia-persistenced",
        )  # fmt: skip
    if gpu.mig == gpu.mig_pending and (gpu.instances or not gpu.mig):
        yield Finding(OK, f"MIG is {word[gpu.mig]}, {len(gpu.instances)} instances", where)


@dataclass(frozen=True)
class Listed:
    """A device of gres.conf."""

    type: str
    files: tuple[str, ...]
    where: str


def gres_findings(
    listed: Sequence[Listed], there: Sequence[tuple[str, tuple[str, ...]]], autodetect: str
) -> Iterator[Finding]:
    """gres.conf against the instances that are there: type and device files."""
    if autodetect not in ("", "off"):
        yield Finding(
            WARNING, f"AutoDetect={autodetect} is on", "gres.conf",
            "Slurm then drops lines for what it does not detect, and does not follow a reshape",
            "AutoDetect=off for this node",
        )  # fmt: skip
    by_files = {frozenset(files): gres_type for gres_type, files in there}
    for device in listed:
        if is_filler(device.type):
            continue
        now = by_files.pop(frozenset(device.files), None)
        if now is None:
            yield Finding(
                ERROR, f"a {device.type} is published whose instance is not there", device.where,
                "a job that is given it fails", "slurm-mig gres shows the lines that fit",
            )  # fmt: skip
        elif device.type and not _same_type(device.type, now):
            yield Finding(
                ERROR, f"published as {device.type}, but the instance is a {now}", device.where,
                "jobs get another size than they asked for",
                "slurm-mig gres shows the lines that fit",
            )  # fmt: skip
    denied = {file for device in listed if is_filler(device.type) for file in device.files}
    for files, gres_type in sorted(by_files.items(), key=lambda item: sorted(item[0])):
        # Withheld, or not Slurm's: the guard has its file.
        if files & denied:
            continue
        yield Finding(
            WARNING, f"a {gres_type} is there that gres.conf does not name",
            " ".join(sorted(files)),
            "Slurm never offers it, and does not deny it to jobs either",
            "slurm-mig gres shows the lines that fit",
        )  # fmt: skip


def _same_type(published: str, there: str) -> bool:
    """Sites name whole GPUs as they like; an instance's type must end with its profile."""
    if not re.match(r"(\d+c\.)?\d+g\.\d+gb", there):
        return True
    return published == there or published.endswith(f"_{there}")


def tool_findings(name: str, found: str, needed: tuple[int, ...]) -> list[Finding]:
    """A tool's `--version` output against what MIG needs of it."""
    has = version(found)
    wanted = ".".join(map(str, needed))
    if not has:
        return [Finding(NOTE, f"{name} does not tell its version", name)]
    words = ".".join(map(str, has))
    if has < needed:
        return [
            Finding(
                WARNING, f"{name} {words} is older than {wanted}", name,
                "it does not hand MIG devices to containers as they are now",
                f"install {name} {wanted} or newer",
            )
        ]  # fmt: skip
    return [Finding(OK, f"{name} {words}", name)]
