"""slurm.conf and gres.conf on disk: read, plan an edit, write it.

Called by enrolment and the reconciler, under the lock. Must never write a file that somebody else
changed since it was read, nor part of an edit.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from slurm_mig.adapters.atomic import Staged, stage, write_atomic
from slurm_mig.adapters.slurmfiles import backups
from slurm_mig.adapters.slurmfiles.blocks import Original, undo
from slurm_mig.adapters.slurmfiles.edits import Wanted, check, edit_gres, edit_slurm
from slurm_mig.adapters.slurmfiles.lines import physical_lines
from slurm_mig.adapters.slurmfiles.site import GresLine, NodeDefinition, Partition, Site
from slurm_mig.adapters.slurmfiles.tree import Tree, read_tree
from slurm_mig.errors import ConfigError, DriftError, SlurmMigError

NODES_INCLUDE = "slurm-mig/nodes.conf"
GRES_INCLUDE = "slurm-mig/gres.conf"


@dataclass(frozen=True)
class SiteFile:
    """A file as read, links resolved. `text` is what is on disk, our blocks and all.

    A gres.conf that does not exist is one without text; slurm-mig makes it with mode 0644.
    """

    path: Path
    text: str
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class FileEdit:
    """A file whose text is to change."""

    path: Path
    before: str
    after: str


@dataclass(frozen=True)
class _Loaded:
    files: Mapping[Path, SiteFile]
    slurm: Tree
    gres: Tree
    site: Site


class SlurmFiles:
    """The site's slurm.conf and gres.conf with their includes.

    Questions are answered from the site's own text: what slurm-mig put in force is undone first.
    Invariant: between two edits every line that is not between our marks is the site's, unchanged.
    """

    def __init__(
        self,
        slurm_conf: Path,
        gres_conf: Path,
        *,
        nodes_include: str = NODES_INCLUDE,
        gres_include: str = GRES_INCLUDE,
    ) -> None:
        """The include names are relative to slurm.conf's directory, as Slurm takes them.

        slurmctld hands out included files to configless nodes only if their name has no slash.
        """
        self._slurm_conf = slurm_conf
        self._gres_conf = gres_conf
        self._includes = (nodes_include, gres_include)
        self._loaded: _Loaded | None = None

    def load(self, instead: Mapping[Path, str] | None = None) -> None:
        """Read (again) both files and all they include.

        `instead` gives the text of files, by real path, that are not to be read from disk. Raises
        ConfigError for a file that cannot be read or understood, DriftError (a ConfigError) for a
        block of ours that was changed; what was loaded before then stays.
        """
        files: dict[Path, SiteFile] = {}
        read = partial(_read_original, files, instead or {})
        base = self._slurm_conf.absolute().parent
        try:
            slurm = read_tree(self._slurm_conf, read, base=base, ours=self._includes)
            gres_real = Path(os.path.realpath(self._gres_conf))
            if not gres_real.exists():
                files[gres_real] = SiteFile(gres_real, "", 0o644, os.geteuid(), os.getegid())
            gres = read_tree(self._gres_conf, read, base=base, ours=self._includes)
        except OSError as error:
            raise ConfigError(
                f"{error.filename} cannot be read: {error.strerror}; nothing was changed"
            ) from error
        both = set(slurm.files) & set(gres.files)
        if both:
            raise ConfigError(
                f"{min(both)} belongs to both slurm.conf and gres.conf; nothing was changed"
            )
        self._loaded = _Loaded(files, slurm, gres, Site(slurm.lines, gres.lines))

    @property
    def files(self) -> list[SiteFile]:
        """Every file read: slurm.conf, its includes, gres.conf, its includes."""
        return list(self._now.files.values())

    def node(self, name: str) -> NodeDefinition:
        """The site's definition of a node. Raises UsageError, ConfigError (`Site.node`)."""
        return self._now.site.node(name)

    def node_names(self) -> list[str]:
        """All nodes that the site defines, in the order of the files. Raises ConfigError."""
        return self._now.site.node_names()

    def partitions(self) -> list[Partition]:
        """All partitions, in the order of the files. Raises ConfigError."""
        return self._now.site.partitions()

    def partitions_of(self, node: str) -> list[str]:
        """Names of the partitions that hold a node. Raises ConfigError."""
        return self._now.site.partitions_of(node)

    def value(self, key: str) -> str | None:
        """The value of a simple option of slurm.conf, any case; the last line wins."""
        return self._now.site.value(key)

    def gres_lines(self, node: str) -> list[GresLine]:
        """The Name=gpu lines that apply to a node, in Slurm's order. Raises ConfigError."""
        return self._now.site.gres_lines(node)

    def autodetect(self, node: str) -> str | None:
        """The site's AutoDetect for a node, its own or the global one. Raises ConfigError."""
        return self._now.site.autodetect(node)

    def manage(
        self,
        enrolled: Collection[str],
        catalog: Collection[str] = (),
        catalog_partitions: Mapping[str, Collection[str]] | None = None,
        *,
        one_host: bool = False,
    ) -> list[FileEdit]:
        """The edits after which `enrolled` is ours, `catalog` in its partitions, the rest as is.

        Empty where the files say so already. Both includes stand while anything is ours, so both
        included files must exist before the edit is written. Raises UsageError for a name that
        does not exist, ConfigError with file and line for what cannot be edited safely.
        `one_host`: the files are the one enrolled node's own copies.
        """
        now = self._now
        wanted = Wanted(frozenset(enrolled), frozenset(catalog), catalog_partitions or {}, one_host)
        check(wanted, now.site)
        after = {
            **edit_slurm(now.slurm, wanted, self._includes[0]),
            **edit_gres(now.gres, wanted, self._includes[1]),
        }
        return [
            FileEdit(path, now.files[path].text, text)
            for path, text in after.items()
            if text != now.files[path].text
        ]

    def stray(self, enrolled: Collection[str]) -> str:
        """What gres.conf says of gpus of `enrolled` nodes beside our own lines, such as an
        AutoDetect put back by hand; empty when it says nothing. Raises ConfigError."""
        now = self._now
        after = edit_gres(now.gres, Wanted(frozenset(enrolled), frozenset(), {}), self._includes[1])
        changed = sorted(str(p) for p, text in after.items() if text != now.files[p].text)
        if not changed:
            return ""
        return (
            f"{changed[0]} has gpu or AutoDetect lines for nodes in slurm-mig's care, or lacks "
            "its marked lines: take the lines out again, or `leave` and `enrol` the nodes"
        )

    def write(
        self, edits: Sequence[FileEdit], backup_dir: Path, *, at: datetime | None = None
    ) -> None:
        """Write all edits or none, each file in one step, after a backup of each (newest 20 kept).

        Raises DriftError if a file is no longer as it was read, ConfigError if one cannot be
        written; then every file is as it was. Load again afterwards.
        """
        for edit in edits:
            if _on_disk(edit.path) != edit.before:
                raise DriftError(
                    f"{edit.path} was changed since it was read; no file was written",
                    hint="Somebody edited it meanwhile: try again.",
                )
        staged: list[Staged] = []
        try:
            for edit in edits:
                staged.append(stage(edit.path, edit.after))
            for edit in edits:
                if edit.path.exists():
                    backups.keep(
                        edit.path, edit.before, backup_dir, at or datetime.now(timezone.utc)
                    )
        except BaseException:
            for copy in staged:
                copy.discard()
            raise
        _commit(edits, staged)

    def diff(self, edits: Sequence[FileEdit]) -> str:
        """The edits as a unified diff, ready to print."""
        return "".join(_diff(edit) for edit in edits)

    @property
    def _now(self) -> _Loaded:
        if self._loaded is None:
            self.load()
        assert self._loaded is not None
        return self._loaded


def _read_original(
    files: dict[Path, SiteFile], instead: Mapping[Path, str], path: Path
) -> tuple[Path, Original]:
    real = Path(os.path.realpath(path))
    if real not in files:
        text = instead[real] if real in instead else _text(real)
        info = os.stat(real)
        files[real] = SiteFile(real, text, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    return real, undo(files[real].text, real)


def _text(path: Path) -> str:
    """The bytes of a file as text that encodes to the same bytes again. Raises OSError."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _on_disk(path: Path) -> str:
    """The file's text, '' if there is none. Raises ConfigError."""
    try:
        return _text(path)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; no file was written"
        ) from error


def _commit(edits: Sequence[FileEdit], staged: Sequence[Staged]) -> None:
    for n, copy in enumerate(staged):
        try:
            copy.commit()
        except SlurmMigError:
            for later in staged[n + 1 :]:
                later.discard()
            for edit in reversed(edits[:n]):
                write_atomic(edit.path, edit.before)
            raise


def _diff(edit: FileEdit) -> str:
    lines = difflib.unified_diff(
        physical_lines(_printable(edit.before)),
        physical_lines(_printable(edit.after)),
        f"{edit.path} (now)",
        f"{edit.path} (then)",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
