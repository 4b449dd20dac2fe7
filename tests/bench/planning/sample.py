"""Random clusters and queues for the planner's benchmark and property tests, from a seed.

What waits is what Slurm cannot start: every instance of two compute slices and more is busy, and
what is idle is too small. Nodes have one model each, GPUs cut into a few usual layouts. Jobs take
the lowest free index of a type, as Slurm does: the small ones were filled further, and jobs then
ended at random until 60 % of all instances are busy, so that their hulls have holes.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

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
    is_filler,
)

DATA = Path(slurm_mig.__file__).parent / "data" / "mig-profiles.json"

LAYOUTS = {
    7: (
        ("1@0 1@1 1@2 1@3 1@4 1@5 1@6", 4),
        ("1@0 1@1 1@2 1@3 3@4", 3),
        ("2@0 2@2 3@4", 2),
        ("3@0 3@4", 2),
        ("1@0 1@1 2@2 2@4 1@6", 2),
        ("4@0 2@4 1@6", 1),
        ("7@0", 1),
    ),
    4: (("1@0 1@1 1@2 1@3", 2), ("2@0 2@2", 2), ("4@0", 1)),
}
"""Usual layouts as profile@start, by compute slices of the model, with how usual each is."""

MODELS = (
    ("NVIDIA A100-SXM4-40GB", 8, 3),
    ("NVIDIA A100-SXM4-80GB", 8, 3),
    ("NVIDIA H100 80GB HBM3", 8, 3),
    ("NVIDIA A30", 4, 1),
)
"""Model, GPUs of a node, how usual."""


def profiles_of(model: str) -> tuple[Profile, ...]:
    found = next(m for m in json.loads(DATA.read_text()) if m["gpu"] == model)
    return tuple(
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


def plain(profiles: tuple[Profile, ...]) -> dict[int, Profile]:
    """The profile of each number of compute slices that has the least memory and no extras."""
    found: dict[int, Profile] = {}
    for p in profiles:
        if not p.attribute and (
            p.compute_slices not in found or p.size < found[p.compute_slices].size
        ):
            found[p.compute_slices] = p
    return found


@dataclass(frozen=True)
class Sample:
    """A cluster and its queue."""

    views: tuple[NodeView, ...]
    requests: tuple[JobRequest, ...]


def sample(
    gpus: int, jobs: int, seed: int = 1, busy: float = 0.6, *, scattered: bool = False
) -> Sample:
    """`scattered`: what is busy is so anywhere, whatever its size."""
    dice = random.Random(seed)
    views: list[NodeView] = []
    left = gpus
    while left:
        model, count, _ = dice.choices(MODELS, [m[2] for m in MODELS])[0]
        count = min(count, left)
        left -= count
        views.append(_node(dice, f"n{len(views)}", model, count, busy, scattered=scattered))
    return Sample(tuple(views), _queue(dice, views, jobs))


def _node(
    dice: random.Random, name: str, model: str, count: int, busy: float, *, scattered: bool
) -> NodeView:
    profiles = profiles_of(model)
    by_slices = plain(profiles)
    usual = LAYOUTS[max(by_slices)]
    gpus = []
    for index in range(count):
        text = dice.choices([u[0] for u in usual], [u[1] for u in usual])[0]
        placements = []
        for word in text.split():
            slices, _, start = word.partition("@")
            profile = by_slices[int(slices)]
            placements.append(Placement(int(start), profile.size, profile.name))
        gpus.append(_gpu(index, model, profiles, placements))
    total = sum(g.capacity for g in gpus)
    devices = [d for g in gpus for d in slots.devices_of(g, "")]
    arranged = slots.with_files(slots.arrange(total, {}, devices), gpus, "/caps")
    choose = _anywhere if scattered else _busy
    taken = choose(dice, [d.type for d in arranged], busy)
    held = tuple(
        Allocation(10**6 + 1000 * n + i, "someone", frozenset({i}))
        for n, i in enumerate(sorted(taken))
    )
    cpus = 16 * count
    used = min(cpus, len(taken) * 2)
    partition = "main" if "A30" not in model else "small"
    features = frozenset({"nvme"}) if dice.random() < 0.5 else frozenset()
    shown = SlurmNode(
        name,
        frozenset({"MIXED"}),
        "",
        slots.tally(arranged),
        cpus=cpus,
        cpus_alloc=used,
        memory_mib=64_000 * count,
        memory_alloc_mib=8_000 * len(taken),
        partitions=frozenset({partition, "all"}),
        features=features,
        allocations=held,
    )
    return NodeView(shown, tuple(gpus), arranged)


def _gpu(index: int, model: str, profiles: tuple[Profile, ...], placements: list[Placement]) -> Gpu:
    base = 3 + 135 * index
    instances = tuple(
        Instance(p, n, f"MIG-{index}-{p}", base + 9 * n, (f"/dev/nvidia{index}", f"/c{index}-{n}"))
        for n, p in enumerate(sorted(placements))
    )
    return Gpu(
        index,
        index,
        f"GPU-{index}",
        model,
        40_000,
        mig=True,
        profiles=profiles,
        instances=instances,
        file=f"/dev/nvidia{index}",
        mig_pending=True,
        instance_minors=tuple(base + 9 * gi for gi in range(15)),
        spare_minors=tuple(base + 9 * gi + 8 for gi in range(7)),
    )


def _busy(dice: random.Random, types: list[str], share: float) -> set[int]:
    """Indexes that jobs have."""
    runs: dict[str, list[int]] = defaultdict(list)
    for index, gres_type in enumerate(types):
        if not is_filler(gres_type):
            runs[gres_type].append(index)
    small = [i for name, run in runs.items() if name.startswith("1g") for i in run]
    large = {i for name, run in runs.items() if not name.startswith("1g") for i in run}
    wanted = max(0, round((len(small) + len(large)) * share) - len(large))
    filled = small[: min(len(small), wanted + len(small) // 5)]
    return large | set(dice.sample(filled, min(wanted, len(filled))))


def _anywhere(dice: random.Random, types: list[str], share: float) -> set[int]:
    """Indexes that jobs have, at random."""
    there = [i for i, gres_type in enumerate(types) if not is_filler(gres_type)]
    return set(dice.sample(there, round(len(there) * share)))


def _queue(dice: random.Random, views: list[NodeView], jobs: int) -> tuple[JobRequest, ...]:
    """Jobs of every shape, in proportion to how usual each model is."""
    requests = []
    for n in range(jobs):
        view = dice.choice(views)
        by_slices = plain(view.gpus[0].profiles)
        kinds = [k for k in sorted(by_slices) if k > 1]
        slices = dice.choices(kinds, [{2: 4, 3: 5, 4: 3, 7: 3}[k] for k in kinds])[0]
        count = dice.choices((1, 2, 4), (27, 2, 1))[0] if slices < 4 else 1
        partition = sorted(view.slurm.partitions)[dice.random() < 0.7]
        features = (frozenset({"nvme"}),) if dice.random() < 0.15 else ()
        requests.append(
            JobRequest(
                job_id=n + 1,
                user=f"user{dice.randrange(40)}",
                partition=partition,
                priority=dice.randrange(1000, 100_000),
                gpus={by_slices[slices].name: count},
                nodes=2 if dice.random() < 0.02 else 1,
                cpus=count * dice.choice((1, 1, 2, 4)),
                memory_mib=count * slices * 2000,
                features=features,
                submit_time=n,
                reason="Resources",
            )
        )
    return tuple(requests)
