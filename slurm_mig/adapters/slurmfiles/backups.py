"""Copies of the site's files from before each edit of ours, so many of each file."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.errors import ConfigError

KEPT = 20
"""Of each file; the newest."""

_STAMP = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Backup:
    """One copy: of which file, from before which moment (UTC), and where it is."""

    of: Path
    time: datetime
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def text(self) -> str:
        """Its text, bytes that are no UTF-8 as surrogate escapes. Raises ConfigError."""
        try:
            return self.path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be read: {error.strerror}; nothing was changed"
            ) from error


def keep(path: Path, text: str, directory: Path, at: datetime) -> None:
    """Keep `text` of the file `path`, readable by root alone. Raises ConfigError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"backup directory {directory} cannot be made: {error.strerror}; no file was written"
        ) from error
    stamp = at.astimezone(timezone.utc).strftime(_STAMP)
    write_atomic(directory / f"{_stem(path)}.{stamp}", text, mode=0o600)
    for old in _copies(path, directory)[:-KEPT]:
        # One backup too many is no reason to refuse the edit.
        with suppress(OSError):
            old.unlink()


def find(paths: Iterable[Path], directory: Path) -> list[Backup]:
    """Every backup of these files, the newest first."""
    found = [
        Backup(path, datetime.strptime(stamp, _STAMP).replace(tzinfo=timezone.utc), copy)
        for path in paths
        for copy in _copies(path, directory)
        if (stamp := copy.name.removeprefix(f"{_stem(path)}."))
    ]
    return sorted(found, key=lambda b: (b.time, b.name), reverse=True)


def _stem(path: Path) -> str:
    return "_".join(path.parts[1:])


def _copies(path: Path, directory: Path) -> list[Path]:
    """Oldest first."""
    mine = re.compile(re.escape(_stem(path)) + r"\.\d{8}T\d{6}\.\d{6}Z")
    found = directory.glob(f"{glob.escape(_stem(path))}.*")
    return sorted(copy for copy in found if mine.fullmatch(copy.name))
