"""What people read of GPUs: the inventory, what fits, a change; and the same as plain values.

Pure functions; only the command line prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from slurm_mig.core import geometry
from slurm_mig.core.layouts import LayoutChange, cut_of
from slurm_mig.core.model import Gpu, Instance, Profile
from slurm_mig.core.publish import shorten

Who = Callable[[int], str]
"""A process in words."""


def mode_words(gpu: Gpu) -> str:
    """`MIG on`, `MIG off, on pending`, `no MIG`."""
    if not gpu.mig_capable:
        return "no MIG"
    word = {True: "on", False: "off"}
    pending = "" if gpu.mig_pending == gpu.mig else f", {word[gpu.mig_pending]} pending"
    return f"MIG {word[gpu.mig]}{pending}"


def inventory_text(driver: str, gpus: Sequence[Gpu], faults: Mapping[int, str], who: Who) -> str:
    """Every GPU and instance with what identifies it and who holds it."""
    lines = [f"driver {driver}, {_count(len(gpus) + len(faults), 'GPU')}"]
    for gpu in gpus:
        reset = ", a mode change resets it" if gpu.mig_capable and gpu.mode_needs_reset else ""
        lines += [
            "",
            f"GPU {gpu.index}  {gpu.model}  {gpu.memory_mib} MiB  {gpu.file}  {gpu.pci}".rstrip(),
            f"  {gpu.uuid}  {mode_words(gpu)}{reset}",
        ]
        lines += [f"  {line}" for line in _instance_lines(gpu.instances)]
        lines += [f"  {line}" for line in _owner_lines(gpu)]
        lines += [f"  held by {who(pid)}" for pid in _whole_gpu_pids(gpu)]
        for instance in gpu.instances:
            lines += [f"  {instance.placement} held by {who(pid)}" for pid in instance.pids]
    for index, fault in sorted(faults.items()):
        lines += ["", f"GPU {index}  cannot be read: {fault}"]
    return "\n".join(lines) + "\n"


def _owner_lines(gpu: Gpu) -> list[str]:
    """What is not Slurm's, by the word of the controller."""
    if gpu.owner:
        return [f"all of it is {gpu.owner}'s, not Slurm's"]
    return [f"{i.placement} is {i.owner}'s, not Slurm's" for i in gpu.instances if i.owner]


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _whole_gpu_pids(gpu: Gpu) -> list[int]:
    in_instances = {pid for instance in gpu.instances for pid in instance.pids}
    return sorted(set(gpu.pids) - in_instances)


def _instance_lines(instances: Sequence[Instance]) -> list[str]:
    rows = [("device", "place", "gi", "ci", "caps", "uuid")] if instances else []
    for instance in instances:
        place = f"{instance.placement.start}:{instance.placement.size}"
        for compute in instance.computes:
            caps = f"{instance.gi_minor},{compute.minor}"
            rows.append(
                (compute.name, place, str(instance.gi), str(compute.ci), caps, compute.uuid)
            )
        if not instance.computes:
            name = f"{instance.placement.profile} (no compute instance)"
            rows.append((name, place, str(instance.gi), "-", str(instance.gi_minor), "-"))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def inventory_json(
    driver: str, gpus: Sequence[Gpu], faults: Mapping[int, str], who: Callable[[int], Any]
) -> dict[str, Any]:
    """What `inventory_text` says, as plain values."""
    return {
        "driver": driver,
        "gpus": [_gpu_json(gpu, who) for gpu in gpus],
        "faults": [{"index": index, "fault": fault} for index, fault in sorted(faults.items())],
    }


def _gpu_json(gpu: Gpu, who: Callable[[int], Any]) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "minor": gpu.minor,
        "uuid": gpu.uuid,
        "model": gpu.model,
        "memory_mib": gpu.memory_mib,
        "file": gpu.file,
        "pci": gpu.pci,
        "mig_capable": gpu.mig_capable,
        "mig": gpu.mig,
        "mig_pending": gpu.mig_pending,
        "mode_needs_reset": gpu.mode_needs_reset,
        "owner": gpu.owner or None,
        "instances": [_instance_json(gpu, instance, who) for instance in gpu.instances],
        "holders": [who(pid) for pid in _whole_gpu_pids(gpu)],
    }


def _instance_json(gpu: Gpu, instance: Instance, who: Callable[[int], Any]) -> dict[str, Any]:
    return {
        "profile": instance.placement.profile,
        "start": instance.placement.start,
        "size": instance.placement.size,
        "gi": instance.gi,
        "minor": instance.gi_minor,
        "owner": instance.owner or None,
        "files": list(instance.files),
        "compute_instances": [
            {"ci": c.ci, "name": c.name, "slices": c.slices, "uuid": c.uuid, "minor": c.minor}
            for c in instance.computes
        ],
        "holders": [who(pid) for pid in instance.pids],
    }


# -- profiles --------------------------------------------------------------------------------------


def room(gpu: Gpu, profile: Profile) -> tuple[int, ...]:
    """Starts at which one more of the profile would fit now."""
    return tuple(
        place.start
        for place in geometry.placements_of(profile)
        if geometry.fits(gpu, (*gpu.layout, place))
    )


