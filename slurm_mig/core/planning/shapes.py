"""One GPU model's geometry, compiled: every legal placement is a bit, every set of them a number.

What fits is asked millions of times for a large cluster, so it is asked of integers: two
placements exclude each other when their memory slices overlap; compute slices, the most of a
profile and the media engines (of which there is one set) are counted as placements are added.
`core/geometry` says the same slowly; a test holds the two against each other.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from functools import cached_property

from slurm_mig.core.model import Layout, Placement, Profile


@functools.lru_cache(maxsize=64)
def shape_of(profiles: tuple[Profile, ...]) -> Shape:
    """The shape of these profiles, one for a process."""
    return Shape(profiles)


class Shape:
    """Geometry of the GPUs whose driver reports these profiles."""

    def __init__(self, profiles: tuple[Profile, ...]) -> None:
        self.profiles = {p.name: p for p in profiles}
        self.compute_slices = max((p.compute_slices for p in profiles), default=0)
        self.placements: tuple[Placement, ...] = tuple(
            sorted(Placement(s, p.size, p.name) for p in profiles for s in p.starts)
        )
        self.bit = {p: 1 << n for n, p in enumerate(self.placements)}
        self.compute = [self.profiles[p.profile].compute_slices for p in self.placements]
        self.memory = [((1 << p.size) - 1) << p.start for p in self.placements]
        self.single = self._bits(
            p for p in self.placements if self.profiles[p.profile].attribute in ("me", "me.all")
        )
        self.of_profile = {
            name: self._bits(p for p in self.placements if p.profile == name)
            for name in self.profiles
        }
        self._blocked: dict[int, int] = {}

    def _bits(self, placements: Iterable[Placement]) -> int:
        return sum(self.bit[p] for p in placements)

    @cached_property
    def overlapping(self) -> list[int]:
        """For each placement, the bits of all others that share a memory slice with it."""
        return [
            sum(
                1 << m
                for m, other in enumerate(self.memory)
                if m != n and other & mine
            )
            for n, mine in enumerate(self.memory)
        ]  # fmt: skip

    @cached_property
    def limited(self) -> list[int]:
        """For each placement, the bits of its profile where the most of it can be exceeded.

        Memory alone allows no more than the driver's maximum of most profiles; then this is 0.
        """
        return [
            self.of_profile[p.profile]
            if self.profiles[p.profile].max_count < len(self.profiles[p.profile].starts)
            else 0
            for p in self.placements
        ]

    def blocked(self, code: int) -> int:
        """The bits of a set and of every placement that shares a memory slice with one of it."""
        found = self._blocked.get(code)
        if found is None:
            found = code
            for number in self.numbers(code):
                found |= self.overlapping[number]
            self._blocked[code] = found
        return found

    def code(self, layout: Iterable[Placement]) -> int:
        """The set as a number. Raises KeyError for a placement that the model does not have."""
        return self._bits(layout)

    def numbers(self, code: int) -> Iterator[int]:
        """The numbers of a set's placements, ascending."""
        while code:
            low = code & -code
            yield low.bit_length() - 1
            code ^= low

    def layout(self, code: int) -> Layout:
        return frozenset(self.placements[n] for n in self.numbers(code))

    def compute_of(self, code: int) -> int:
        return sum(self.compute[n] for n in self.numbers(code))

    def counts(self, code: int) -> dict[str, int]:
        """How many of each profile a set has."""
        found = {name: (code & bits).bit_count() for name, bits in self.of_profile.items()}
        return {name: n for name, n in found.items() if n}

    def addable(self, code: int, used: int, number: int) -> bool:
        """True if the placement fits beside the set, whose compute slices are `used`."""
        bit = 1 << number
        if code & self.overlapping[number] or used + self.compute[number] > self.compute_slices:
            return False
        if bit & self.single and code & self.single:
            return False
        bits = self.limited[number]
        most = self.profiles[self.placements[number].profile].max_count
        return not bits or (code & bits).bit_count() < most

    def fits(self, code: int) -> bool:
        """True if the GPU can hold exactly this set."""
        there = used = 0
        for number in self.numbers(code):
            if not self.addable(there, used, number):
                return False
            there |= 1 << number
            used += self.compute[number]
        return True

    def additions(self, fixed: int, among: int) -> Iterator[int]:
        """Every set of placements of `among` that fits beside `fixed`, the empty one first."""
        candidates = list(self.numbers(among & ~self.blocked(fixed)))
        # What was added, its compute slices, and the first candidate that may come next.
        todo = [(0, self.compute_of(fixed), 0)]
        while todo:
            added, used, first = todo.pop()
            yield added
            for n in range(len(candidates) - 1, first - 1, -1):
                number = candidates[n]
                if self.addable(fixed | added, used, number):
                    todo.append((added | 1 << number, used + self.compute[number], n + 1))

    def layouts(self, profiles: Iterable[str] | None = None) -> Iterator[int]:
        """Every non-empty layout of a GPU, only of `profiles` if they are given."""
        names = self.profiles if profiles is None else profiles
        among = 0
        for name in names:
            among |= self.of_profile[name]
        return (code for code in self.additions(0, among) if code)
