"""One configuration file and everything it includes, in the order in which Slurm reads it.

The reader is injected, so that this is pure: it gets a path and gives the site's own text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from slurm_mig.adapters.slurmfiles.blocks import Original
from slurm_mig.adapters.slurmfiles.lines import Line, parse
from slurm_mig.errors import ConfigError

Reader = Callable[[Path], tuple[Path, Original]]
"""Path as named -> path of the real file (links resolved) and its text.

Raises OSError for a file that cannot be read, DriftError for a block of ours that was changed.
"""


@dataclass
class Tree:
    """`files` has each file's own lines; `order` all lines as read, with the root's line each
    came through (itself, or the Include)."""

    root: Path
    files: dict[Path, list[Line]] = field(default_factory=dict)
    order: list[tuple[Line, Line]] = field(default_factory=list)

    @property
    def lines(self) -> list[Line]:
        """All lines in reading order, those of included files in place of their Include."""
        return [line for line, _ in self.order]


def read_tree(path: Path, read: Reader, *, base: Path, ours: Collection[str] = ()) -> Tree:
    """Read `path` and its includes (relative names: under `base`, slurm.conf's directory).

    `ours` are the names that only slurm-mig includes. Raises ConfigError for what Slurm would not
    read, and what `read` raises for `path` itself.
    """
    real, original = read(path)
    tree = Tree(real)
    walk = _Walk(tree, read, base, ours)
    walk.file(real, original, ())
    return tree


@dataclass
class _Walk:
    tree: Tree
    read: Reader
    base: Path
    ours: Collection[str]
    cluster: str | None = None

    def file(self, path: Path, original: Original, through: tuple[Line, ...]) -> None:
        lines = self.tree.files.setdefault(path, parse(original.text, path, original.numbers))
        for line in lines:
            self.tree.order.append((line, (*through, line)[0]))
            if line.kind == "clustername":
                self.cluster = line.pairs[0].value
            if line.include is not None:
                self._include(line, line.include, (*through, line))

    def _include(self, line: Line, name: str, through: tuple[Line, ...]) -> None:
        if "*" in name:
            raise _refusal(line, "Slurm reads no wildcards", "Write one Include for each file.")
        if "%c" in name:
            if self.cluster is None:
                raise _refusal(line, "no ClusterName before %c", "Set ClusterName above it.")
            name = name.replace("%c", self.cluster.lower())
        if name in self.ours:
            raise _refusal(
                line,
                "this file is slurm-mig's",
                "Remove this line: slurm-mig adds it, marked, where it has to be.",
            )
        try:
            path, original = self.read(self.base / name)
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
            raise _refusal(line, why, "Slurm would not start either.") from error
        if any(above.path == path for above in through):
            raise _refusal(line, f"{path} includes itself", "Remove this Include.")
        self.file(path, original, through)


def _refusal(line: Line, why: str, hint: str) -> ConfigError:
    return ConfigError(
        f"{line.where}: Include {line.include}: {why}; nothing was changed", hint=hint
    )
