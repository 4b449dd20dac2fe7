"""How long it takes to create and destroy instances, as published: to choose between changes.

Constants of RL_MIG_scheduler (arXiv 2507.13601), measured through NVML with the compute instance.
Sizes that it does not list are interpolated, newer models take Hopper's. Never a deadline. Pure.
"""

from __future__ import annotations

from typing import TypeVar

from slurm_mig.core.model import Gpu

T = TypeVar("T")

A30 = {1: 110, 2: 120, 4: 130}
AMPERE = {1: 160, 2: 170, 3: 200, 4: 210, 7: 240}
HOPPER = {1: 160, 2: 210, 3: 330, 4: 380, 7: 420}

DESTROY_A30, DESTROY_AMPERE, DESTROY_HOPPER = 100, 210, 240

RESPLIT_MS = 80
"""Other compute instances in a GPU instance that stays; no figure was published: what is left of
a creation without its GPU instance (some 60 to 100 ms of an A100's)."""


def create_ms(gpu: Gpu, profile: str) -> int:
    """Milliseconds for a GPU instance of this profile with its compute instance."""
    table = _of(gpu, A30, AMPERE, HOPPER)
    found = gpu.profile(profile)
    slices = found.compute_slices if found else 1
    return table[min(table, key=lambda known: (abs(known - slices), -known))]


def destroy_ms(gpu: Gpu) -> int:
    """Milliseconds for a GPU instance of any size."""
    return _of(gpu, DESTROY_A30, DESTROY_AMPERE, DESTROY_HOPPER)


def _of(gpu: Gpu, a30: T, ampere: T, hopper: T) -> T:
    """Ampere's mode change resets the GPU; of its two shapes the A30 has four slices."""
    if not gpu.mode_needs_reset:
        return hopper
    return a30 if gpu.compute_slices <= 4 else ampere
