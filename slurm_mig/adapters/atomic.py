"""Replace a file in one step, durably, keeping who owns it and who may read it.

Called by everything that writes a file another program reads (Slurm's files, our managed files,
state). Must never leave a file half written, nor change mode or owner of one that exists.
Standard library only: GPU nodes use it too.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.errors import UnwritableError


@dataclass(frozen=True)
class Staged:
    """A complete, synced copy beside its target; `commit` or `discard` it, once."""

    target: Path
    temporary: Path

    def commit(self) -> None:
        """Put the copy in the target's place. Raises UnwritableError; the target is then as
        it was."""
        try:
            os.replace(self.temporary, self.target)
        except OSError as error:
            self.discard()
            raise _refusal(self.target, error) from error
        # The rename has happened: a directory that cannot be synced is no reason to report failure.
        with suppress(OSError):
            _sync_directory(self.target.parent)

    def discard(self) -> None:
        """Remove the copy; the target is untouched."""
        with suppress(FileNotFoundError):
            self.temporary.unlink()


def stage(path: Path, text: str, *, mode: int = 0o644, follow: bool = True) -> Staged:
    """Write `text` to a new file beside `path`, ready to replace it. A symbolic link is followed,
    but where `follow` is false: then the link itself is replaced.

    Owner, mode and extended attributes (ACLs, SELinux label) are those of the file that is there;
    a new file gets `mode`. Surrogate escapes in `text` are written as the bytes they stand for.
    Raises UnwritableError if that cannot be done; nothing is left behind.
    """
    target = Path(os.path.realpath(path)) if follow else path
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
    except OSError as error:
        raise _refusal(target, error) from error
    staged = Staged(target, Path(name))
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            _copy_permissions(target, file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        staged.discard()
        raise _refusal(target, error) from error
    except BaseException:
        staged.discard()
        raise
    return staged


def write_atomic(path: Path, text: str, *, mode: int = 0o644, follow: bool = True) -> None:
    """Replace the content of `path` with `text` in one step, on disk when this returns.

    A file that exists keeps owner, mode and extended attributes; a new one gets `mode`. A symbolic
    link stays and its target is replaced; with `follow` false, for a directory that somebody else
    may write, the link is replaced. Raises UnwritableError; the old file is then untouched.
    """
    stage(path, text, mode=mode, follow=follow).commit()


def make_directory(path: Path, mode: int = 0o755) -> None:
    """A directory, with those above it, where there is none. Raises UnwritableError."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise _refusal(path, error) from error


def _copy_permissions(target: Path, descriptor: int, mode: int) -> None:
    try:
        there = os.lstat(target)
    except FileNotFoundError:
        there = None
    if there is None or not stat.S_ISREG(there.st_mode):
        os.fchmod(descriptor, mode)
        return
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) != (there.st_uid, there.st_gid):
        os.fchown(descriptor, there.st_uid, there.st_gid)
    # Not every file system knows every attribute, and a label may be the policy's to give.
    with suppress(OSError):
        for name in os.listxattr(target):
            with suppress(OSError):
                os.setxattr(descriptor, name, os.getxattr(target, name))
    os.fchmod(descriptor, stat.S_IMODE(there.st_mode))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(target: Path, error: OSError) -> UnwritableError:
    return UnwritableError(
        f"{target} cannot be written: {error.strerror or error}; it was left as it is",
        hint="Check that its directory exists and is writable, and that the file may keep its "
        "owner (run as root).",
    )
