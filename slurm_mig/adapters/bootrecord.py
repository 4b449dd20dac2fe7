"""What this node's GPUs are to be after a boot: state_dir/gpus.json.

Written after every change that succeeded, read by `slurm-mig restore`. GPUs are remembered by UUID:
their indexes and minors may be others after a boot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.layouts import Cut, cuts_of
from slurm_mig.core.model import Gpu, Slots
from slurm_mig.core.ownership import Outside, given_away
from slurm_mig.errors import ConfigError


@dataclass(frozen=True)
class RecordedGpu:
    """One GPU's mode and instances."""

    uuid: str
    model: str
    mig: bool
    cuts: tuple[Cut, ...] = ()
    owner: str = ""
    """Who has all of it instead of Slurm."""


@dataclass(frozen=True)
class Recorded:
    """The node's GPUs, and the slots of a node in the controller's care."""

    gpus: tuple[RecordedGpu, ...] = ()
    slots: Slots = field(default=())
    outside: tuple[Outside, ...] = ()
    """What of the node is not Slurm's."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Our parts of slurm.conf and gres.conf on a node with files of its own, as last written, by
    path."""


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

    def _before(self, *, needed: bool) -> Recorded:
        """What is recorded. A damaged record is in the way only of who needs what it had."""
        try:
            return self.load() or Recorded()
        except ConfigError:
            if needed:
                raise
            return Recorded()

    def save_gpus(
        self,
        gpus: Sequence[Gpu],
        slots: Slots | None = None,
        outside: tuple[Outside, ...] | None = None,
    ) -> None:
        """Remember these GPUs as they are now; what is not given stays as recorded."""
        before = self._before(needed=slots is None and outside is None)
        others = before.outside if outside is None else outside
        owners = given_away(others)
        recorded = tuple(
            RecordedGpu(
                gpu.uuid,
                gpu.model,
                gpu.mig,
                tuple(sorted(cuts_of(gpu))),
                owners.get(gpu.index, ""),
            )
            for gpu in gpus
            if gpu.mig_capable
        )
        self._save(
            replace(
                before,
                gpus=recorded,
                slots=before.slots if slots is None else slots,
                outside=others,
            )
        )

    def save_files(self, files: Mapping[str, str]) -> None:
        """Remember our files here as they were written."""
        self._save(replace(self._before(needed=True), files=dict(files)))

    def _save(self, record: Recorded) -> None:
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(encode(record), indent=1) + "\n")
