"""`slurm-mig install` and `uninstall`: hooks, units and the submit plugin where they belong.

slurm.conf stays the site's: the lines that it lacks are shown, and looked for in what Slurm says
is in force. A Prolog or Epilog of the site's own is joined: a further line, or a link in its
directory.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click

from slurm_mig.adapters.installed import HOOK_DIR, ROLES, Installed, items
from slurm_mig.core import wiring
from slurm_mig.errors import Exit, SlurmMigError, UnreachableError

MANIFEST = Path("/var/lib/slurm-mig/installed.json")
LINK = "50-slurm-mig"
ANSWER_S = 10.0

ROOT_OPTION = click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), hidden=True,
    help="Another root directory.",
)  # fmt: skip


def _under(root: Path, path: str | Path) -> Path:
    return root / str(path).lstrip("/")


def _in_force() -> dict[str, list[str]]:
    """Slurm's configuration as slurmctld has it."""
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True,
                              check=True, timeout=ANSWER_S, stdin=subprocess.DEVNULL)  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UnreachableError(
            f"scontrol show config: {error}", hint="The lines can be checked once slurmctld is up."
        ) from error
    return wiring.parse(done.stdout)


def _calls(program: str, ours: str) -> bool:
    """Does a program of the site's name ours, or a pattern match a link to it?"""
    path = Path(program)
    if program.endswith("/*"):
        return any(p.resolve() == Path(ours).resolve() for p in path.parent.glob("*"))
    try:
        return ours in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _show(config: dict[str, list[str]], conf: Path) -> bool:
    """Print each line with whether it is there; True when all are."""
    found = wiring.findings(config, HOOK_DIR, _calls)
    plugin = conf.parent / "job_submit.lua"
    has_plugin = plugin.exists() and "slurm-mig/job_submit.lua" in plugin.read_text()
    for finding in found:
        click.echo(f"{'ok     ' if finding.there else 'missing'} {finding.line}")
        if not finding.there:
            click.echo(f"        ({finding.why})")
    if not has_plugin:
        click.echo(f"missing {plugin}: dofile(\"{conf.parent}/slurm-mig/job_submit.lua\") and its "
                   "two calls, see the head of that file")  # fmt: skip
    if has_plugin and all(finding.there for finding in found):
        return True
    click.echo(f"Put what is missing into {conf}; then `systemctl restart slurmctld`, `scontrol "
               "reconfigure`, and look again: `slurm-mig install --check`.")  # fmt: skip
    return False


@click.command()
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), default=ROLES,
              show_default=True, help="What this host is; both by default.")  # fmt: skip
@click.option("--conf", type=click.Path(path_type=Path), default=Path("/etc/slurm/slurm.conf"),
              show_default=True, help="slurm.conf; the plugin goes beside it.")  # fmt: skip
@click.option("--check", "only_check", is_flag=True, help="Put nothing; look for the lines only.")
@ROOT_OPTION
@click.pass_context
def install(
    ctx: click.Context,
    roles: tuple[str, ...],
    conf: Path,
    only_check: bool,  # noqa: FBT001
    root: Path,
) -> None:
    """Put hooks, units and the submit plugin in place, and check slurm.conf for their lines.

    Ends with 1 while a line is missing. slurm.conf itself is never edited by this.
    """
    if not only_check:
        installed = Installed(_under(root, MANIFEST))
        for path in installed.put(list(items(roles, conf, root))):
            click.echo(f"put     {path}")
    config = _in_force()
    if not only_check:
        programs = {key: name for key, name, _ in wiring.NEEDED}
        directories = {
            key: Path(folder)
            for key, folder in wiring.joined_directories(config).items()
            if Path(folder).is_dir() and _under(root, f"{HOOK_DIR}/{programs[key]}").exists()
        }
        installed.link(
            {folder / LINK: Path(HOOK_DIR) / programs[key] for key, folder in directories.items()}
        )
    ctx.exit(Exit.OK if _show(config, _under(root, conf)) else Exit.REFUSED)


def _loaded(plugin: Path) -> list[str]:
    """The files that a submit plugin reads by their names."""
    return re.findall(
        r"""(?m)^[^-\n]*\bdofile\(?\s*["']([^"']+)""", plugin.read_text("utf-8", "replace")
    )


def _refuse_while_called(installed: Installed, conf: Path) -> None:
    """A hook that is gone while Slurm calls it fails every job, and drains its node."""
    config, files = _in_force(), installed.files
    lines = wiring.callers(config, files, _calls)
    plugin = conf.parent / "job_submit.lua"
    if plugin.exists() and any(name in files for name in (str(plugin), *_loaded(plugin))):
        lines += [f"JobSubmitPlugins={value}" for value in config.get("JobSubmitPlugins", ())
                  if "lua" in value.split(",")]  # fmt: skip
    if lines:
        raise SlurmMigError(
            f"Slurm still calls what would go: {', '.join(lines)}; nothing was changed",
            hint="Take these lines out of slurm.conf, `scontrol reconfigure`, and try again.",
        )


@click.command()
@click.option("--conf", type=click.Path(path_type=Path), default=Path("/etc/slurm/slurm.conf"),
              show_default=True, help="slurm.conf, as for `install`.")  # fmt: skip
@click.option("--force", is_flag=True,
              help="Do not ask slurmctld whether it still calls what goes.")  # fmt: skip
@ROOT_OPTION
@click.pass_context
def uninstall(
    ctx: click.Context,
    conf: Path,
    force: bool,  # noqa: FBT001
    root: Path,
) -> None:
    """Take away what `install` put, unless a person has changed it since.

    Refused while Slurm's configuration in force still calls a part of it. Folders that `install`
    made go with it, unless something else is in them.
    """
    installed = Installed(_under(root, MANIFEST))
    if not force and installed.files:
        _refuse_while_called(installed, _under(root, conf))
    gone, left = installed.take_away()
    for path in gone:
        click.echo(f"removed {path}")
    for path in left:
        click.echo(f"left    {path}: changed by another hand")
    ctx.exit(Exit.REFUSED if left else Exit.OK)
