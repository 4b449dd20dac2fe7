"""What can be made of one GPU now, and at what cost: its options.

An option is a target layout, seen from the programme: how many free instances of each wanted type
it offers, and what it costs. Of all target layouts only those count that no other one beats in
both. Instances are destroyed only where something new stands in their way, and only wanted types
are created (the room left over is filled later, at no cost): every other target is beaten.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from operator import ge, le
from typing import NamedTuple

from slurm_mig.core.planning.limits import Key
from slurm_mig.core.planning.shapes import Shape
from slurm_mig.core.planning.weights import Weights

Supply = tuple[int, ...]
"""Free instances of each wanted type, in the order of the types asked for."""

Loss = tuple[int, ...]
"""Of each type that hulls need: how many idle instances fewer there are; never less than 0."""

Use = tuple[int, ...]
"""What is taken of each limit of the node's group (core/planning/limits.py)."""

Offer = tuple[Supply, Loss, Use, int]
"""What an option offers, what hulls lose by it, what it takes of limits, and what it costs: all
that the programme sees."""


class State(NamedTuple):
    """A GPU, as far as its options depend on it. Sets of placements are the shape's codes."""

    fixed: int = 0
    """Placements that nothing may destroy: busy, or spoken for."""
    idle: int = 0
    """Placements that may be destroyed."""
    baseline: int = 0
    mig: bool = True
    whole: int = -1
    """Position of the GPU's whole type among the wanted types; -1 when it is not wanted."""
    whole_free: bool = False
    """It is whole and free now."""
    switchable: bool = False
    resets: bool = False
    frozen: bool = False
    """Nothing may change here now; what is idle still counts."""
    spare: tuple[int, ...] = ()
    """Of each type that hulls need: how many of the idle ones the node can do without; -1: all."""
    growth: tuple[int, ...] = ()
    """Of each wanted type: for how many more the node's slots have room; empty: for any number."""
    limited: tuple[Key, ...] = ()
    """The limits of the node's group."""


class Option(NamedTuple):
    """A target: what is created and destroyed to get there."""

    supply: Supply
    cost: int
    created: int = 0
    destroyed: int = 0
    mig: bool = True
    changes: bool = True
    loss: Loss = ()
    use: Use = ()

    @property
    def offer(self) -> Offer:
        return self.supply, self.loss, self.use, self.cost


KNOWN = 20_000
"""So many states of a model's GPUs are remembered."""


@functools.lru_cache(maxsize=64)
def table_of(
    shape: Shape, types: tuple[str, ...], guarded: tuple[str, ...], weights: Weights
) -> OptionTable:
    """The table for these, one for a process: what can be made of a GPU is the same each time."""
    return OptionTable(shape, types, guarded, weights)


