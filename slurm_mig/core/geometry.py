"""What fits on one GPU: placements, layouts, and room beside instances that stay.

A set of placements fits when no two share a memory slice AND their compute slices do not exceed
the GPU's: `3g+3g` leaves a compute slice but no memory slice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from slurm_mig.core.model import Gpu, Layout, Placement, Profile


def placements_of(profile: Profile) -> tuple[Placement, ...]:
    """Every legal placement of a profile, from the lowest start."""
    return tuple(Placement(start, profile.size, profile.name) for start in profile.starts)


def fits(gpu: Gpu, placements: Iterable[Placement]) -> bool:
    """True if the GPU can hold exactly these placements at once."""
    chosen = list(placements)
    by_name = {p.name: p for p in gpu.profiles}
    if any(p.profile not in by_name for p in chosen):
        return False
    if any(a.overlaps(b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]):
        return False
    if sum(by_name[p.profile].compute_slices for p in chosen) > gpu.compute_slices:
        return False
    return _within_max(by_name, chosen)


def _within_max(by_name: Mapping[str, Profile], chosen: Sequence[Placement]) -> bool:
    """Profiles with an attribute (`+me`) share engines of which there is one set: one in all."""
    tally = Counter(p.profile for p in chosen)
    if any(n > by_name[name].max_count for name, n in tally.items()):
        return False
    single = sum(n for name, n in tally.items() if by_name[name].attribute in ("me", "me.all"))
    return single <= 1


def layouts(gpu: Gpu, profiles: Sequence[str] | None = None) -> Iterator[Layout]:
    """Every non-empty layout of a GPU, with positions; only of `profiles` if they are given."""
    legal = sorted(
        placement
        for profile in gpu.profiles
        if profiles is None or profile.name in profiles
        for placement in placements_of(profile)
    )

    def extend(chosen: tuple[Placement, ...], first: int) -> Iterator[Layout]:
        for n in range(first, len(legal)):
            grown = (*chosen, legal[n])
            if fits(gpu, grown):
                yield frozenset(grown)
                yield from extend(grown, n + 1)

    return extend((), 0)


def ways_to_add(gpu: Gpu, fixed: Layout, wanted: Mapping[str, int]) -> Iterator[Layout]:
    """Every way to place the wanted counts beside `fixed` (only `fixed` is in the way).

    Yields the added placements. The larger profiles are placed first, so that the first answers
    come quickly; identical profiles are placed in order of their start.
    """
    names = sorted(
        (name for name, n in wanted.items() for _ in range(n)),
        key=lambda name: (-(p.size if (p := gpu.profile(name)) else 0), name),
    )

    def place(n: int, added: tuple[Placement, ...]) -> Iterator[Layout]:
        if n == len(names):
            yield frozenset(added)
            return
        profile = gpu.profile(names[n])
        if profile is None:
            return
        for placement in placements_of(profile):
            if added and names[n - 1] == names[n] and placement <= added[-1]:
                continue
            if fits(gpu, (*fixed, *added, placement)):
                yield from place(n + 1, (*added, placement))

    return place(0, ())


def most(gpu: Gpu, profile: Profile, fixed: Layout) -> int:
    """The most instances of one profile that the GPU can hold beside `fixed`."""
    added: list[Placement] = []
    for placement in placements_of(profile):
        if fits(gpu, (*fixed, *added, placement)):
            added.append(placement)
    return len(added)


def most_of(cut: Iterable[Gpu], whole: Iterable[str]) -> dict[str, int]:
    """The most devices of each type that a node can have; `cut` are GPUs that can have MIG on,
    `whole` the types of those that can be off."""
    found: Counter[str] = Counter(whole)
    for gpu in cut:
        for profile in () if gpu.owner else gpu.profiles:
            foreign = gpu.foreign
            count = most(gpu, profile, foreign) if foreign else profile.max_count
            found.update({profile.name: count} if count else {})
    return dict(found)


def fill(gpu: Gpu, kept: Layout, wanted: Iterable[Placement]) -> Layout:
    """The placements of `wanted` (a baseline, say) that still fit beside `kept`, in order."""
    added: list[Placement] = []
    for placement in sorted(wanted):
        if placement not in kept and fits(gpu, (*kept, *added, placement)):
            added.append(placement)
    return frozenset(added)
