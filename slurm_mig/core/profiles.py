"""Names of MIG devices: `3g.20gb`, `1g.5gb+me`, and `1c.3g.20gb` for a part of an instance.

A GPU instance's name is the driver's own wherever the driver tells it. The rule here is for
drivers that do not (before R510), and for reading what people write.
"""

from __future__ import annotations

import math
import re

DEVICE = re.compile(
    r"(?:(?P<c>[1-9]\d*)c\.)?(?P<g>[1-9]\d*)g\.[1-9]\d*gb(?:[+-](?:me\.all|me|gfx)(?:,?[+-]?(?:me\.all|me|gfx))*)?"
)

ATTRIBUTES = {7: "+me", 8: "+me", 10: "+gfx", 11: "+gfx", 12: "+gfx",
              13: "-me", 14: "-me", 15: "+me.all", 16: "+me.all", 17: "+gfx"}  # fmt: skip
"""By NVML_GPU_INSTANCE_PROFILE_* (nvml.h, API 13.615)."""

MIB = 1 << 20
GIB = 1 << 30


def parts(device: str) -> tuple[int, str] | None:
    """Compute slices of a device's compute instance (0: it spans its GPU instance), and the GPU
    instance's profile; None for what is no device name. `1c.3g.20gb` gives (1, "3g.20gb"), and
    so does a split that is the whole: `3c.3g.20gb` gives (0, "3g.20gb")."""
    found = DEVICE.fullmatch(device)
    if not found:
        return None
    compute, whole = found["c"], int(found["g"])
    if compute is None:
        return 0, device
    if int(compute) > whole:
        return None
    profile = device.partition(".")[2]
    return (0 if int(compute) == whole else int(compute)), profile


def device_name(profile: str, slices: int, whole: int) -> str:
    """Name of a compute instance of so many slices in a GPU instance of `whole` ones."""
    return profile if slices >= whole else f"{slices}c.{profile}"


def profile_name(number: int, slices: int, memory_mib: int, total_bytes: int) -> str:
    """The name that NVIDIA's tools make where the driver gives none: the share of memory in
    eighths of the GPU's gigabytes (go-nvlib's rule, checked against slurm_mig/data)."""
    eighths = math.ceil(8 * memory_mib * MIB / total_bytes)
    gigabytes = math.floor(eighths / 8 * math.ceil(total_bytes / GIB) + 0.5)
    return f"{slices}g.{gigabytes}gb{ATTRIBUTES.get(number, '')}"
