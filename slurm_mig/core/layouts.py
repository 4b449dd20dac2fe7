"""What a GPU should be cut into, and the least that must change for it.

A wish is by count (`3g.20gb: 1, 1g.5gb: 2`), where the places are ours to choose, or by place. What
is there already and is wanted stays where it is; a busy instance is never in a change. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from slurm_mig.core import durations, geometry
from slurm_mig.core.changes import GpuChange
from slurm_mig.core.model import Gpu, Instance, Layout, Placement
from slurm_mig.core.profiles import device_name, parts
from slurm_mig.errors import UsageError

HALF_MADE = (0,)
"""Split of a GPU instance without any compute instance: no wish is ever for one."""


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A GPU instance at its place, and the compute slices of each part; no parts: one whole."""

    placement: Placement
    split: tuple[int, ...] = ()

    @property
    def widths(self) -> tuple[int, ...]:
        """What to make of it: a half-made instance comes back whole."""
        return () if self.split == HALF_MADE else self.split

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of its MIG devices."""
        profile = self.placement.profile
        found = parts(profile)
        if not self.split or found is None:
            return (profile,)
        whole = int(profile.partition("g.")[0])
        return tuple(device_name(profile, width, whole) for width in self.split if width)

    def __str__(self) -> str:
        if self.split == HALF_MADE:
            return f"{self.placement} (without compute instance)"
        if not self.split:
            return str(self.placement)
        return f"{'+'.join(f'{n}c' for n in self.split)}.{self.placement}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one GPU should be: MIG off, or on with these devices."""

    mig: bool = True
    devices: Mapping[str, int] = field(default_factory=dict)
    """Devices by name whose places do not matter."""
    cuts: frozenset[Cut] = frozenset()
    """GPU instances at given places."""


@dataclass(frozen=True, slots=True)
class LayoutChange:
    """What one GPU gives up and gets. With blockers nothing of it may be done."""

    gpu: int
    mig: bool
    """MIG mode afterwards."""
    switch: bool = False
    """The mode must change."""
    kept: tuple[Cut, ...] = ()
    destroyed: tuple[Placement, ...] = ()
    resplit: tuple[Cut, ...] = ()
    """GPU instances that stay and get other compute instances."""
    created: tuple[Cut, ...] = ()
    blockers: tuple[Placement, ...] = ()
    """Busy instances that would have to go."""

    @property
    def empty(self) -> bool:
        return not (self.switch or self.destroyed or self.resplit or self.created)

    @property
    def target(self) -> frozenset[Cut]:
        return frozenset(self.kept + self.resplit + self.created)


def cut_of(instance: Instance) -> Cut:
    """How an instance is cut now."""
    if not instance.computes:
        return Cut(instance.placement, () if instance.uuid else HALF_MADE)
    widths = tuple(sorted((c.slices for c in instance.computes), reverse=True))
    whole = [c.name for c in instance.computes] == [instance.placement.profile]
    return Cut(instance.placement, () if whole else widths)


def cuts_of(gpu: Gpu) -> frozenset[Cut]:
    return frozenset(cut_of(i) for i in gpu.instances)


def devices_of(gpu: Gpu) -> dict[str, int]:
    """The GPU's MIG devices by name."""
    return dict(Counter(name for cut in sorted(cuts_of(gpu)) for name in cut.devices))


def agrees(gpu: Gpu, wanted: Wanted) -> bool:
    """True if the GPU is what is wanted: the mode, the devices by count, the given places, and
    nothing half made."""
    if gpu.mig != wanted.mig or gpu.mig_pending != wanted.mig:
        return False
    cuts = cuts_of(gpu)
    if not wanted.cuts <= cuts or any(cut.split == HALF_MADE for cut in cuts):
        return False
    given = Counter(name for cut in wanted.cuts for name in cut.devices)
    return Counter(devices_of(gpu)) == given + Counter(
        {name: count for name, count in wanted.devices.items() if count}
    )


def change(gpu: Gpu, wanted: Wanted, busy: Layout = frozenset()) -> LayoutChange:
    """The change that makes the GPU what is wanted in the least time.

    `busy` are placements that must not be touched. If there is no way around some of them, the
    change has the fewest that must go as its blockers. Raises UsageError for what this GPU can
    never be.
    """
    cuts = cuts_of(gpu)
    if not wanted.mig:
        gone = tuple(sorted(cut.placement for cut in cuts))
        blockers = tuple(p for p in gone if p in busy)
        switch = gpu.mig or gpu.mig_pending
        return LayoutChange(gpu.index, mig=False, switch=switch, destroyed=gone, blockers=blockers)
    if agrees(gpu, wanted):
        return LayoutChange(gpu.index, mig=True, kept=tuple(sorted(cuts)))
    switch = not (gpu.mig and gpu.mig_pending)
    shapes = _shapes(gpu, wanted)
    choices = sorted(_choices(cuts, wanted.cuts, shapes, busy), key=lambda c: c.cost(gpu))
    for choice in choices:
        if not geometry.fits(gpu, choice.fixed):
            continue
        for added in geometry.ways_to_add(gpu, choice.fixed, choice.missing):
            return _as_change(gpu, choice, added, switch=switch)
    asked = ", ".join(_words(wanted))
    raise UsageError(
        f"GPU {gpu.index} ({gpu.model}) cannot hold {asked} at once; nothing was changed",
        hint="`slurm-mig profiles` shows what it can hold and where.",
    )


