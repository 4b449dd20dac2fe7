"""What a node may say of itself: the facts it sends, looked at before anybody goes by them.

A node that was taken over can say what it likes. Names, files and types of its answer end up in
gres.conf and slurm.conf, which every daemon reads, and its numbers in the planner: so only what a
real node could say is believed, and the worst that a node can do is to be left alone. Types and
unknown fields are the codec's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

from slurm_mig.core.model import Gpu, Instance, Placement, Profile
from slurm_mig.core.records import NodeFacts
from slurm_mig.errors import UnreachableError

PROFILE = re.compile(r"[1-9]\d?g\.[1-9]\d{0,3}gb([+-][a-z]+(\.[a-z]+)?(,?[+-][a-z.]+)*)?")
FILE = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
UUID = re.compile(r"((GPU|MIG)-[A-Za-z0-9/.@-]+)?")
MODEL = re.compile(r"[ -~]{1,96}")
GRES_KEY = re.compile(r"[A-Za-z]{1,32}")
GRES_VALUE = re.compile(r"[A-Za-z0-9_.,:/\[\]()+-]{0,4096}")

MOST_GPUS = 32
MOST_PARTS = 64
"""Profiles, placements, slices or instances of one GPU; real ones have at most 18, 8, 12 and 7."""
MOST_NUMBER = 1 << 40
"""Of anything: MiB, ids, minors, pids."""
MOST_TEXT = 1000


def believed(facts: NodeFacts, name: str) -> NodeFacts:
    """The facts, if a real node could have sent them; else raises UnreachableError with a fault."""
    fault = next(_faults(facts), "")
    if fault:
        raise UnreachableError(
            f"{name}: its answer is not believed: {fault}; nothing was done with it",
            hint="Is the slurm-mig there the same version, and is the node still yours?",
        )
    return facts


def gres_lines(lines: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    """A node's own gres.conf attributes, if they can stand in one. Raises UnreachableError."""
    for line in lines:
        for key, value in line.items():
            if not (GRES_KEY.fullmatch(key) and GRES_VALUE.fullmatch(value)):
                raise UnreachableError(
                    f"{name}: its answer is not believed: {key[:40]!r}={value[:40]!r} is no "
                    "attribute of gres.conf; nothing was done with it"
                )
    return lines


def _faults(facts: NodeFacts) -> Iterator[str]:
    if len(facts.gpus) > MOST_GPUS:
        yield f"{len(facts.gpus)} GPUs"
    if [gpu.index for gpu in facts.gpus] != list(range(len(facts.gpus))):
        yield "its GPUs are not numbered 0, 1, …"
    yield from _texts("driver", [facts.driver])
    yield from _texts("hook", facts.hooks)
    yield from _texts("copy", [*facts.copies, *facts.copies.values()])
    yield from _numbers("job", facts.stepd_jobs)
    yield from _numbers("slurmd's pid", [facts.slurmd_pid])
    files: set[str] = set()
    for gpu in facts.gpus:
        yield from _gpu(gpu)
        own = {gpu.file, *(f for i in gpu.instances for f in i.files)}
        if own & files:
            yield f"GPU {gpu.index} has a device file of another GPU"
        files |= own


def _gpu(gpu: Gpu) -> Iterator[str]:
    what = f"GPU {gpu.index}"
    if not UUID.fullmatch(gpu.uuid) or not MODEL.fullmatch(gpu.model):
        yield f"{what}: {gpu.uuid[:40]!r}, {gpu.model[:40]!r} is no UUID and model"
    if gpu.file and not FILE.fullmatch(gpu.file):
        yield f"{what}: {gpu.file[:80]!r} is no device file"
    yield from _texts(what, (gpu.pci, gpu.owner))
    numbers = (gpu.minor, gpu.memory_mib, *gpu.pids, *gpu.instance_minors, *gpu.spare_minors)
    yield from _numbers(what, numbers)
    yield from _few(f"{what}: profiles", gpu.profiles)
    yield from _few(f"{what}: instances", gpu.instances)
    yield from _few(f"{what}: minors", gpu.instance_minors)
    yield from _few(f"{what}: spare minors", gpu.spare_minors)
    for profile in gpu.profiles:
        yield from _profile(what, profile)
    for instance in gpu.instances:
        yield from _instance(what, instance)
    placements = sorted(i.placement for i in gpu.instances)
    for one, other in pairwise(placements):
        if one.overlaps(other):
            yield f"{what}: {one} and {other} overlap"


def _profile(what: str, profile: Profile) -> Iterator[str]:
    if not PROFILE.fullmatch(profile.name):
        yield f"{what}: {profile.name[:40]!r} is no profile"
    yield from _few(f"{what}: placements", profile.starts)
    sizes = (profile.size, profile.compute_slices, profile.max_count, *profile.starts)
    if any(not 0 <= number <= MOST_PARTS for number in sizes) or not profile.size:
        yield f"{what}: {profile.name} has impossible sizes"
    yield from _numbers(what, (profile.id, profile.memory_mib))


def _instance(what: str, instance: Instance) -> Iterator[str]:
    yield from _placement(what, instance.placement)
    if not UUID.fullmatch(instance.uuid):
        yield f"{what}: {instance.uuid[:40]!r} is no UUID"
    for file in instance.files:
        if not FILE.fullmatch(file):
            yield f"{what}: {file[:80]!r} is no device file"
    yield from _few(f"{what}: files", instance.files)
    yield from _few(f"{what}: compute instances", instance.computes)
    yield from _numbers(what, (instance.gi, instance.gi_minor, instance.compute_instances))
    yield from _numbers(what, instance.pids)
    for part in instance.computes:
        yield from _texts(what, (part.name, part.uuid))


def _placement(what: str, placement: Placement) -> Iterator[str]:
    if not PROFILE.fullmatch(placement.profile):
        yield f"{what}: {placement.profile[:40]!r} is no profile"
    if not (0 <= placement.start < MOST_PARTS and 0 < placement.size <= MOST_PARTS):
        yield f"{what}: {placement} is no placement"


def _few(what: str, parts: Iterable[object] | Mapping[str, object]) -> Iterator[str]:
    count = sum(1 for _ in parts)
    if count > MOST_PARTS:
        yield f"{what}: {count} of them"


def _numbers(what: str, numbers: Iterable[int]) -> Iterator[str]:
    # -1 is what NVML's own "none" comes to.
    if any(not -1 <= number <= MOST_NUMBER for number in numbers):
        yield f"{what}: a number out of range"


def _texts(what: str, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if len(text) > MOST_TEXT or not text.isprintable():
            yield f"{what}: {text[:40]!r} is no plain text"
