"""What `scripts/testbed up` keeps running: an enrolled cluster and its reconciler; with `--bare`,
hosts on which slurm-mig was never installed, as docs/install.md begins on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbed.cluster import A100, Cluster, NodeSpec
from tests.testbed.fresh import PROFILE, fresh
from tests.testbed.product import ManagedCluster

MANUALS = (
    NodeSpec("a100-1", (A100, A100), partitions=("main",), features="a100"),
    NodeSpec("a100-2", (A100,), partitions=("main",), features="a100"),
)
"""The cluster of the manual's pages."""


@contextmanager
def enrolled() -> Iterator[Cluster]:
    with ManagedCluster() as cluster:
        cluster.enrol()
        cluster.reconcile_every(1)
        yield cluster


@contextmanager
def bare() -> Iterator[Cluster]:
    with Cluster(nodes=MANUALS) as cluster, fresh(cluster):
        cluster.write("/run/profile", PROFILE)
        yield cluster


def main() -> None:
    with bare() if "--bare" in sys.argv else enrolled() as cluster:
        Path("/run/cluster.pid").write_text(f"{cluster.spaces.pid}\n")
        print(f"cgroups: {cluster.spaces.name}", flush=True)
        print(f"ready: {cluster.describe()}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
