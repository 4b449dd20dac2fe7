"""One GPU as the planner works on it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from slurm_mig.core.model import Gpu
from slurm_mig.core.planning.options import Option
from slurm_mig.core.planning.shapes import Shape


@dataclass(slots=True)
class Draft:
    """One GPU: sets of placements as codes of its shape."""

    gpu: Gpu
    shape: Shape
    alike: Hashable = None
    """Equal for GPUs that differ in nothing but what is on them."""
    busy: int = 0
    """What is used; and split instances, which only an administrator makes and undoes."""
    claimed: int = 0
    """Idle, but a waiting job starts on it as it is, or it is held for one."""
    idle: int = 0
    baseline: int = 0
    whole_type: str = ""
    whole_busy: bool = False
    """Whole, and allocated, in use or spoken for."""
    switchable: bool = False
    frozen: str = ""
    """Why nothing may change here now."""
    target: Option | None = None
    """Chosen by the plan; None: as it is."""
    taken: int = 0
    """What of the target's new instances a waiting job will have."""
    filled: int = 0
    """Created besides, in room that is left."""
    withheld: int = 0
    """Idle, there, and not offered: offered again, it serves whoever fits."""
    split: int = 0
    """GPU instances with several devices, some of which may be free."""
    foreign: int = 0
    """Not Slurm's: among the busy, and never a device."""

    @property
    def fixed(self) -> int:
        return self.busy | self.claimed

    @property
    def wasted(self) -> bool:
        """It is to change, and no job gets anything from it."""
        return self.target is not None and not self.taken and not self.whole_busy

    @property
    def mig_after(self) -> bool:
        return self.target.mig if self.target else self.gpu.mig

    @property
    def after(self) -> int:
        """The placements that there will be."""
        if self.target is None:
            return self.fixed | self.idle
        return self.fixed | (self.idle & ~self.target.destroyed) | self.target.created | self.filled
