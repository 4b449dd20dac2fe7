"""A reconcile cycle that is killed (SIGKILL to itself) right after one call to the outside.

    python -m tests.testbed.die_at cluster.drain
    python -m tests.testbed.die_at before:release

The calls are those of slurm_mig/ports.py; `before:STEP` kills between two steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from slurm_mig import config
from slurm_mig.adapters.system import RealClock
from slurm_mig.assembly import Assembly
from slurm_mig.core.policy import Policy
from slurm_mig.core.transitions import Step
from slurm_mig.executor import Executor, Limits
from slurm_mig.reconciler import Reconciler


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Deadly:
    """A port whose one method is the last thing that the process does."""

    def __init__(self, port: Any, deadly: str) -> None:
        self._port = port
        self._deadly = deadly

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._port, name)
        if name != self._deadly:
            return real

        def last(*arguments: Any) -> Any:
            real(*arguments)
            die()

        return last


def main(point: str) -> None:
    assembly = Assembly.of(config.load(Path(config.DEFAULT_PATH)))
    port, _, call = point.partition(".")
    ports: dict[str, Any] = {
        name: Deadly(getattr(assembly, name), call if name == port else "")
        for name in ("cluster", "nodes", "files", "store")
    }

    def alive(step: Step) -> None:
        if point == f"before:{step.value}":
            die()

    executor = Executor(**ports, clock=RealClock(), limits=Limits(), alive=alive)
    with assembly.store.lock():
        Reconciler(**ports, clock=RealClock(), executor=executor, rules=Policy()).cycle()
    print(assembly.store.report())


if __name__ == "__main__":
    main(sys.argv[1])
