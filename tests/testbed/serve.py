"""What `scripts/testbed up` keeps running: an enrolled cluster and its reconciler."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.testbed.product import ManagedCluster


def main() -> None:
    with ManagedCluster() as cluster:
        cluster.enrol()
        cluster.reconcile_every(1)
        Path("/run/cluster.pid").write_text(f"{cluster.spaces.pid}\n")
        print(f"cgroups: {cluster.spaces.name}", flush=True)
        print(f"ready: {cluster.describe()}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
