"""`slurm-mig reconcile`: one cycle, or one after the other until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType

from slurm_mig import config
from slurm_mig.adapters.requests import Code
from slurm_mig.assembly import Assembly
from slurm_mig.errors import SlurmMigError
from slurm_mig.printing import say

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""A woken cycle is followed by another: what it was woken for may not have been in the queue."""

UPDATED_S = 2.0
"""How long the program's files must stay as they are before an updated one takes over."""


def once(config_path: Path, *, woken: bool) -> list[str]:
    """One cycle; returns the nodes that need a person."""
    assembly = Assembly.of(config.load(config_path))
    with assembly.nodes:
        return _cycle(assembly, woken=woken)


def run(config_path: Path, pause_s: float, *, woken: bool) -> None:
    """Cycles until SIGTERM, pausing so long, or less when woken.

    The sessions with the nodes are kept. The configuration is read anew for each cycle, and an
    updated program replaces this one between two cycles.
    """
    code, ending = Code(()), _ending()
    nodes, asked = None, False
    try:
        while not ending():
            assembly = Assembly.of(config.load(config_path), nodes)
            nodes = assembly.nodes
            wait_s = min(pause_s, AGAIN_S) if asked else pause_s
            try:
                _cycle(assembly, woken=woken)
            except SlurmMigError as error:
                if error.retry_s is None:
                    raise
                # A person at work, or a slurmctld that restarts, is no reason to end.
                say(f"slurm-mig: {error}", err=True)
                wait_s = error.retry_s
            nodes.rest()
            if code.changed():
                nodes.close()
                _become_the_updated_one()
            asked = assembly.wake.wait(wait_s, ending)
    finally:
        if nodes is not None:
            nodes.close()


def _cycle(assembly: Assembly, *, woken: bool) -> list[str]:
    """One cycle under the lock; returns the nodes that need a person."""
    if woken and (last := assembly.store.report()):
        assembly.wake.rest(last.time)
    with assembly.store.lock(), closing(assembly.files):
        assembly.wake.take()
        try:
            report = assembly.reconciler().cycle()
        except SlurmMigError as error:
            assembly.monitor.failed(error)
            raise
        assembly.write_free(report)
        quarantined = [
            t.node
            for name in assembly.store.managed()
            if (t := assembly.store.transaction(name)) and t.is_open and not t.waits
        ]
    say(report.sentence)
    return quarantined


def _become_the_updated_one() -> None:
    """Start this program again in its own place, once its files are no longer being written."""
    while True:
        code = Code(())
        time.sleep(UPDATED_S)
        if not code.changed():
            break
    log.info("slurm-mig was updated: starting again")
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def _ending() -> Callable[[], bool]:
    """True once SIGTERM has come: asked between two cycles, never inside one."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, note)
    return lambda: bool(asked)
