"""Our marks in the site's files, and their exact undoing.

A line of the site's that we change stays in place as comments, followed by what stands for it:

    # slurm-mig keeps: NodeName=a100-[1-2] CPUs=32
    NodeName=a100-2 CPUs=32
    # slurm-mig end 5f0c2b7a91de

A line of ours alone begins with `# slurm-mig adds:` instead. The end mark carries a digest of the
block, so that a change by somebody else's hand is noticed, never undone. Invariant: `undo` of a
text with blocks is the site's text, byte for byte (a block whose end mark has no newline stands for
a line without one).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from slurm_mig.adapters.slurmfiles.lines import physical_lines
from slurm_mig.errors import DriftError

KEEPS = "# slurm-mig keeps: "
ADDS = "# slurm-mig adds:"
_END = re.compile(r"# slurm-mig end ([0-9a-f]{12})\r?\n?")
_LIKE_OURS = re.compile(r"\s*#\s*slurm-mig\s+(?:keeps\s*:|adds\s*:|end\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Original:
    """The site's own text, and for each of its physical lines the number it has on disk now."""

    text: str
    numbers: list[int]


def keep(raw: str, instead: str) -> str:
    """The block that keeps the site's line `raw` and puts `instead` (or nothing) in force."""
    eol = "\r\n" if physical_lines(raw)[0].endswith("\r\n") else "\n"
    body = "".join(f"{KEEPS}{part.removesuffix(chr(10))}\n" for part in physical_lines(raw))
    body += instead if not instead or instead.endswith("\n") else f"{instead}{eol}"
    return f"{body}{_end(body)}{eol if raw.endswith(chr(10)) else ''}"


def add(line: str, eol: str = "\n") -> str:
    """The block that adds one line of ours."""
    body = f"{ADDS}{eol}{line}{eol}"
    return f"{body}{_end(body)}{eol}"


def undo(text: str, path: Path) -> Original:
    """The site's text without our blocks. Raises DriftError for a block that was changed."""
    undoing = _Undo(path)
    for number, part in enumerate(physical_lines(text), start=1):
        undoing.take(number, part)
    undoing.finish()
    return Original("".join(undoing.lines), undoing.numbers)


@dataclass
class _Undo:
    path: Path
    lines: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    block: list[str] = field(default_factory=list)
    began: int = 0

    def take(self, number: int, part: str) -> None:
        keeps, adds = part.startswith(KEEPS), part.rstrip("\r\n") == ADDS
        end = _END.fullmatch(part)
        if _LIKE_OURS.match(part) and not (keeps or adds or end):
            raise self._drift(number, "a slurm-mig mark was rewritten")
        if not self.block:
            if end:
                raise self._drift(number, "the end of a slurm-mig block without its beginning")
            if not (keeps or adds):
                self._site(number, part)
                return
            self.began = number
        elif end:
            self._close(end[1], ends_line=part.endswith("\n"))
            return
        elif adds or (keeps and not self.block[-1].startswith(KEEPS)):
            raise self._drift(self.began, "a slurm-mig block without its end")
        self.block.append(part)

    def finish(self) -> None:
        if self.block:
            raise self._drift(self.began, "a slurm-mig block without its end")

    def _close(self, digest: str, *, ends_line: bool) -> None:
        if digest != _digest("".join(self.block)):
            raise self._drift(self.began, "a slurm-mig block was edited")
        kept = [part for part in self.block if part.startswith(KEEPS)]
        for i, part in enumerate(kept):
            line = part.removeprefix(KEEPS)
            last = i == len(kept) - 1
            self._site(self.began + i, line.removesuffix("\n") if last and not ends_line else line)
        self.block = []

    def _site(self, number: int, part: str) -> None:
        # An empty last line without a newline is no line at all.
        if part:
            self.lines.append(part)
            self.numbers.append(number)

    def _drift(self, number: int, what: str) -> DriftError:
        return DriftError(
            f"{self.path}:{number}: {what}; nothing was changed",
            hint="Put the block back as it is in the newest backup, or remove all its lines and "
            "write the line of yours that they stand for; then run the command again.",
        )


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _end(body: str) -> str:
    return f"# slurm-mig end {_digest(body)}"