class OptionTable:
    """Options of one shape's GPUs for a list of wanted types; each state is worked out once.

    `guarded` are the types of which hulls on some node need free instances.
    """

    def __init__(
        self, shape: Shape, types: Sequence[str], guarded: Sequence[str], weights: Weights
    ) -> None:
        self._shape = shape
        self._weights = weights
        self._wanted = [
            (n, shape.of_profile[t]) for n, t in enumerate(types) if t in shape.profiles
        ]
        self._width = len(types)
        self._guarded = [shape.of_profile.get(t, 0) for t in guarded]
        self._among = 0
        for _, bits in self._wanted:
            self._among |= bits
        self._by_size = sorted(
            {(p.size, m) for p, m in zip(shape.placements, shape.memory, strict=True)}, reverse=True
        )
        self._known: dict[State, tuple[Option, ...]] = {}
        self._alone: dict[tuple[int, int], tuple[Option, ...]] = {}
        self._rooms: dict[Sequence[int], tuple[int, ...]] = {}
        self._free: dict[int, int] = {}

    def of(self, state: State) -> tuple[Option, ...]:
        """The options that no other one beats; the first is to leave the GPU as it is."""
        found = self._known.get(state)
        if found is None:
            among = 0
            if not state.frozen:
                among = self.creatable(state.fixed, state.idle, state.growth)
            found = _unbeaten([self._stay(state), *self._changes(state, among)])
            if len(self._known) > KNOWN:
                self._known.clear()
            self._known[state] = found
        return found

    def alone(self, idle: int, limits: int) -> tuple[Option, ...]:
        """The options of a GPU with MIG on that stays as it is; `limits` counts its group's. Most
        GPUs of a busy cluster: all that offer the same have the same."""
        key = idle & self._among, limits
        found = self._alone.get(key)
        if found is None:
            found = (self._stay(State(0, idle, limited=((("", 0),) * limits))),)
            self._alone[key] = found
        return found

    def creatable(self, fixed: int, idle: int, growth: Sequence[int]) -> int:
        """The wanted placements that could be created: clear of what is fixed, and of a type that
        the slots have room for, or that gives one up."""
        among = self._among & ~idle & ~self._shape.blocked(fixed)
        if among and growth:
            for n, bits in self._wanted:
                if growth[n] <= 0 and not idle & bits:
                    among &= ~bits
        return among

    def _bearable(self, state: State, created: int, destroyed: int) -> Loss | None:
        """What hulls lose by the change; None where they do not allow it, as far as one GPU can
        tell."""
        for n, bits in self._wanted if state.growth and created else ():
            more = (created & bits).bit_count() - (destroyed & bits).bit_count()
            if more > state.growth[n]:
                return None
        loss = [0] * len(state.spare)
        for n, spare in enumerate(state.spare):
            bits = self._guarded[n]
            if spare >= 0 and destroyed & bits:
                lost = (destroyed & bits).bit_count() - (created & bits).bit_count()
                if lost > spare:
                    return None
                loss[n] = max(0, lost)
        return tuple(loss)

    def room(self, growth: Sequence[int]) -> tuple[int, ...]:
        """A node's growth as one GPU sees it: no more than it could ever use."""
        found = self._rooms.get(growth)
        if found is None:
            rooms = [0] * self._width if growth else []
            for n, bits in self._wanted if growth else ():
                rooms[n] = min(growth[n], bits.bit_count())
            found = self._rooms[growth] = tuple(rooms)
        return found

    def clipped(self, idle: int, spares: Sequence[int]) -> tuple[int, ...]:
        """A node's spares as one GPU sees them: no more than it has itself."""
        found = list(spares)
        for n, spare in enumerate(spares):
            if spare > 0:
                found[n] = min(spare, (idle & self._guarded[n]).bit_count())
        return tuple(found)

    def _use(self, state: State, created: int, destroyed: int) -> Use:
        if not state.limited:
            return ()
        found = []
        for gres_type, sign in state.limited:
            bits = self._shape.of_profile.get(gres_type, 0)
            more = (created & bits).bit_count() - (destroyed & bits).bit_count()
            found.append(max(0, sign * more))
        return tuple(found)

    def _stay(self, state: State) -> Option:
        nothing, unused = (0,) * len(self._guarded), (0,) * len(state.limited)
        if state.mig:
            supply = self._supply(state.idle)
            return Option(supply, 0, changes=False, loss=nothing, use=unused)
        supply = self._whole(state) if state.whole_free else (0,) * self._width
        return Option(supply, 0, mig=False, changes=False, loss=nothing, use=unused)

    def _changes(self, state: State, among: int) -> Iterator[Option]:
        """Every change that creates some of `among`, or switches MIG, and that hulls allow."""
        if state.frozen:
            return
        if not state.mig:
            if state.switchable and state.whole_free:
                yield from self._from_whole(state)
            return
        free_before = self._largest_free(self._memory(state.fixed))
        for created in self._shape.additions(state.fixed, among):
            if created:
                cost = self._cost(state, created, free_before)
                for kept in self._keepable(state.fixed, created, state.idle):
                    gone = state.idle & ~kept
                    if (loss := self._bearable(state, created, gone)) is not None:
                        paid = cost + self._weights.destroy * gone.bit_count()
                        use, supply = self._use(state, created, gone), self._supply(kept | created)
                        yield Option(supply, paid, created, gone, loss=loss, use=use)
        if state.switchable and not state.fixed and state.whole >= 0:
            yield from self._to_whole(state, free_before)

    def _cost(self, state: State, created: int, free_before: int) -> int:
        """What it costs to create these, what they displace apart."""
        weights, memory = self._weights, self._memory(state.fixed | created)
        cost = weights.publish + weights.create * created.bit_count()
        cost += weights.room * (free_before - self._largest_free(memory))
        if state.baseline:
            before = self._displaced(state, state.fixed)
            after = self._displaced(state, state.fixed | created)
            cost += weights.baseline * (after - before)
        return cost

    def _to_whole(self, state: State, free_before: int) -> Iterator[Option]:
        cost = self._mode_cost(state) + self._weights.destroy * state.idle.bit_count()
        lost = (self._shape.placements[n].size for n in self._shape.numbers(state.baseline))
        cost += self._weights.baseline * sum(lost)
        cost += self._weights.room * free_before
        if (loss := self._bearable(state, 0, state.idle)) is not None:
            use = self._use(state, 0, state.idle)
            yield Option(self._whole(state), cost, 0, state.idle, mig=False, loss=loss, use=use)

    def _from_whole(self, state: State) -> Iterator[Option]:
        for created in self._shape.additions(0, self._among):
            if created and (loss := self._bearable(state, created, 0)) is not None:
                cost = self._mode_cost(state) + self._weights.create * created.bit_count()
                use = self._use(state, created, 0)
                yield Option(self._supply(created), cost, created, loss=loss, use=use)

    def _mode_cost(self, state: State) -> int:
        cost = self._weights.publish + self._weights.mode
        return cost + self._weights.reset if state.resets else cost

    def _keepable(self, fixed: int, created: int, idle: int) -> Sequence[int]:
        """The largest sets of idle placements that can stay beside what is new."""
        new, clear = fixed | created, idle & ~self._shape.blocked(created)
        if not clear or self._shape.fits(new | clear):
            return (clear,)
        fitting = sorted(self._shape.additions(new, clear), key=int.bit_count, reverse=True)
        largest: list[int] = []
        for kept in fitting:
            if not any(kept & other == kept for other in largest):
                largest.append(kept)
        return largest

    def _supply(self, code: int) -> Supply:
        supply = [0] * self._width
        for n, bits in self._wanted:
            supply[n] = (code & bits).bit_count()
        return tuple(supply)

    def _whole(self, state: State) -> Supply:
        return tuple(int(n == state.whole) for n in range(self._width))

    def _memory(self, code: int) -> int:
        mask = 0
        for number in self._shape.numbers(code):
            mask |= self._shape.memory[number]
        return mask

    def _largest_free(self, memory: int) -> int:
        """Memory slices of the largest placement that is clear of the mask."""
        found = self._free.get(memory)
        if found is None:
            found = next((size for size, mask in self._by_size if not mask & memory), 0)
            self._free[memory] = found
        return found

    def _displaced(self, state: State, code: int) -> int:
        """Memory slices of the baseline's placements that cannot be beside the set."""
        lost = 0
        for number in self._shape.numbers(state.baseline & ~code):
            if code & self._shape.overlapping[number]:
                lost += self._shape.placements[number].size
        return lost


def _unbeaten(options: Sequence[Option]) -> tuple[Option, ...]:
    """One option for each offer that no other one beats in supply, loss, use and cost; by cost."""
    best: dict[tuple[Supply, Loss, Use], Option] = {}
    for option in options:
        key = option.supply, option.loss, option.use
        known = best.get(key)
        if known is None or (option.changes, option.cost) < (known.changes, known.cost):
            best[key] = option
    kept: list[Option] = []
    for option in sorted(best.values(), key=lambda o: (o.changes, o.cost, o.supply, o.loss, o.use)):
        if not any(_beats(other, option) for other in kept):
            kept.append(option)
    return tuple(kept)


def _beats(one: Option, other: Option) -> bool:
    """For one that costs no more."""
    return (
        all(map(ge, one.supply, other.supply))
        and all(map(le, one.loss, other.loss))
        and all(map(le, one.use, other.use))
    )