def _words(wanted: Wanted) -> Iterator[str]:
    yield from (str(cut) for cut in sorted(wanted.cuts))
    for name, count in wanted.devices.items():
        if count:
            yield name if count == 1 else f"{name}*{count}"


Shapes = dict[str, list[tuple[int, ...]]]
"""The splits wanted of each GPU instance profile: one entry for each instance."""


def _shapes(gpu: Gpu, wanted: Wanted) -> Shapes:
    """GPU instances that hold the wanted devices: parts of one profile share instances, the widest
    first. Raises UsageError for a profile that the GPU does not have."""
    found: Shapes = {}
    widths: dict[str, list[int]] = {}
    for name, count in wanted.devices.items():
        known = parts(name)
        width, profile = known if known else (0, name)
        if gpu.profile(profile) is None:
            raise UsageError(
                f"GPU {gpu.index} ({gpu.model}) has no profile {name}; it has "
                f"{', '.join(p.name for p in gpu.profiles) or 'none'}",
            )
        if width:
            widths.setdefault(profile, []).extend([width] * count)
        else:
            found.setdefault(profile, []).extend([()] * count)
    for profile, parts_wanted in widths.items():
        offered = gpu.profile(profile)
        assert offered is not None
        found.setdefault(profile, []).extend(_packed(parts_wanted, offered.compute_slices))
    return found


