"""`inventory`, `profiles`, `apply`, `assert`, `export`, `mode`, `gres`, `check`, `restore`.

On the GPU node as root, or with `--node` from the controller. The verbs themselves are in
gpuverbs.py (on the node) and managedlayout.py (on a node in the controller's care).
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slurm_mig import config
from slurm_mig.commands.controller import assembled
from slurm_mig.errors import UnreachableError, UsageError
from slurm_mig.printing import say

if TYPE_CHECKING:
    from slurm_mig.gpuverbs import Answer, Request, Wish

C = TypeVar("C", bound=Callable[..., Any])

DEFAULT_LAYOUTS = "/etc/slurm/mig-layouts.yaml"


def here_options(command: C) -> C:
    """The options that every verb about GPUs has."""
    for option in (
        click.option("--name", help="This node's NodeName; by default its short host name."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option(
            "--config", "config_path", type=click.Path(path_type=Path), show_default=True,
            envvar="SLURM_MIG_CONFIG", default=Path(config.DEFAULT_PATH),
            help="Configuration file.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def where_options(command: C) -> C:
    """And those of the verbs that the controller can ask a node for."""
    node = click.option(
        "--node", "node", metavar="NODE",
        help="Ask this node, from the controller, instead of the machine we are on.",
    )  # fmt: skip
    return here_options(node(command))


FILE_OPTION = click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path), envvar="SLURM_MIG_LAYOUTS",
    default=Path(DEFAULT_LAYOUTS), show_default=True,
    help="File of named layouts, in mig-parted's format.",
)  # fmt: skip

WISH_ARGUMENT = click.argument("what", nargs=-1, required=True)


@click.command()
@click.option("--record", "record", type=click.Path(dir_okay=False, path_type=Path),
              help="Write what the GPUs show to this file, as data without anything that tells "
              "whose they are, and say what the built-in tables have otherwise.")  # fmt: skip
@where_options
def inventory(record: Path | None, **where: Any) -> None:
    """List GPUs, MIG modes, instances, what identifies them, and who holds them."""
    if record is None:
        _run(where, "inventory")
        return
    from slurm_mig.adapters.atomic import write_atomic
    from slurm_mig.core.codec import decode, encode
    from slurm_mig.core.observed import Record
    from slurm_mig.gpuverbs import Request, printable

    answer = _answer(where, Request("record"))
    seen = decode(Record, answer.data["record"], where["node"] or "record")
    write_atomic(record, json.dumps(encode(seen), indent=1) + "\n")
    say(printable(answer, as_json=where["as_json"]), nl=False)


@click.command()
@where_options
def profiles(**where: Any) -> None:
    """Show what each GPU can hold, and how many more of it fit now, and where."""
    _run(where, "profiles")


@click.command()
@WISH_ARGUMENT
@FILE_OPTION
@click.option("--dry-run", is_flag=True, help="Show the change as a diff; change nothing.")
@where_options
def apply(what: tuple[str, ...], file: Path, dry_run: bool, **where: Any) -> None:  # noqa: FBT001
    """Cut GPUs as WHAT says; only what differs is changed, busy instances never.

    WHAT is the name of a layout in the file, or words such as gpu0=3g.20gb,1g.5gb*2, all=1g.5gb*7,
    gpu1=off, gpu0=3g.20gb@4 (at this place).
    """
    _run(where, "apply", wish=_wish(what, file), dry_run=dry_run)


@click.command("assert")
@WISH_ARGUMENT
@FILE_OPTION
@where_options
def assert_(what: tuple[str, ...], file: Path, **where: Any) -> None:
    """Exit with 0 if the GPUs are as WHAT says, with 1 if not."""
    _run(where, "assert", wish=_wish(what, file))


def choice_options(command: C) -> C:
    """The options that choose devices for an export, and say how."""
    for option in (
        click.option("--check", "check_only", is_flag=True,
                     help="Look at what the export needs of the node, instead of printing it."),
        click.option("--vgpu", is_flag=True, help="libvirt: one instance as a vGPU."),
        click.option("--part", default="all", help="kubernetes: this part alone.",
                     type=click.Choice(["all", "values", "mig-manager", "labels", "discovery",
                                        "pod"])),
        click.option("--strategy", default="", type=click.Choice(["", "single", "mixed", "none"]),
                     help="kubernetes: the MIG strategy; by default the one that fits."),
        click.option("--image", help="Container image."),
        click.option("--count", type=click.IntRange(min=1), help="So many devices."),
        click.option("--free", is_flag=True, help="Of what nobody uses and Slurm does not have."),
        click.option("--owner", default="", help="Of what this owner has (`outside`)."),
        click.option("--job", type=click.IntRange(min=1), help="The devices of this Slurm job."),
        click.option("--uuid", "uuids", multiple=True, help="This device."),
        click.option("--profile", "profiles", multiple=True, help="Of this profile."),
        click.option("--gpu", "gpus", multiple=True, type=click.IntRange(min=0),
                     help="Of this GPU, by index."),
    ):  # fmt: skip
        command = option(command)
    return command


FORMATS = ("mig-parted", "slurm", "docker", "compose", "podman", "cdi", "env", "kubernetes",
           "libvirt")  # fmt: skip


@click.command()
@click.argument("form", metavar="[FORMAT]", default="mig-parted", type=click.Choice(FORMATS))
@click.option("--inline", is_flag=True, help="mig-parted: as words for `apply`, with places.")
@choice_options
@where_options
def export(form: str, inline: bool, **options: Any) -> None:  # noqa: FBT001
    """Print devices in the words of another world; change nothing.

    \b
    FORMAT: mig-parted (the default: what is there, as a file that `apply` reads),
    slurm (gres.conf), docker, compose, podman, cdi, env (enroot, pyxis, apptainer,
    singularity), kubernetes, libvirt.

    What is Slurm's is not handed out, but for --job.
    """
    from slurm_mig.core.exports.chosen import Ask

    where = {key: options.pop(key) for key in ("node", "name", "as_json", "config_path")}
    if inline and form != "mig-parted":
        raise UsageError(f"--inline is of mig-parted, not of {form}")
    options["check"] = options.pop("check_only")
    given = {key: value for key, value in options.items() if value is not None}
    if form in ("mig-parted", "slurm") and (named := _given(given)):
        raise UsageError(f"{form} is about the whole node: {', '.join(named)} cannot be given")
    _run(where, "export", inline=inline, ask=Ask(form, **given))


def _given(options: dict[str, Any]) -> list[str]:
    plain = {"gpus": "--gpu", "profiles": "--profile", "uuids": "--uuid"}
    return [plain.get(key, f"--{key}") for key, value in options.items()
            if value and (key, value) != ("part", "all")]  # fmt: skip


@click.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.argument("gpus", nargs=-1, type=click.IntRange(min=0))
@where_options
def mode(state: str, gpus: tuple[int, ...], **where: Any) -> None:
    """Switch the MIG mode of idle, empty GPUs (by index; none: all that can do MIG)."""
    _run(where, "mode", gpus=gpus, on=state == "on")


@click.command()
@where_options
def gres(**where: Any) -> None:
    """Print gres.conf's lines and the Gres value for what is there."""
    _run(where, "gres")


