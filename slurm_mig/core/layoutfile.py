"""mig-parted's configuration file, version v1: what it says, and how it is written.

    version: v1
    mig-configs:
      NAME:
      - device-filter: "0x20B010DE"     # optional; a string or a list of them
        devices: all                    # or a list of GPU indexes
        mig-enabled: true
        mig-devices: {"1g.5gb": 2}      # required with true, absent or empty with false

Entries run in order, and the last that matches a GPU counts. Whatever is not exactly this is
refused with file, line and reason. Pure: the tree comes from adapters/located.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm_mig.core.layouts import Wanted, devices_of
from slurm_mig.core.model import Gpu
from slurm_mig.core.profiles import parts
from slurm_mig.errors import ConfigError, UsageError

VERSION = "v1"
FILTER = re.compile(r"(0x[0-9A-Fa-f]{8})(?::(0x[0-9A-Fa-f]{8}))?")


@dataclass(frozen=True)
class Located:
    """A value of a file and the line that it begins on."""

    value: Any
    """A scalar, a list of Located, or a dict of them by key."""
    line: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a named layout."""

    mig: bool
    devices: Mapping[str, int] = field(default_factory=dict)
    gpus: tuple[int, ...] | None = None
    """GPU indexes; None means all."""
    filters: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True, slots=True)
class Board:
    """A GPU with what device filters look at."""

    gpu: Gpu
    device: int
    subsystem: int


Layouts = Mapping[str, tuple[Entry, ...]]


def interpret(root: Located, file: str) -> Layouts:
    """Every named layout of the file. Raises ConfigError with file, line and reason."""
    return _Interpreter(file).layouts(root)


class _Interpreter:
    def __init__(self, file: str) -> None:
        self._file = file

    def _bad(self, at: Located, reason: str) -> ConfigError:
        return ConfigError(f"{self._file}:{at.line}: {reason}")

    def _typed(self, at: Located, kind: type, what: str) -> Any:
        if type(at.value) is not kind:
            raise self._bad(at, f"{what}, not {_shown(at.value)}")
        return at.value

    def _known(self, at: Mapping[str, Located], keys: Sequence[str]) -> None:
        for key, value in at.items():
            if key not in keys:
                raise self._bad(value, f"unexpected field {key!r}; there are {', '.join(keys)}")

    def layouts(self, root: Located) -> Layouts:
        top = self._typed(root, dict, "the file should be keys and values")
        if "version" not in top:
            raise self._bad(root, "the field 'version' is missing")
        version = top["version"]
        if version.value != VERSION:
            raise self._bad(version, f"version is {_shown(version.value)}: only 'v1' is known")
        self._known(top, ("version", "mig-configs"))
        if "mig-configs" not in top:
            return {}
        configs = top["mig-configs"]
        named = self._typed(configs, dict, "'mig-configs' should be layouts by name")
        if not named:
            raise self._bad(configs, "'mig-configs' needs at least one layout")
        return {name: self._entries(name, value) for name, value in named.items()}

    def _entries(self, name: str, at: Located) -> tuple[Entry, ...]:
        entries = self._typed(at, list, f"layout {name!r} should be a list of entries")
        if not entries:
            raise self._bad(at, f"layout {name!r} needs at least one entry")
        return tuple(self._entry(entry) for entry in entries)

    def _entry(self, at: Located) -> Entry:
        fields = self._typed(at, dict, "an entry should be keys and values")
        self._known(fields, ("device-filter", "devices", "mig-enabled", "mig-devices"))
        for key in ("devices", "mig-enabled"):
            if key not in fields:
                raise self._bad(at, f"the field {key!r} is missing")
        mig = self._typed(fields["mig-enabled"], bool, "'mig-enabled' should be true or false")
        wanted = fields.get("mig-devices")
        if mig and wanted is None:
            raise self._bad(at, "'mig-devices' is missing, which 'mig-enabled: true' needs")
        devices = self._devices(wanted) if wanted else {}
        if not mig and devices:
            assert wanted is not None
            raise self._bad(wanted, "'mig-devices' given although 'mig-enabled' is false")
        filters = self._filters(fields["device-filter"]) if "device-filter" in fields else ()
        return Entry(mig, devices, self._gpus(fields["devices"]), filters, at.line)

    def _devices(self, at: Located) -> dict[str, int]:
        found = self._typed(at, dict, "'mig-devices' should be counts by MIG device")
        for name, count in found.items():
            if parts(name) is None:
                raise self._bad(count, f"{name!r} is no MIG device such as 1g.5gb or 1c.3g.20gb")
            self._typed(count, int, f"the count of {name} should be a whole number")
            if count.value < 0:
                raise self._bad(count, f"the count of {name} is {count.value}")
        return {name: count.value for name, count in found.items()}

    def _gpus(self, at: Located) -> tuple[int, ...] | None:
        if at.value == "all":
            return None
        what = "'devices' should be all or a list of GPU indexes such as [0, 1]"
        for item in self._typed(at, list, what):
            if self._typed(item, int, "a GPU's index should be a whole number") < 0:
                raise self._bad(item, f"there is no GPU {item.value}")
        return tuple(item.value for item in at.value)

    def _filters(self, at: Located) -> tuple[str, ...]:
        what = "'device-filter' should be a quoted PCI id such as \"0x20B010DE\", or a list of them"
        items = at.value if isinstance(at.value, list) else [at]
        for item in items:
            if not FILTER.fullmatch(self._typed(item, str, what)):
                raise self._bad(item, f"{what}, not {_shown(item.value)}")
        return tuple(item.value for item in items)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    return "a list" if isinstance(value, list) else repr(value)


