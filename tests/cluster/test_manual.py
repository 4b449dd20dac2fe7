"""Every command in the manual's console blocks, on a running cluster, with what the pages state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import console
from tests.testbed.cluster import A100, Cluster, NodeSpec
from tests.testbed.product import CONFIGURATION, ManagedCluster

DOCS = Path(__file__).parents[2] / "docs"
NODES = (
    NodeSpec("a100-1", (A100, A100), partitions=("main",), features="a100"),
    NodeSpec("a100-2", (A100,), partitions=("main",), features="a100"),
)
ALONE = ("install.md",)
"""Pages that begin on a cluster that slurm-mig has not touched."""


def pages() -> list[str]:
    """Pages with console blocks: first-reshape first, as the others go on from there."""
    found = [p.name for p in sorted(DOCS.glob("*.md")) if "```console" in p.read_text()]
    return sorted((p for p in found if p not in ALONE), key=lambda p: p != "first-reshape.md")


@pytest.fixture(scope="module")
def managed() -> Iterator[ManagedCluster]:
    """An enrolled cluster whose cycles run, as the timer has them run."""
    with ManagedCluster(nodes=NODES) as cluster:
        cluster.enrol()
        cluster.sh(
            "setsid -f slurm-mig reconcile --loop 1 >/var/log/slurm/reconcile.log 2>&1 </dev/null"
        )
        yield cluster


def test_the_pages_are_there() -> None:
    assert {"first-reshape.md", "guide.md", "runbook.md"} <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_commands_of(managed: ManagedCluster, page: str) -> None:
    assert len(console.run(managed, DOCS / page)) >= 1


def test_installation_and_the_way_back() -> None:
    with Cluster(nodes=NODES) as cluster:
        cluster.write("/run/site.yaml", CONFIGURATION)
        cluster.sh("mkdir -p /usr/libexec/slurm-mig && rm -r /usr/libexec/slurm-mig")
        before = [cluster.read(f"/etc/slurm/{name}") for name in ("slurm.conf", "gres.conf")]
        console.run(cluster, DOCS / "install.md")
        after = [cluster.read(f"/etc/slurm/{name}") for name in ("slurm.conf", "gres.conf")]
        assert before == after
