"""The site's administrator at work, before slurm-mig: cuts GPUs, writes gres.conf lines.

    python -m tests.testbed.cut '1g.5gb*7' '1g.5gb*7' -     one word per GPU
    python -m tests.testbed.cut --gres NODE                 prints the site's gres.conf lines

Uses pynvml itself, not the product.
"""

from __future__ import annotations

import sys
from ctypes import byref
from pathlib import Path
from typing import Any

import pynvml


def cut(index: int, word: str) -> None:
    """Create the instances that a word like `1g.5gb*7` names, where the driver wants them."""
    name, _, count = word.partition("*")
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    profile = next(p for p in _profiles(device) if _name(p) == name)
    for _ in range(int(count or 1)):
        instance = pynvml.nvmlDeviceCreateGpuInstance(device, profile.id)
        pynvml.nvmlGpuInstanceCreateComputeInstance(instance, 0)


def _name(info: Any) -> str:
    text = info.name.decode() if isinstance(info.name, bytes) else info.name
    return str(text).removeprefix("MIG ")


def _profiles(device: Any) -> list[Any]:
    found = []
    for number in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            found.append(pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number))
        except pynvml.NVMLError:
            continue
    return found


def gres_lines(node: str) -> list[str]:
    """One line per instance, by hand, as the guides say."""
    minors = dict(
        line.split(" ")
        for line in Path("/proc/driver/nvidia-caps/mig-minors").read_text().splitlines()
    )
    lines = [f"NodeName={node} AutoDetect=off"]
    for index in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        minor = pynvml.nvmlDeviceGetMinorNumber(device)
        found = list(_instances(device, minor, minors))
        for gres_type, caps in found:
            lines.append(
                f"NodeName={node} Name=gpu Type={gres_type} MultipleFiles=/dev/nvidia{minor},"
                + ",".join(f"/dev/nvidia-caps/nvidia-cap{c}" for c in caps)
            )
        if not found:
            lines.append(f"NodeName={node} Name=gpu Type=l40s File=/dev/nvidia{minor}")
    return lines


def _instances(device: Any, minor: int, minors: dict[str, str]) -> list[tuple[str, list[str]]]:
    found = []
    try:
        profiles = _profiles(device)
    except pynvml.NVMLError:
        return []
    for profile in profiles:
        count = pynvml.c_uint(0)
        array = (pynvml.c_nvmlGpuInstance_t * profile.instanceCount)()
        pynvml.nvmlDeviceGetGpuInstances(device, profile.id, array, byref(count))
        for handle in array[: count.value]:
            gi = pynvml.nvmlGpuInstanceGetInfo(handle).id
            key = f"gpu{minor}/gi{gi}"
            found.append((_name(profile), [minors[f"{key}/access"], minors[f"{key}/ci0/access"]]))
    return found


def main(words: list[str]) -> None:
    pynvml.nvmlInit()
    if words[0] == "--gres":
        print("\n".join(gres_lines(words[1])))
        return
    for index, word in enumerate(words):
        if word != "-":
            cut(index, word)


if __name__ == "__main__":
    main(sys.argv[1:])
