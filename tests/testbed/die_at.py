"""A reconcile cycle to which something happens right after one call to the outside.

    python -m tests.testbed.die_at cluster.drain            it is killed (SIGKILL to itself)
    python -m tests.testbed.die_at before:release           the same between two steps
    python -m tests.testbed.die_at cluster.drain COMMAND…   somebody runs a command, and it goes on

The calls are those of slurm_mig/ports.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slurm_mig import config
from slurm_mig.adapters.system import RealClock
from slurm_mig.assembly import Assembly
from slurm_mig.core.policy import Policy
from slurm_mig.core.transitions import Step
from slurm_mig.executor import Executor
from slurm_mig.reconciler import Reconciler


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Eventful:
    """A port after whose one method something happens, the first time."""

    def __init__(self, port: Any, call: str, happen: Callable[[], None]) -> None:
        self._port = port
        self._call = call
        self._happen = happen

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._call:
            return real

        def eventful(*arguments: Any) -> Any:
            answer = real(*arguments)
            self._happen()
            return answer

        return eventful


def once(command: Sequence[str]) -> Callable[[], None]:
    """Dies, or runs the command the first time it is called."""
    ran: list[bool] = []

    def happen() -> None:
        if not command:
            die()
        if not ran:
            ran.append(True)
            # Slurm may refuse it: nothing happened then. A clock that is off is not the command's.
            own = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
            subprocess.run(command, check=False, env=own)

    return happen


def main(point: str, *command: str) -> None:
    assembly = Assembly.of(config.load(Path(config.DEFAULT_PATH)))
    port, _, call = point.partition(".")
    happen = once(command)
    ports: dict[str, Any] = {
        name: Eventful(getattr(assembly, name), call if name == port else "", happen)
        for name in ("cluster", "nodes", "files", "store")
    }

    def alive(step: Step) -> None:
        if point == f"before:{step.value}":
            happen()

    executor = Executor(**ports, clock=RealClock(), limits=assembly.limits(), alive=alive,
                        by_reconfigure=assembly.by_reconfigure)  # fmt: skip
    with assembly.store.lock():
        Reconciler(**ports, clock=RealClock(), executor=executor, rules=Policy()).cycle()
    print(assembly.store.report())


if __name__ == "__main__":
    main(*sys.argv[1:])