@click.command()
@where_options
def check(**where: Any) -> None:
    """Look for all that is wrong with MIG on a node, who holds its GPUs, and what mends it."""
    _run(where, "check")


@click.command()
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="Seconds to wait for the driver.")  # fmt: skip
@here_options
def restore(wait_s: float, name: str | None, as_json: bool, config_path: Path) -> None:  # noqa: FBT001
    """After a boot: the GPUs as they were recorded, before slurmd starts."""
    from slurm_mig.adapters.bootrecord import BootRecord
    from slurm_mig.adapters.managedhere import managed_here
    from slurm_mig.adapters.system import RealClock, require_root
    from slurm_mig.exporting import keep_cdi
    from slurm_mig.gpuverbs import Answer, printable
    from slurm_mig.node import NodeAgent
    from slurm_mig.restore import Restorer, started

    require_root("restore")
    settings, name = _settings(config_path), _name(name)
    record = BootRecord(Path(settings.state_dir)).load()
    if record is None:
        text, gpus = "nothing was recorded: nothing to restore\n", []
    else:
        agent = started(lambda: NodeAgent(settings, name), RealClock(), wait_s)
        prepare = agent.prepare if managed_here(settings, name) else None
        gpus = Restorer(agent.gpus, prepare).restore(record)
        text = "".join(f"{sentence}\n" for sentence in gpus)
        keep_cdi(settings, name, agent.gpus.inventory())
    answer = Answer(text, {"recorded": record is not None, "gpus": gpus})
    say(printable(answer, as_json=as_json), nl=False)


VERBS = (inventory, profiles, apply, assert_, export, mode, gres, check, restore)


def _wish(what: tuple[str, ...], file: Path) -> Wish:
    """Inline words, or the entries of the named layout."""
    from slurm_mig.gpuverbs import Wish

    if len(what) > 1 or "=" in what[0]:
        return Wish(words=what)
    from slurm_mig.adapters.located import read
    from slurm_mig.core.layoutfile import interpret

    layouts = interpret(read(file), str(file))
    if what[0] not in layouts:
        raise UsageError(
            f"{file} has no layout {what[0]!r}; it has {', '.join(layouts) or 'none'}",
            hint="Or say what is wanted: gpu0=3g.20gb,1g.5gb*2",
        )
    return Wish(entries=layouts[what[0]])


def _run(where: dict[str, Any], verb: str, **arguments: Any) -> None:
    from slurm_mig.gpuverbs import Request, printable

    answer = _answer(where, Request(verb, **arguments))
    say(printable(answer, as_json=where["as_json"]), nl=False)
    sys.exit(answer.exit)


def _answer(where: dict[str, Any], request: Request) -> Answer:
    if where["node"] is None:
        return _here(where, request)
    return _remote(where["config_path"], where["node"], request)


def _here(where: dict[str, Any], request: Request) -> Answer:
    from slurm_mig.adapters.gpus import NvmlGpus
    from slurm_mig.adapters.system import require_root
    from slurm_mig.gpuverbs import GpuVerbs

    require_root(request.verb)
    settings = _settings(where["config_path"])
    try:
        return GpuVerbs(settings, _name(where["name"]), NvmlGpus(settings.caps_dir)).answer(request)
    except UnreachableError as error:
        error.hint += " The GPUs of another machine: --node NODE."
        raise


def _remote(config_path: Path, node: str, request: Request) -> Answer:
    from slurm_mig.core.codec import decode, encode
    from slurm_mig.gpuverbs import Answer
    from slurm_mig.managedlayout import CHANGING, change_managed

    assembly = assembled(config_path)
    with assembly.nodes:
        if request.verb in CHANGING and node in assembly.store.managed():
            return change_managed(assembly, node, request)
        return decode(Answer, assembly.nodes.gpus(node, encode(request)), node)


def _settings(path: Path) -> config.NodeSettings:
    """The node's settings; the defaults on a machine where slurm-mig is not configured."""
    if path == Path(config.DEFAULT_PATH) and not path.exists():
        return config.NodeSettings()
    return config.load_node(path)


def _name(name: str | None) -> str:
    return name or socket.gethostname().partition(".")[0]
