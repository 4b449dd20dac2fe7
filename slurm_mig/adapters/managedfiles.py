"""One host's copies: our published files, and our marks in the site's files around them.

The site's slurm.conf and gres.conf include ours, which are written whole and atomically from the
records; a hand edit is noticed before anything is changed. Used on the controller, on the other
controllers' hosts, and on GPU nodes that have files of their own (adapters/copies.py says which).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters.atomic import make_directory, write_atomic
from slurm_mig.adapters.slurmfiles import (
    Backup,
    FileEdit,
    GresLine,
    SlurmFiles,
    find_backups,
)
from slurm_mig.core import publish
from slurm_mig.core.records import ManagedNode
from slurm_mig.errors import DriftError

NO_CATALOG = publish.Catalog()


@dataclass(frozen=True)
class Places:
    """Where a host has Slurm's files; ours are named relative to slurm.conf's directory."""

    conf: Path
    gres_conf: Path
    includes: tuple[str, str] = ("slurm-mig/nodes.conf", "slurm-mig/gres.conf")

    @property
    def ours(self) -> tuple[Path, Path]:
        """Our part of slurm.conf and of gres.conf."""
        nodes, gres = self.includes
        return self.conf.parent / nodes, self.conf.parent / gres


class ManagedFiles:
    """The copies at `places`. `catalog` gives the catalog's node records; `one_host`: they are
    one GPU node's own, and hold that node alone."""

    def __init__(
        self,
        places: Places,
        backups: Path,
        catalog: publish.Catalog = NO_CATALOG,
        *,
        one_host: bool = False,
    ) -> None:
        self.places = places
        self.catalog = catalog
        self.backups = backups
        self._one_host = one_host

    @property
    def directory(self) -> Path:
        return self.places.conf.parent

    def site(self, instead: Mapping[Path, str] | None = None) -> SlurmFiles:
        """The site's own files, read now. Raises ConfigError."""
        nodes, gres = self.places.includes
        site = SlurmFiles(
            self.places.conf, self.places.gres_conf, nodes_include=nodes, gres_include=gres
        )
        site.load(instead)
        return site

    def gres_lines(self, name: str) -> list[GresLine]:
        """The site's gpu lines that apply to a node here."""
        return self.site().gres_lines(name)

    def texts(self, nodes: Sequence[ManagedNode]) -> dict[Path, str]:
        """What our files should say for these nodes; gres.conf first, as only slurmd reads it."""
        catalog = [record.line for record in self.catalog.records(nodes)]
        nodes_conf, gres_conf = self.places.ours
        return {
            gres_conf: publish.gres_conf(nodes),
            nodes_conf: publish.nodes_conf(nodes, catalog),
        }

    def check(self, nodes: Sequence[ManagedNode], also: Sequence[ManagedNode] = ()) -> list[str]:
        """Files that hold an earlier state of ours, such as one brought back from a backup, and
        files of the site's that have lost the line that includes ours.

        `also` are the records with a transaction's slots, when one was interrupted. Raises
        DriftError for a file of ours that is gone or that a person has edited.
        """
        if not nodes:
            return []
        stale = []
        for path, text in self.texts(nodes).items():
            found = _text(path)
            if found == text or (also and found == self.texts(also)[path]):
                continue
            if found is None or not publish.is_sealed(found):
                raise _edited(path, text, found)
            stale.append(str(path))
        return stale + [str(path) for path in self.without_include()]

    def without_record(self, names: Iterable[str]) -> list[str]:
        """Nodes that our nodes.conf has, and that are not among these."""
        text = _text(self.places.ours[0]) or ""
        return sorted(publish.nodes_in(text) - set(names)) if publish.is_sealed(text) else []

    def without_include(self) -> list[Path]:
        """The site's files in which nothing includes ours."""
        both = zip((self.places.conf, self.places.gres_conf), self.places.includes, strict=True)
        return [path for path, name in both if not _includes(_text(path) or "", name)]

    def copies(self) -> Mapping[str, str]:
        """What is here, for a comparison elsewhere: by name, the digest of each of our files, or
        `edited`, `missing`, `not included`."""
        found = {}
        lost = self.without_include()
        sites = (self.places.conf, self.places.gres_conf)
        for name, ours, site in zip(("nodes.conf", "gres.conf"), self.places.ours, sites):  # noqa: B905
            text = _text(ours)
            if text is None:
                found[name] = "missing"
            elif site in lost:
                found[name] = "not included"
            else:
                found[name] = publish.digest(text) if publish.is_sealed(text) else "edited"
        return found

    def write(self, nodes: Sequence[ManagedNode]) -> None:
        """Write both files of ours; nothing else is touched. Raises DriftError for one that a
        person has edited, before anything is written."""
        self.refuse_edited(nodes)
        self._write(self.texts(nodes))

    def refuse_edited(self, nodes: Sequence[ManagedNode]) -> None:
        """Raises DriftError if one of our files was edited by hand; `nodes` is what they should
        have."""
        for path in self.places.ours:
            found = _text(path)
            if found is not None and not publish.is_sealed(found):
                raise _edited(path, self.texts(nodes)[path], found)

    def _write(self, texts: Mapping[Path, str]) -> None:
        for path, text in texts.items():
            make_directory(path.parent)
            write_atomic(path, text)

    def commit(self, nodes: Sequence[ManagedNode]) -> None:
        """`write`, and the site's files around ours: exactly these nodes are ours. Safe to repeat;
        where all is as wanted only our own files are written."""
        site = self.site()
        edits = self._edits(site, nodes)
        self._write(self.besides(nodes))
        self._write(self.texts(nodes))
        site.write(edits, self.backups)

    def besides(self, nodes: Sequence[ManagedNode]) -> dict[Path, str]:
        """What else `commit` writes here."""
        return {}

    def planned(self, nodes: Sequence[ManagedNode]) -> list[FileEdit]:
        """What `commit` would change here."""
        ours = {**self.besides(nodes), **self.texts(nodes)}
        edits = [FileEdit(path, _text(path) or "", text) for path, text in ours.items()]
        return [e for e in edits if e.before != e.after] + self._edits(self.site(), nodes)

    def list_backups(self) -> list[Backup]:
        """Every backup of the site's present files, the newest first. Raises ConfigError."""
        return find_backups((file.path for file in self.site().files), self.backups)

    def bringing_back(
        self, backup: Backup, nodes: Sequence[ManagedNode]
    ) -> tuple[SlurmFiles, list[FileEdit]]:
        """The site as it would be with the backup's text, and the edits to that.

        It is the site's own text that is brought back; these nodes stay in our care whatever was
        when the backup was made. Raises UsageError or ConfigError where that cannot be.
        """
        text = backup.text()
        site = self.site({backup.of: text})
        after = {backup.of: text, **{e.path: e.after for e in self._edits(site, nodes)}}
        edits = [FileEdit(path, _text(path) or "", then) for path, then in after.items()]
        return site, [edit for edit in edits if edit.before != edit.after]

    def _edits(self, site: SlurmFiles, nodes: Sequence[ManagedNode]) -> list[FileEdit]:
        names = [node.name for node in nodes]
        partitions: dict[str, list[str]] = {}
        catalog = []
        for record in self.catalog.records(nodes):
            catalog.append(record.name)
            for partition in record.partitions:
                partitions.setdefault(partition, []).append(record.name)
        return site.manage(names, catalog, partitions, one_host=self._one_host)


def _includes(text: str, name: str) -> bool:
    return re.search(rf"(?m)^Include {re.escape(name)}\r?$", text) is not None


def _edited(path: Path, wanted: str, found: str | None) -> DriftError:
    return DriftError(
        f"{path} was {'removed' if found is None else 'edited by hand'}: "
        f"{_first_difference(wanted, found or '')}; nothing was changed",
        hint="Undo the edit, or run `slurm-mig rewrite` to write the file again.",
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def _first_difference(wanted: str, found: str) -> str:
    ours, theirs = wanted.splitlines(), found.splitlines()
    for number in range(max(len(ours), len(theirs))):
        mine = ours[number] if number < len(ours) else "(nothing)"
        other = theirs[number] if number < len(theirs) else "(nothing)"
        if mine != other:
            return f"line {number + 1} is {other[:80]!r}, should be {mine[:80]!r}"
    return "its line ends"
