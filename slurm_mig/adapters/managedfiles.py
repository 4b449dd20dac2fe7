"""Our own published files, `config: shared`: nodes.conf and gres.conf in the managed directory.

slurm.conf and gres.conf of the site include them. Written whole and atomically from the records;
a hand edit is noticed before anything is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.core import publish
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import DriftError


class ManagedFiles:
    """nodes.conf and gres.conf under `directory`; `catalog` names the catalog's node records."""

    def __init__(self, directory: Path, catalog: Sequence[str] = ()) -> None:
        self.directory = directory
        self.catalog = list(catalog)

    def texts(self, nodes: Sequence[ManagedNode]) -> dict[Path, str]:
        """What the files should say for these nodes."""
        catalog = publish.catalog_lines(self.catalog, nodes)
        return {
            self.directory / "gres.conf": publish.gres_conf(nodes),
            self.directory / "nodes.conf": publish.nodes_conf(nodes, catalog),
        }

    def check(self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()) -> list[Path]:
        """Files that hold an earlier state of ours, such as one brought back from a backup.

        `also` are the records with a transaction's slots, when one was interrupted. Raises
        DriftError for a file that is gone or that a person has edited.
        """
        either = self.texts(also) if also else {}
        stale = []
        for path, text in self.texts(nodes).items():
            found = path.read_text(encoding="utf-8") if path.exists() else None
            if found in (text, either.get(path)):
                continue
            if found is None or not publish.is_sealed(found):
                raise DriftError(
                    f"{path} was {'removed' if found is None else 'edited by hand'}: "
                    f"{_first_difference(text, found or '')}; nothing was changed",
                    hint="Undo the edit, or run `slurm-mig rewrite` to write the file again.",
                )
            stale.append(path)
        return stale

    def write(self, nodes: Sequence[ManagedNode]) -> None:
        """Write both files; gres.conf first, as only slurmd reads it."""
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for path, text in self.texts(nodes).items():
            write_atomic(path, text)


def _first_difference(wanted: str, found: str) -> str:
    ours, theirs = wanted.splitlines(), found.splitlines()
    for number in range(max(len(ours), len(theirs))):
        mine = ours[number] if number < len(ours) else "(nothing)"
        other = theirs[number] if number < len(theirs) else "(nothing)"
        if mine != other:
            return f"line {number + 1} is {other[:80]!r}, should be {mine[:80]!r}"
    return "its line ends"
