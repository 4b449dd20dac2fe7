"""One cycle in a cluster of which a part is replayed: runs on the testbed's head.

    python -m tests.testbed.fleet_cycle [--replayed N] [--record NODE]

`--replayed N` adds N nodes that no slurmd has: slurmctld's word on them is that on a real one under
another name, their own is a recording that the remote command plays back. Everything else, from the
records to the files and the reshape of a real node, is the product's. `--record` makes the
recording and the records. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slurm_mig import config
from slurm_mig.adapters.cluster import PyslurmCluster
from slurm_mig.adapters.system import RealClock
from slurm_mig.assembly import Assembly
from slurm_mig.core.codec import encode
from slurm_mig.core.model import SlurmNode
from slurm_mig.core.records import NodeFacts
from slurm_mig.reconciler import Observation, Reconciler
from tests.testbed.replayed import ADDRESS, LIKE, replayed

CONFIG = Path(config.DEFAULT_PATH)
HANGS_S = 120
RECORDING = Path("/run/replayed.json")


class Fleet(PyslurmCluster):
    """slurmctld, and the nodes that are replayed."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def nodes(self) -> dict[str, SlurmNode]:
        found = super().nodes()
        like = replace(found[LIKE], allocations=(), cpus_alloc=0)
        like = replace(like, features=frozenset({"replayed"}), memory_alloc_mib=0, unsettled=())
        return found | {name: replace(like, name=name) for name in self._names}


class Watched(Reconciler):
    """With the time that it looks, of which the nodes' own share."""

    looked_s = 0.0

    def observe(self) -> Observation:
        began = time.monotonic()
        try:
            return super().observe()
        finally:
            self.looked_s += time.monotonic() - began


def record(node: str, count: int) -> None:
    """The real node's facts and record, for the others to be like."""
    assembly = Assembly.of(config.load(CONFIG))
    with assembly.store.lock(), assembly.nodes:
        facts = assembly.nodes.observe([node])[node]
        assert isinstance(facts, NodeFacts), facts
        RECORDING.write_text(json.dumps({"result": encode(facts)}) + "\n")
        like = assembly.store.managed()[node]
        own = {"NodeAddr": ADDRESS, "Features": "replayed", "State": "FUTURE"}
        for name in replayed(count):
            assembly.store.save_managed(
                replace(like, name=name, attributes={**like.attributes, **own}, partitions=())
            )
        assembly.files.here.commit(list(assembly.store.managed().values()))


def cycle(names: Sequence[str]) -> dict[str, object]:
    assembly = Assembly.of(config.load(CONFIG))
    assembly.cluster = Fleet(names)
    with assembly.store.lock(), assembly.nodes:
        began = time.monotonic()
        reconciler = Watched(
            assembly.cluster,
            assembly.nodes,
            assembly.files,
            assembly.store,
            RealClock(),
            assembly.executor(),
            assembly.policy(),
            assembly.faults,
            assembly.monitor.ended,
        )
        report = reconciler.cycle()
        took = time.monotonic() - began
    return {
        "seconds": took,
        "looked_s": reconciler.looked_s,
        "sentence": report.sentence,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    # Where it stands, if it does.
    faulthandler.dump_traceback_later(HANGS_S, exit=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--replayed", type=int, default=0)
    parser.add_argument("--record", default="")
    given = parser.parse_args()
    if given.record:
        record(given.record, given.replayed)
        return
    print(json.dumps(cycle(replayed(given.replayed))))


if __name__ == "__main__":
    main()
