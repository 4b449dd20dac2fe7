"""What `slurm-mig install` puts on a host: hooks, units, the plugin; and the list of what it put.

Never replaces a file that it did not put there, and takes away only what is still as it was put.
Everything else of the site's stays; its slurm.conf is not edited, only read (commands/install.py).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.errors import ConfigError, SlurmMigError

HOOK_DIR = "/usr/libexec/slurm-mig"
UNIT_DIR = "/etc/systemd/system"
MAN_DIR = "/usr/local/share/man"
ROLES = ("controller", "node")

_FILES: Mapping[str, Sequence[tuple[str, str, int]]] = {
    "controller": (
        ("scripts/slurmctld_prolog", f"{HOOK_DIR}/slurmctld_prolog", 0o755),
        ("scripts/slurmctld_epilog", f"{HOOK_DIR}/slurmctld_epilog", 0o755),
        ("etc/systemd/slurm-mig.service", f"{UNIT_DIR}/slurm-mig.service", 0o644),
        ("etc/systemd/slurm-mig-loop.service", f"{UNIT_DIR}/slurm-mig-loop.service", 0o644),
        ("etc/systemd/slurm-mig.timer", f"{UNIT_DIR}/slurm-mig.timer", 0o644),
        ("etc/systemd/slurm-mig.path", f"{UNIT_DIR}/slurm-mig.path", 0o644),
        ("etc/tmpfiles.d/slurm-mig.conf", "/etc/tmpfiles.d/slurm-mig.conf", 0o644),
        ("etc/job_submit.lua", "{conf_dir}/slurm-mig/job_submit.lua", 0o644),
    ),
    "node": (
        ("scripts/prolog", f"{HOOK_DIR}/prolog", 0o755),
        ("scripts/epilog", f"{HOOK_DIR}/epilog", 0o755),
        ("scripts/task_prolog", f"{HOOK_DIR}/task_prolog", 0o755),
        ("etc/systemd/slurm-mig-check.service", f"{UNIT_DIR}/slurm-mig-check.service", 0o644),
        ("etc/systemd/slurm-mig-check.path", f"{UNIT_DIR}/slurm-mig-check.path", 0o644),
        ("etc/systemd/slurm-mig-restore.service", f"{UNIT_DIR}/slurm-mig-restore.service", 0o644),
    ),
}
"""By role: where it is in our tree, where it goes, its mode."""

LOADER = """\
-- Put here by `slurm-mig install`; a plugin of the site's own may take its place:
-- see the head of slurm-mig/job_submit.lua for the lines that it needs.
dofile("{plugin}")
return slurm.SUCCESS
"""


@dataclass(frozen=True)
class Item:
    """One file to be put somewhere."""

    target: Path
    text: str
    mode: int


def source_tree() -> Path:
    """Where our scripts/ and etc/ are: beside the package, or where pip put them."""
    for tree in (Path(__file__).parents[2], Path(sys.prefix) / "share" / "slurm-mig"):
        if (tree / "scripts" / "task_prolog").exists():
            return tree
    raise SlurmMigError(
        "slurm-mig's scripts/ and etc/ are not installed here; nothing was changed",
        hint="Run it from a checkout, or `pip install` the whole distribution.",
    )


def items(roles: Sequence[str], conf: Path, root: Path) -> Iterator[Item]:
    """Every file of the roles, under `root`; the loader only where no plugin is."""
    tree = source_tree()
    conf_dir = str(conf.parent)
    for role in roles:
        for source, target, mode in _FILES[role]:
            text = (tree / source).read_text(encoding="utf-8")
            yield Item(_under(root, target.format(conf_dir=conf_dir)), text, mode)
    yield from man_pages(tree, root)
    if "controller" in roles:
        loader = _under(root, f"{conf_dir}/job_submit.lua")
        text = LOADER.format(plugin=f"{conf_dir}/slurm-mig/job_submit.lua")
        if not loader.exists() or loader.read_text(encoding="utf-8") == text:
            yield Item(loader, text, 0o644)


def man_pages(tree: Path, root: Path) -> Iterator[Item]:
    """The man pages, where scripts/manual has built them."""
    for page in sorted((tree / "build" / "manual" / "man").glob("*.[158]")):
        target = f"{MAN_DIR}/man{page.suffix[1:]}/{page.name}"
        yield Item(_under(root, target), page.read_text(encoding="utf-8"), 0o644)


DIRECTORY = "directory"


class Installed:
    """The list of what was put, in a file of its own: files by digest, links by target, folders.

    What was there before is not in it, also where it was just what we would have put.
    """

    def __init__(self, manifest: Path) -> None:
        self._manifest = manifest

    def put(self, wanted: Sequence[Item]) -> list[Path]:
        """Put the files; returns those that were new or changed. Raises ConfigError, with nothing
        changed, when another's file is where one of ours should go."""
        known = self._known()
        ours = []
        for item in wanted:
            if not item.target.exists() or self._is_ours(item.target, known):
                ours.append(item)
            elif item.target.read_text(encoding="utf-8", errors="replace") != item.text:
                raise ConfigError(
                    f"{item.target} is there and is not as slurm-mig put it; nothing was changed",
                    hint="Move it away, or take its lines over by hand.",
                )
        changed = []
        for item in ours:
            if not item.target.exists() or item.target.read_text(encoding="utf-8") != item.text:
                changed.append(item.target)
            known |= dict.fromkeys(map(str, _missing(item.target.parent)), DIRECTORY)
            known[str(item.target)] = _digest(item.text)
        # Noted before it is there: what is noted and missing does no harm.
        self._save(known)
        for item in ours:
            item.target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomic(item.target, item.text, mode=item.mode)
            item.target.chmod(item.mode)
        return changed

    @property
    def files(self) -> frozenset[str]:
        """Paths of the files that were put and are there."""
        return frozenset(path for path, noted in self._known().items()
                         if noted != DIRECTORY and Path(path).exists())  # fmt: skip

    def link(self, links: Mapping[Path, Path]) -> None:
        """Symbolic links, such as one in a site's directory of prologs."""
        known = self._known()
        for link, target in links.items():
            if link.is_symlink() and link.readlink() == target:
                continue
            if link.exists() or link.is_symlink():
                raise ConfigError(f"{link} is there and is not ours; it was left as it is")
            known[str(link)] = f"-> {target}"
            self._save(known)
            link.symlink_to(target)

    def take_away(self) -> tuple[list[Path], list[Path]]:
        """Remove what was put; returns what is gone, and what a person has changed and was left."""
        gone, left = [], []
        known = self._known()
        folders = [Path(name) for name, noted in known.items() if noted == DIRECTORY]
        for path in (Path(name) for name, noted in known.items() if noted != DIRECTORY):
            if path.is_symlink() or path.exists():
                if not self._is_ours(path, known):
                    left.append(path)
                    continue
                for file in (*_enabled(path), path):
                    file.unlink()
                    gone.append(file)
        if known:
            self._manifest.unlink()
        folders += {link.parent for link in gone if link.parent.suffix in (".wants", ".requires")}
        for folder in sorted(folders, reverse=True):
            # What a person, or enrolment, put into it since stays.
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return gone, left

    def _is_ours(self, path: Path, known: Mapping[str, str]) -> bool:
        noted = known.get(str(path), "")
        if path.is_symlink():
            return noted == f"-> {path.readlink()}"
        return noted == _digest(path.read_text(encoding="utf-8", errors="replace"))

    def _known(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads(self._manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ConfigError(f"{self._manifest} is damaged: {error}") from error
        return found

    def _save(self, known: dict[str, str]) -> None:
        known |= dict.fromkeys(map(str, _missing(self._manifest.parent)), DIRECTORY)
        self._manifest.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_atomic(self._manifest, json.dumps(known, indent=1) + "\n")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _enabled(unit: Path) -> list[Path]:
    """The links by which `systemctl enable` has a unit started: a slurmd that requires one that is
    gone does not start."""
    found = (unit.parent.glob(f"*.{kind}/{unit.name}") for kind in ("wants", "requires"))
    return sorted(link for links in found for link in links if link.is_symlink())


def _under(root: Path, target: str) -> Path:
    return root / target.lstrip("/")


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there."""
    return [part for part in (folder, *folder.parents) if not part.exists()]
