"""Bring this node's GPUs to a wanted layout, or leave them as they were.

Called by the node's own verbs (commands/) and by `slurm-mig restore`. The least that differs is
changed, at exact places; a busy instance is never touched. What fails half way is undone and the
undoing is looked at; what cannot be undone is said. Safe to be killed at any point: the same call
again goes on from what is there. Must never be used on a node in the controller's care while
Slurm offers it (the caller checks).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from slurm_mig.core.layouts import (
    HALF_MADE,
    LayoutChange,
    Wanted,
    agrees,
    change,
    cut_of,
    cuts_of,
)
from slurm_mig.core.model import Gpu, Layout, Placement
from slurm_mig.errors import BusyError, GpuError, LeftOverError, SlurmMigError, UsageError


class Gpus(Protocol):
    """What is needed of adapters/gpus.NvmlGpus."""

    def inventory(self) -> tuple[Gpu, ...]: ...
    def gpu(self, index: int) -> Gpu: ...
    def create(self, gpu: int, placement: Placement, split: Sequence[int] = ()) -> None: ...
    def split(self, gpu: int, gi: int, split: Sequence[int] = ()) -> None: ...
    def destroy(self, gpu: int, gi: int) -> None: ...
    def set_mode(self, gpu: int, *, on: bool, keep_pending: bool = False) -> None: ...


@dataclass(frozen=True)
class Applied:
    """What was done, or would be."""

    changes: tuple[LayoutChange, ...]
    gpus: tuple[Gpu, ...]
    """Every GPU afterwards."""


Holder = Callable[[int, int, Placement], str]
"""Who holds an instance, in words: pid, GPU index, placement."""

Claimed = Callable[[Gpu], Mapping[Placement, str]]
"""Instances that somebody claims beyond NVML's processes (Slurm's jobs), with who it is."""


def _pid(pid: int, gpu: int, placement: Placement) -> str:
    return f"process {pid}"


def nobody(gpu: Gpu) -> Mapping[Placement, str]:
    return {}


class Relayout:
    """Changes layouts on one node."""

    def __init__(self, gpus: Gpus, holder: Holder = _pid, claimed: Claimed = nobody) -> None:
        self._gpus = gpus
        self._holder = holder
        self._claimed = claimed

    def plan(self, wanted: Mapping[int, Wanted]) -> tuple[tuple[LayoutChange, ...], list[Gpu]]:
        """What would change, and the GPUs as they are. Raises BusyError naming the blockers,
        UsageError for what cannot be; nothing is touched."""
        gpus = {gpu.index: gpu for gpu in self._gpus.inventory()}
        missing = sorted(set(wanted) - set(gpus))
        if missing:
            raise UsageError(f"there is no GPU {', '.join(map(str, missing))} here")
        changes = []
        problems: list[str] = []
        for index, wish in sorted(wanted.items()):
            part, blocked = self._plan_gpu(gpus[index], wish)
            changes.append(part)
            problems += blocked
        if problems:
            raise BusyError(
                "\n  ".join(("in use, nothing was touched:", *problems)),
                hint="Wait for them to end, or choose a layout that keeps these instances.",
            )
        return tuple(changes), list(gpus.values())

    def apply(self, wanted: Mapping[int, Wanted]) -> Applied:
        """Make every GPU what is wanted; all of them, or none.

        Raises BusyError and UsageError before anything is touched, GpuError after everything has
        been put back, LeftOverError where that failed too.
        """
        changes, gpus = self.plan(wanted)
        before = {gpu.index: gpu for gpu in gpus}
        begun: list[LayoutChange] = []
        done: list[LayoutChange] = []
        try:
            for part in changes:
                begun.append(part)
                done.append(self._carry_out(part, before[part.gpu], wanted[part.gpu]))
        except SlurmMigError as error:
            raise self._undone(error, begun, before) from error
        return Applied(tuple(done), self._gpus.inventory())

    def _plan_gpu(self, gpu: Gpu, wish: Wanted) -> tuple[LayoutChange, list[str]]:
        if not gpu.mig_capable:
            if wish.mig:
                raise UsageError(f"GPU {gpu.index} ({gpu.model}) cannot do MIG")
            return LayoutChange(gpu.index, mig=False), []
        claimed = self._claimed(gpu)
        busy: Layout = frozenset(i.placement for i in gpu.instances if i.pids) | set(claimed)
        if _unknown(gpu, wish):
            part = LayoutChange(gpu.index, mig=True, switch=True)
        else:
            part = change(gpu, wish, busy)
        problems = [self._blocker(gpu, p, claimed) for p in part.blockers]
        if part.switch and gpu.mig != part.mig and not problems and gpu.pids:
            who = ", ".join(f"process {pid}" for pid in gpu.pids)
            problems.append(f"GPU {gpu.index}: its MIG mode cannot change while {who} holds it")
        return part, problems

    def _blocker(self, gpu: Gpu, placement: Placement, claimed: Mapping[Placement, str]) -> str:
        pids = next((i.pids for i in gpu.instances if i.placement == placement), ())
        who = [self._holder(pid, gpu.index, placement) for pid in pids]
        if placement in claimed:
            who.append(claimed[placement])
        return f"GPU {gpu.index}: {placement} would have to go, and is held by {', '.join(who)}"

    def _carry_out(self, part: LayoutChange, gpu: Gpu, wish: Wanted) -> LayoutChange:
        """One GPU. Returns the change as it was done; it is another than planned only where the
        driver did not tell the profiles before the mode was on."""
        if part.mig and part.switch:
            self._gpus.set_mode(part.gpu, on=True)
        if _unknown(gpu, wish):
            gpu = self._gpus.gpu(part.gpu)
            part = replace(change(gpu, wish), switch=True)
        gi_of = {i.placement: i.gi for i in gpu.instances}
        for placement in part.destroyed:
            self._gpus.destroy(part.gpu, gi_of[placement])
        for cut in part.resplit:
            self._gpus.split(part.gpu, gi_of[cut.placement], cut.split)
        for cut in part.created:
            self._gpus.create(part.gpu, cut.placement, cut.split)
        if part.switch and not part.mig:
            self._gpus.set_mode(part.gpu, on=False)
        if not part.empty:
            self._verify(part, wish)
        return part

    def _verify(self, part: LayoutChange, wish: Wanted) -> None:
        """NVML can report success and leave a remnant: look."""
        now = self._gpus.gpu(part.gpu)
        if not agrees(now, wish):
            there = ", ".join(map(str, sorted(cuts_of(now)))) or "nothing"
            raise GpuError(
                f"GPU {part.gpu} is not as it should be although every call succeeded: it has "
                f"{there}",
                code=0,
            )

    def _undone(
        self, error: SlurmMigError, begun: Sequence[LayoutChange], before: Mapping[int, Gpu]
    ) -> SlurmMigError:
        """The error to raise, after every GPU of the change has been put back."""
        left = []
        for part in reversed(begun):
            if not part.empty and (problem := self._put_back(before[part.gpu], part)):
                left.append(problem)
        if left:
            return LeftOverError(
                f"{error.args[0]}; it could not be undone: {'; '.join(left)}",
                hint="Mend what is named above, then apply the layout again: it goes on from "
                "what is there.",
            )
        message = f"{error.args[0]}; every GPU is again as it was"
        if isinstance(error, (BusyError, UsageError)):
            return type(error)(message, hint=error.hint)
        return GpuError(message, code=getattr(error, "code", 0), hint=error.hint)

    def _put_back(self, before: Gpu, part: LayoutChange) -> str:
        """Empty when the GPU is again what it was; otherwise what is left."""
        try:
            self._restore(before, part)
            now = self._gpus.gpu(before.index)
        except SlurmMigError as error:
            return f"GPU {before.index}: {error.args[0]}{self._what_is_left(before)}"
        same = now.mig == before.mig and cuts_of(before) <= cuts_of(now)
        return "" if same else f"GPU {before.index}{self._what_is_left(before)}"

    def _restore(self, before: Gpu, part: LayoutChange) -> None:
        """What we made goes, what we destroyed returns; others' instances stay."""
        was = {cut.placement: cut for cut in cuts_of(before)}
        made = {cut.placement for cut in part.created} - set(was)
        now = self._gpus.gpu(before.index)
        for instance in now.instances:
            if instance.placement in made and not instance.pids:
                self._gpus.destroy(now.index, instance.gi)
        if before.mig and not now.mig:
            self._gpus.set_mode(now.index, on=True)
        there = {i.placement: i for i in self._gpus.gpu(before.index).instances}
        for placement, cut in sorted(was.items()):
            left = there.get(placement)
            if cut.split == HALF_MADE or (left and cut_of(left) == cut):
                continue
            if left is None:
                self._gpus.create(before.index, placement, cut.split)
            else:
                self._gpus.split(before.index, left.gi, cut.split)
        if now.mig and not before.mig:
            self._gpus.set_mode(before.index, on=False)

    def _what_is_left(self, before: Gpu) -> str:
        was = ", ".join(map(str, sorted(cuts_of(before)))) or "nothing"
        try:
            now = self._gpus.gpu(before.index)
        except SlurmMigError as error:
            return f" (it had {was}; what it has now cannot be read: {error.args[0]})"
        has = ", ".join(map(str, sorted(cuts_of(now)))) or "nothing"
        mode = "" if now.mig == before.mig else f", MIG is {'on' if now.mig else 'off'}"
        return f" (it had {was}; it has {has} now{mode})"


def _unknown(gpu: Gpu, wish: Wanted) -> bool:
    """Drivers up to R535 tell no profiles while MIG is off."""
    return wish.mig and not gpu.mig and not gpu.profiles
