"""GPUs and nodes for tests of the core, with the profiles of the project's own data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import slurm_mig
from slurm_mig.core import slots
from slurm_mig.core.model import (
    Allocation,
    Gpu,
    Instance,
    JobRequest,
    NodeView,
    Placement,
    Profile,
    SlurmNode,
)

DATA = Path(slurm_mig.__file__).parent / "data" / "mig-profiles.json"
A100 = "NVIDIA A100-SXM4-40GB"
A30 = "NVIDIA A30"


def models() -> dict[str, Any]:
    return {m["gpu"]: m for m in json.loads(DATA.read_text()) if m["complete"]}


def gpu(model: str = A100, index: int = 0, *layout: Placement) -> Gpu:
    """A GPU of a model in MIG mode with these instances."""
    found = models()[model]
    profiles = tuple(
        Profile(
            p["name"],
            p["id"],
            p["slices"],
            p["placements"][0][1],
            tuple(start for start, _ in p["placements"]),
            p["max"],
        )
        for p in found["profiles"]
    )
    base = 3 + 135 * index
    return Gpu(
        index,
        index,
        f"GPU-{index}",
        model,
        found["memory_mb"],
        mig=True,
        profiles=profiles,
        instances=tuple(instance(index, p) for p in sorted(layout)),
        file=f"/dev/nvidia{index}",
        mig_pending=True,
        instance_minors=tuple(base + 9 * gi for gi in range(15)),
        spare_minors=tuple(base + 9 * gi + 8 for gi in range(7)),
    )


def instance(index: int, placement: Placement) -> Instance:
    gi = placement.start + {8: 0, 4: 1, 2: 3, 1: 7}.get(placement.size, 0)
    minor = 3 + 135 * index + 9 * gi
    files = (f"/dev/nvidia{index}", f"/caps/nvidia-cap{minor}", f"/caps/nvidia-cap{minor + 1}")
    return Instance(placement, gi, f"MIG-{index}-{placement}", minor, files)


def at(profile: str, start: int) -> Placement:
    """A placement of an A100-40GB or A30 profile."""
    sizes = {"1g.10gb": 2, "1": 1, "2": 2, "3": 4, "4": 4, "7": 8}
    a30 = {"1g.6gb": 1, "2g.12gb": 2, "4g.24gb": 4}
    return Placement(start, a30.get(profile) or sizes.get(profile) or sizes[profile[0]], profile)


def ones(count: int = 7) -> list[Placement]:
    return [at("1g.5gb", start) for start in range(count)]


def node(
    gpus: Iterable[Gpu],
    jobs: Mapping[int, Iterable[int]] | None = None,
    name: str = "n1",
    **changes: Any,
) -> NodeView:
    """A managed node whose slots are in the order of enrolment; `jobs` gives each its indexes."""
    gpus = tuple(gpus)
    total = sum(g.capacity if g.mig else 1 for g in gpus)
    devices = [d for g in gpus for d in slots.devices_of(g, "whole")]
    held = tuple(
        Allocation(job, "alice", frozenset(indexes)) for job, indexes in (jobs or {}).items()
    )
    arranged = slots.with_files(slots.arrange(total, {}, devices), gpus, "/caps")
    shown = SlurmNode(
        name,
        frozenset({"IDLE"}),
        "",
        slots.tally(arranged),
        cpus=32,
        cpus_alloc=0,
        memory_mib=64000,
        memory_alloc_mib=0,
        partitions=frozenset({"main"}),
        allocations=held,
    )
    view = NodeView(shown, gpus, arranged)
    return replace(view, **changes) if changes else view


def job(number: int, gpus: Mapping[str, int], **changes: Any) -> JobRequest:
    request = JobRequest(number, "bob", "main", 100, gpus, reason="Resources")
    return replace(request, **changes) if changes else request
