"""Who could have written what we go by: the configuration, the state directory, the slot map.

Whoever can write one of these has root's hands, on the controller and on every GPU node. Asked
before anything is read from them. Standard library only: GPU nodes use it too.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from slurm_mig.adapters.system import conf_value
from slurm_mig.errors import ConfigError


def refuse_writable(what: str, path: Path, owners: Collection[int] = ()) -> None:
    """Raises ConfigError if others than root, ourselves and `owners` may change `path`, or put
    another in its place: by itself, or through a directory above it. What is not there is fine."""
    trusted = {0, os.geteuid(), *owners}
    seen: set[Path] = set()
    for named in (path.absolute(), Path(os.path.realpath(path))):
        for part in (named, *named.parents):
            if part not in seen and (fault := _fault(part, trusted)):
                raise ConfigError(
                    f"{what} {path} is not to be trusted: {fault}; nothing was changed",
                    hint=f"Have root own it, and nobody else write it: ls -ld {part}",
                )
            seen.add(part)


def slurms_own(slurm_conf: Path) -> list[int]:
    """Whom the site trusts with slurm.conf already: its owner and SlurmUser. slurmd runs what it
    says as root."""
    found = []
    with suppress(OSError):
        found.append(slurm_conf.stat().st_uid)
        user = conf_value(slurm_conf, "SlurmUser")
        with suppress(KeyError):
            found.append(pwd.getpwnam(user).pw_uid)
    return found


def _fault(part: Path, trusted: Collection[int]) -> str:
    try:
        info = part.lstat()
    except OSError:
        return ""
    if info.st_uid not in trusted:
        return f"{part} belongs to uid {info.st_uid}"
    if stat.S_ISLNK(info.st_mode):
        return ""
    mode = stat.S_IMODE(info.st_mode)
    # In a sticky directory such as /tmp nobody can replace what belongs to another.
    if stat.S_ISDIR(info.st_mode) and mode & stat.S_ISVTX:
        return ""
    if mode & stat.S_IWOTH:
        return f"everybody may write {part} (mode {mode:04o})"
    if mode & stat.S_IWGRP and info.st_gid not in (0, os.getegid()):
        return f"group {info.st_gid} may write {part} (mode {mode:04o})"
    return ""
