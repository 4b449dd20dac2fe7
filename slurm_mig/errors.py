"""One family of errors: what failed, what was left untouched, what to do, and an exit code.

The command line turns any of these into its message and exit code; nothing else decides on exit.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every slurm-mig command (documented in docs/commands.md)."""

    OK = 0
    """Done, or nothing to do."""
    REFUSED = 1
    """A safe refusal: what was asked cannot be done now; nothing was changed."""
    USAGE = 2
    """Wrong arguments or a name that does not exist; nothing was changed."""
    CONFIG = 3
    """A configuration file of ours or of Slurm's is not acceptable; nothing was changed."""
    UNREACHABLE = 4
    """slurmctld, a node or the driver does not answer; try again later."""
    BUSY = 5
    """Another slurm-mig holds the lock, or the node is not settled; try again later."""
    ATTENTION = 6
    """A node was left fenced: the next cycle goes on, or a person is needed and its reason says
    what to do."""


class SlurmMigError(Exception):
    """Base of all errors that an administrator may see.

    `hint` says what to do next; `retry_s` is set where trying again later can help.
    """

    exit_code = Exit.REFUSED
    retry_s: float | None = None

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n  {self.hint}" if self.hint else text


class UsageError(SlurmMigError):
    """A name or argument that does not exist."""

    exit_code = Exit.USAGE


class ConfigError(SlurmMigError):
    """A file (ours or Slurm's) that is not acceptable; the message names file and place."""

    exit_code = Exit.CONFIG


class UnwritableError(ConfigError):
    """A file that cannot be written now: a full disk, a file system that is read-only."""

    retry_s = 30.0


class DriftError(ConfigError):
    """What is published and what is there differ by somebody else's hand."""


class UnreachableError(SlurmMigError):
    """slurmctld, a node or the driver does not answer."""

    exit_code = Exit.UNREACHABLE
    retry_s = 30.0


class SilentError(UnreachableError):
    """A host that took long to fail: each try keeps everybody waiting."""


class LeftAloneError(SilentError):
    """A host that was silent and is not asked yet: nothing was tried."""


class GoneError(UnreachableError):
    """slurmctld has no such node any more."""


class BusyError(SlurmMigError):
    """Somebody uses what we would change; later it may be free."""

    exit_code = Exit.BUSY
    retry_s = 5.0


class TurnError(BusyError):
    """A node has heard of a later command (adapters/turns.py); `code` is that one's turn."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class GpuError(SlurmMigError):
    """NVML refused or failed; `code` is NVML's return code."""

    def __init__(self, message: str, *, code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class LeftOverError(SlurmMigError):
    """A change of a GPU failed and could not be undone: it is neither what it was nor what it
    should be; the message says what is left."""

    exit_code = Exit.ATTENTION


class StillHeldError(SlurmMigError):
    """A node cannot be released yet; the message names what disagrees."""

    exit_code = Exit.ATTENTION


class InvariantError(SlurmMigError):
    """Something that must never be was seen: the node stays fenced for a person."""

    exit_code = Exit.ATTENTION


class ArrangementError(SlurmMigError):
    """No order of slots keeps every busy device at its index (a hull is in the way)."""