# -- which GPU gets what ---------------------------------------------------------------------------


def select(entries: Sequence[Entry], boards: Sequence[Board]) -> dict[int, Wanted]:
    """What each GPU should be that an entry matches, by index; the last entry that matches counts.

    `devices: all` leaves out GPUs that cannot do MIG. Raises UsageError for MIG on a GPU that is
    named by its index and cannot.
    """
    found: dict[int, Wanted] = {}
    for entry in entries:
        for board in boards:
            if _matches(entry, board):
                gpu = board.gpu
                if gpu.mig_capable:
                    found[gpu.index] = Wanted(entry.mig, entry.devices)
                elif entry.mig and entry.gpus is not None:
                    raise UsageError(
                        f"the entry at line {entry.line} wants MIG on GPU {gpu.index}, but a "
                        f"{gpu.model} cannot do MIG"
                    )
    return found


def _matches(entry: Entry, board: Board) -> bool:
    if entry.gpus is not None and board.gpu.index not in entry.gpus:
        return False
    return not entry.filters or any(_passes(text, board) for text in entry.filters)


def _passes(text: str, board: Board) -> bool:
    found = FILTER.fullmatch(text)
    if not found or int(found[1], 16) != board.device:
        return False
    return found[2] is None or int(found[2], 16) == board.subsystem


# -- writing it ------------------------------------------------------------------------------------


def export(gpus: Sequence[Gpu], name: str) -> dict[str, Any]:
    """What is there as a file with one layout, GPUs that are alike in one entry."""
    groups: list[tuple[bool, dict[str, int], list[int]]] = []
    for gpu in gpus:
        if not gpu.mig_capable:
            continue
        devices = devices_of(gpu)
        same = next((g for g in groups if g[:2] == (gpu.mig, devices)), None)
        if same:
            same[2].append(gpu.index)
        else:
            groups.append((gpu.mig, devices, [gpu.index]))
    entries = [
        {
            "devices": "all" if len(groups) == 1 else indexes,
            "mig-enabled": mig,
            "mig-devices": devices,
        }
        for mig, devices, indexes in groups
    ]
    return {"version": VERSION, "mig-configs": {name: entries}}


def export_text(gpus: Sequence[Gpu], name: str) -> str:
    """`export` as the YAML that people keep."""
    lines = [f"version: {VERSION}", "mig-configs:", f"  {name}:"]
    for entry in export(gpus, name)["mig-configs"][name]:
        devices = entry["devices"]
        lines.append(f"  - devices: {devices if devices == 'all' else list(devices)}")
        lines.append(f"    mig-enabled: {'true' if entry['mig-enabled'] else 'false'}")
        if not entry["mig-devices"]:
            lines.append("    mig-devices: {}")
            continue
        lines.append("    mig-devices:")
        lines += [f'      "{key}": {count}' for key, count in entry["mig-devices"].items()]
    return "\n".join(lines) + "\n"
