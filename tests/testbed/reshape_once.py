"""One live reshape of one GPU to a given layout, without a queue.

    python -m tests.testbed.reshape_once a100-1 1 3g.20gb@4 1g.5gb@0 1g.5gb@1

Prints the transaction's record as JSON: its seconds are from the drain request until the node
responds again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from slurm_mig import config
from slurm_mig.adapters.system import RealClock
from slurm_mig.assembly import Assembly
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.codec import encode
from slurm_mig.core.model import Gpu, Placement
from slurm_mig.errors import SlurmMigError
from slurm_mig.executor import Executor
from slurm_mig.noderun import Limits


def change(gpu: Gpu, node: str, words: list[str]) -> NodeChange:
    """From what the GPU has to the placements named."""
    target = set()
    for word in words:
        profile, _, start = word.partition("@")
        known = gpu.profile(profile)
        assert known is not None
        target.add(Placement(int(start), known.size, profile))
    now = gpu.layout
    part = GpuChange(
        gpu.index, tuple(sorted(now & target)), tuple(sorted(now - target)),
        tuple(sorted(target - now)))  # fmt: skip
    return NodeChange(node, (part,), (), ())


def main(node: str, index: str, *words: str) -> None:
    assembly = Assembly.of(config.load(Path(config.DEFAULT_PATH)))
    executor = Executor(
        assembly.cluster, assembly.nodes, assembly.files, assembly.store, RealClock(), Limits(),
        by_reconfigure=assembly.by_reconfigure,
    )  # fmt: skip
    with assembly.store.lock(), assembly.nodes:
        facts = assembly.nodes.observe([node])[node]
        if isinstance(facts, SlurmMigError):
            raise facts
        wanted = change(facts.gpus[int(index)], node, list(words))
        outcome = executor.reshape(assembly.store.managed()[node], wanted)
        print(json.dumps(encode(assembly.store.transaction(node))))
    sys.exit(0 if outcome.phase.value == "released" else outcome.sentence)


if __name__ == "__main__":
    main(*sys.argv[1:])
