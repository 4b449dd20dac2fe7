"""`slurm-mig pause` and `resume`: an administrator's wish that nothing is changed for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig.commands.controller import assembled
from slurm_mig.commands.options import CONFIG_OPTION
from slurm_mig.core import pauses
from slurm_mig.core.records import Event, Pause
from slurm_mig.errors import BusyError, UsageError
from slurm_mig.printing import say

if TYPE_CHECKING:
    from slurm_mig.assembly import Assembly

WHAT = click.argument("what", nargs=-1, metavar="[NODE|@GROUP]...")


@click.command()
@CONFIG_OPTION
@WHAT
@click.option("--reason", default="", help="Why, for `status` and the history.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=120.0, show_default=True,
              help="Seconds to wait for a cycle at work to finish what it began.")  # fmt: skip
def pause(config_path: Path, what: tuple[str, ...], reason: str, wait_s: float) -> None:
    """Begin no change: of the nodes named, of the groups (`@name`, see `groups`), or, without
    any, of the whole cluster.

    What was begun is finished or undone; when this command has ended well, no cycle is at work.
    Commands that you give by hand (`undo`, `enrol`, …) still do as they are told.
    """
    assembly = assembled(config_path)
    scopes = list(_scopes(what)) or [""]
    _must_be_known(assembly, scopes)
    for scope in scopes:
        wish = Pause(scope, *_now_and_who(), " ".join(reason.split()))
        assembly.store.pause(wish)
        _remember(assembly, "paused", wish)
        say(pauses.said(wish))
    try:
        with assembly.store.lock(wait_s):
            pass
    except BusyError as error:
        raise BusyError(
            f"{error.args[0]} and finishes what it began; the pause stands",
            hint="Run the command again to wait for it.",
        ) from error


@click.command()
@CONFIG_OPTION
@WHAT
def resume(config_path: Path, what: tuple[str, ...]) -> None:
    """Lift the pause of the nodes or groups named or, without any, that of the whole cluster."""
    assembly = assembled(config_path)
    there = {pause.scope: pause for pause in assembly.store.pauses()}
    scopes = list(_scopes(what)) or [""]
    for scope in scopes:
        if scope not in there:
            raise UsageError(
                f"{Pause(scope, 0.0, '').what} has no pause of its own; nothing was changed",
                hint="; ".join(map(pauses.said, there.values())) or "Nothing is paused.",
            )
    for scope in scopes:
        assembly.store.lift(scope)
        _remember(assembly, "resumed", Pause(scope, *_now_and_who()))
        say(f"{there[scope].what}: no longer paused")
    for left in assembly.store.pauses():
        say(f"still {pauses.said(left)}")


def _scopes(what: Sequence[str]) -> Iterator[str]:
    """Groups as they are, node sets name by name."""
    from slurm_mig.adapters.nodesets import expand

    for word in what:
        if word.startswith("@"):
            yield word
        else:
            yield from sorted(expand(word))


def _must_be_known(assembly: Assembly, scopes: Sequence[str]) -> None:
    nodes, groups = assembly.store.managed(), set(assembly.policy().groups.values())
    for scope in scopes:
        if scope.startswith("@") and scope[1:] not in groups:
            known = ", ".join(f"@{name}" for name in sorted(groups)) or "none has a name"
            raise UsageError(
                f"no group of the configuration is called {scope[1:]!r}; nothing was changed",
                hint=f"Groups: {known}",
            )
        if scope and not scope.startswith("@") and scope not in nodes:
            raise UsageError(
                f"{scope} is not enrolled; nothing was changed",
                hint=f"Enrolled: {', '.join(nodes) or 'none'}",
            )


def _now_and_who() -> tuple[float, str]:
    from slurm_mig.adapters.system import RealClock, who_asks

    return RealClock().now(), who_asks()


def _remember(assembly: Assembly, did: str, pause: Pause) -> None:
    nodes = () if not pause.scope or pause.scope.startswith("@") else (pause.scope,)
    event = Event(pause.since, did, pause.what, pause.by, pause.reason, nodes)
    assembly.store.history.append(event)