def profiles_text(gpus: Sequence[Gpu], free: Mapping[int, Mapping[str, int]]) -> str:
    """What each GPU can hold, how many more the driver would make now, and where."""
    lines: list[str] = []
    for gpu in gpus:
        lines.append(f"GPU {gpu.index}  {gpu.model}  {mode_words(gpu)}")
        if not gpu.profiles:
            lines.append(f"  {_no_profiles(gpu)}")
            continue
        rows = [("profile", "id", "MiB", "slices", "most", "free", "free at", "possible at")]
        for profile in gpu.profiles:
            count = free.get(gpu.index, {}).get(profile.name)
            rows.append(
                (
                    profile.name, str(profile.id), str(profile.memory_mib),
                    f"{profile.compute_slices}+{profile.size}", str(profile.max_count),
                    "-" if count is None else str(count),
                    _numbers(room(gpu, profile)) if gpu.mig else "-", _numbers(profile.starts),
                )
            )  # fmt: skip
        lines += [f"  {line}" for line in table(rows)]
    return "\n".join(lines) + "\n"


def _no_profiles(gpu: Gpu) -> str:
    if gpu.mig_capable:
        return "this driver tells the profiles only while MIG is on (newer than R535 always does)"
    return "this GPU cannot do MIG"


def _numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers)) or "-"


def profiles_json(gpus: Sequence[Gpu], free: Mapping[int, Mapping[str, int]]) -> dict[str, Any]:
    return {
        "gpus": [
            {
                "index": gpu.index,
                "model": gpu.model,
                "mig_capable": gpu.mig_capable,
                "mig": gpu.mig,
                "profiles": [
                    {
                        "name": p.name,
                        "id": p.id,
                        "memory_mib": p.memory_mib,
                        "compute_slices": p.compute_slices,
                        "size": p.size,
                        "most": p.max_count,
                        "starts": list(p.starts),
                        "free": free.get(gpu.index, {}).get(p.name),
                        "free_starts": list(room(gpu, p)) if gpu.mig else [],
                    }
                    for p in gpu.profiles
                ],
            }
            for gpu in gpus
        ]
    }


# -- changes ---------------------------------------------------------------------------------------


def change_text(changes: Sequence[LayoutChange]) -> str:
    """A change as a diff: what stays, goes and comes."""
    lines = []
    for part in changes:
        if part.empty:
            lines.append(f"GPU {part.gpu}: already so")
            continue
        lines.append(f"GPU {part.gpu}:")
        lines += [f"    {cut}" for cut in part.kept]
        lines += [f"  - {placement}" for placement in part.destroyed]
        if part.switch:
            lines.append(f"  {'+' if part.mig else '-'} MIG mode")
        lines += [f"  ~ {cut}" for cut in part.resplit]
        lines += [f"  + {cut}" for cut in part.created]
    return "\n".join(lines) + "\n" if lines else ""


def change_json(changes: Sequence[LayoutChange], *, done: bool) -> dict[str, Any]:
    return {
        "done": done,
        "gpus": [
            {
                "index": part.gpu,
                "mig": part.mig,
                "mode_changed": part.switch,
                "kept": [str(cut) for cut in part.kept],
                "destroyed": [str(placement) for placement in part.destroyed],
                "resplit": [str(cut) for cut in part.resplit],
                "created": [str(cut) for cut in part.created],
            }
            for part in changes
        ],
    }


# -- gres ------------------------------------------------------------------------------------------


def gres_devices(gpus: Sequence[Gpu]) -> list[tuple[str, tuple[str, ...]]]:
    """Slurm's type and files of every device that a job could have. A GPU with MIG on and no
    instance is no device: offering it would offer what runs nothing."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for gpu in gpus:
        if not gpu.mig:
            found.append((whole_type(gpu.model), (gpu.file,)))
        for instance in gpu.instances:
            gi_files = instance.files[:2]
            caps = instance.files[1].rpartition("nvidia-cap")[0] if len(instance.files) > 1 else ""
            for compute in instance.computes:
                found.append((compute.name, (*gi_files, f"{caps}nvidia-cap{compute.minor}")))
    return found


def whole_type(model: str) -> str:
    """The type that Slurm's own nvml plugin gives a GPU without MIG."""
    return model.lower().replace(" ", "_")


def gres_lines(gpus: Sequence[Gpu], node: str) -> list[str]:
    """gres.conf's lines for what is there, then the node's Gres value as a comment."""
    devices = gres_devices(gpus)
    counts: dict[str, int] = {}
    lines = [f"NodeName={node} AutoDetect=off"]
    for gres_type, files in devices:
        counts[gres_type] = counts.get(gres_type, 0) + 1
        key = "File" if len(files) == 1 else "MultipleFiles"
        lines.append(f"NodeName={node} Name=gpu Type={gres_type} {key}={shorten(files)}")
    return [*lines, f"# slurm.conf: NodeName={node} … Gres={gres_value(counts)}"]


def gres_value(counts: Mapping[str, int]) -> str:
    return ",".join(f"gpu:{name}:{count}" for name, count in counts.items())


def gres_json(gpus: Sequence[Gpu], node: str) -> dict[str, Any]:
    devices = gres_devices(gpus)
    counts: dict[str, int] = {}
    for gres_type, _ in devices:
        counts[gres_type] = counts.get(gres_type, 0) + 1
    return {
        "node": node,
        "gres": gres_value(counts),
        "devices": [{"type": t, "files": list(files)} for t, files in devices],
    }


def inline_words(gpus: Sequence[Gpu]) -> str:
    """What is there in the words that `apply` takes, places included."""
    words = []
    for gpu in gpus:
        if gpu.mig:
            words.append(f"gpu{gpu.index}={','.join(_inline(gpu))}")
        elif gpu.mig_capable:
            words.append(f"gpu{gpu.index}=off")
    return " ".join(words)


def _inline(gpu: Gpu) -> list[str]:
    words = []
    for instance in gpu.instances:
        cut, place = cut_of(instance), instance.placement
        if not cut.split:
            words.append(f"{place.profile}@{place.start}")
        words += [f"{width}c.{place.profile}@{place.start}" for width in cut.split if width]
    return words