def _packed(widths: Sequence[int], room: int) -> list[tuple[int, ...]]:
    """Parts into as few instances of `room` slices as first fit, widest first, finds."""
    instances: list[list[int]] = []
    for width in sorted(widths, reverse=True):
        home = next((i for i in instances if sum(i) + width <= room), None)
        if home is None:
            instances.append([width])
        else:
            home.append(width)
    return [tuple(i) for i in instances]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which instances stay; where the missing ones go is still open."""

    kept: tuple[Cut, ...]
    resplit: tuple[Cut, ...]
    destroyed: tuple[Placement, ...]
    given: tuple[Cut, ...]
    """Wanted at given places, and not there."""
    splits: Shapes
    """Splits of the instances that are still to be placed."""
    blockers: tuple[Placement, ...]

    @property
    def missing(self) -> dict[str, int]:
        return {profile: len(splits) for profile, splits in self.splits.items() if splits}

    @property
    def fixed(self) -> Layout:
        return frozenset(c.placement for c in (*self.kept, *self.resplit, *self.given))

    def cost(self, gpu: Gpu) -> tuple[int, int, int, list[str]]:
        """Fewest blockers, the least time, the least of the GPU destroyed; then by name."""
        made = [cut.placement.profile for cut in self.given]
        made += [profile for profile, count in self.missing.items() for _ in range(count)]
        took = len(self.destroyed) * durations.destroy_ms(gpu)
        took += len(self.resplit) * durations.RESPLIT_MS
        took += sum(durations.create_ms(gpu, profile) for profile in made)
        size = sum(p.size for p in self.destroyed)
        return len(self.blockers), took, size, [str(p) for p in self.destroyed]


def _choices(
    cuts: frozenset[Cut], given: frozenset[Cut], shapes: Shapes, busy: Layout
) -> Iterator[_Choice]:
    """Every set of instances that may stay (128 at most: a GPU has up to 7)."""
    there = sorted(cuts)
    for count in range(len(there) + 1):
        for staying in combinations(there, count):
            choice = _choice(there, staying, given, shapes, busy)
            if choice is not None:
                yield choice


def _choice(
    there: Sequence[Cut],
    staying: Sequence[Cut],
    given: frozenset[Cut],
    shapes: Shapes,
    busy: Layout,
) -> _Choice | None:
    """None if the wish has no use for an instance that would stay."""
    places = {cut.placement: cut for cut in given}
    left = {profile: list(splits) for profile, splits in shapes.items()}
    kept: list[Cut] = []
    resplit: list[Cut] = []
    # Those that can stay as they are take their splits first.
    for cut in sorted(staying, key=lambda c: c.split not in left.get(c.placement.profile, ())):
        target = places.pop(cut.placement, None) or _assigned(cut, left)
        if target is None:
            return None
        (kept if target == cut else resplit).append(target)
    stay = {cut.placement for cut in staying}
    destroyed = tuple(c.placement for c in there if c.placement not in stay)
    touched = {*destroyed, *(cut.placement for cut in resplit)}
    return _Choice(
        tuple(sorted(kept)),
        tuple(sorted(resplit)),
        destroyed,
        tuple(sorted(places.values())),
        left,
        tuple(sorted(touched & busy)),
    )


def _assigned(cut: Cut, left: Shapes) -> Cut | None:
    """The wish that this instance fulfils, taken out of what is left."""
    splits = left.get(cut.placement.profile)
    if not splits:
        return None
    split = cut.split if cut.split in splits else splits[0]
    splits.remove(split)
    return Cut(cut.placement, split)


def _as_change(gpu: Gpu, choice: _Choice, added: Layout, *, switch: bool) -> LayoutChange:
    splits = {profile: sorted(rest) for profile, rest in choice.splits.items()}
    new = [Cut(p, splits[p.profile].pop()) for p in sorted(added)]
    return LayoutChange(
        gpu.index,
        mig=True,
        switch=switch,
        kept=choice.kept,
        destroyed=choice.destroyed,
        resplit=choice.resplit,
        created=tuple(sorted((*choice.given, *new))),
        blockers=choice.blockers,
    )


def steps(part: GpuChange) -> list[tuple[str, str]]:
    """What a change of a managed GPU does, as signs and words: `-` goes, `~` is split anew, `+`
    comes."""
    splits = dict(part.splits)
    return [
        *(("-", str(p)) for p in part.destroyed),
        *(("~", str(Cut(p, splits[p]))) for p in sorted(part.resplit)),
        *(("+", str(Cut(p, splits.get(p, ())))) for p in part.created),
    ]


# -- what people write on the command line ---------------------------------------------------------

_GPU_WORD = re.compile(r"(all|gpu(\d+))=(.*)", re.DOTALL)
_DEVICE_WORD = re.compile(r"([^@*]+?)(?:@(\d+))?(?:\*(\d+))?")


def parse_inline(words: Sequence[str], gpus: Sequence[Gpu]) -> dict[int, Wanted]:
    """`gpu0=3g.20gb,1g.5gb*2 gpu1=off` or `all=…`: what each named GPU should be, by index.

    `3g.20gb@4` gives the place. Later words win. `all` means every GPU that can do MIG. Raises
    UsageError saying which word is wrong and why.
    """
    known = {gpu.index: gpu for gpu in gpus}
    found: dict[int, Wanted] = {}
    for word in words:
        match = _GPU_WORD.fullmatch(word)
        if not match:
            raise UsageError(
                f"{word!r} is neither a layout's name alone nor gpuN=DEVICE,DEVICE*COUNT",
                hint="For example: gpu0=3g.20gb,2g.10gb,1g.5gb*2 or all=1g.5gb*7 or gpu1=off",
            )
        if match[1] == "all":
            named = [gpu for gpu in gpus if gpu.mig_capable]
        elif int(match[2]) in known:
            named = [known[int(match[2])]]
        else:
            raise UsageError(f"{word!r}: there is no GPU {match[2]} here; {len(known)} are there")
        for gpu in named:
            found[gpu.index] = _inline_devices(word, match[3], gpu)
    return found


def _inline_devices(word: str, text: str, gpu: Gpu) -> Wanted:
    if text == "off":
        return Wanted(mig=False)
    if not gpu.mig_capable:
        raise UsageError(f"{word!r}: GPU {gpu.index} ({gpu.model}) cannot do MIG")
    devices: Counter[str] = Counter()
    cuts: dict[Placement, Cut] = {}
    for item in filter(None, text.split(",")):
        match = _DEVICE_WORD.fullmatch(item)
        if not match or parts(match[1]) is None:
            raise UsageError(f"{word!r}: {item!r} is no MIG device such as 1g.5gb, 1c.3g.20gb*2")
        if match[2] is None:
            devices[match[1]] += int(match[3] or 1)
            continue
        placement, width = _given_place(word, item, gpu, (match[1], int(match[2])))
        before = cuts.get(placement)
        split = (width,) * int(match[3] or 1) if width else ()
        split = tuple(sorted((*(before.split if before else ()), *split), reverse=True))
        cuts[placement] = Cut(placement, split)
    return Wanted(devices=dict(devices), cuts=frozenset(cuts.values()))


def _given_place(word: str, item: str, gpu: Gpu, wanted: tuple[str, int]) -> tuple[Placement, int]:
    width, name = parts(wanted[0]) or (0, wanted[0])
    profile = gpu.profile(name)
    if profile is None or wanted[1] not in profile.starts:
        starts = ", ".join(map(str, profile.starts)) if profile else ""
        why = f"{name} starts at {starts}" if profile else f"there is no profile {name}"
        raise UsageError(f"{word!r}: {item!r} is no place of GPU {gpu.index}: {why}")
    return Placement(wanted[1], profile.size, name), width
