"""What this node's GPUs are to be after a boot: state_dir/gpus.json.

Written after every change that succeeded, read by `slurm-mig restore`. GPUs are remembered by UUID:
their indexes and minors may be others after a boot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.layouts import Cut, cuts_of
from slurm_mig.core.model import Gpu, Slots
from slurm_mig.errors import ConfigError


@dataclass(frozen=True)
class RecordedGpu:
    """One GPU's mode and instances."""

    uuid: str
    model: str
    mig: bool
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """The node's GPUs, and the slots of a node in the controller's care."""

    gpus: tuple[RecordedGpu, ...] = ()
    slots: Slots = field(default=())


class BootRecord:
    """The record at `directory`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "gpus.json"

    def load(self) -> Recorded | None:
        """None when nothing was ever recorded. Raises ConfigError for a damaged record."""
        try:
            data: Any = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error}",
                hint="Remove it and apply the layout again.",
            ) from error
        return decode(Recorded, data, str(self.path))

    def save_gpus(self, gpus: Sequence[Gpu], slots: Slots | None = None) -> None:
        """Remember these GPUs as they are now; slots that are not given stay as recorded."""
        before = self.load() if slots is None else None
        kept = slots if slots is not None else before.slots if before else ()
        recorded = tuple(
            RecordedGpu(gpu.uuid, gpu.model, gpu.mig, tuple(sorted(cuts_of(gpu))))
            for gpu in gpus
            if gpu.mig_capable
        )
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(encode(Recorded(recorded, kept)), indent=1) + "\n")
