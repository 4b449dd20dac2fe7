"""One enrolled cluster for most tests, without jobs between them; fresh ones on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.cluster import Cluster
from tests.testbed.product import CONFIGURATION, ManagedCluster


@pytest.fixture(scope="session")
def plain() -> Iterator[Cluster]:
    """A site's cluster that slurm-mig has not touched."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared() -> Iterator[ManagedCluster]:
    """A cluster with every node enrolled, for the tests of one module."""
    with ManagedCluster() as cluster:
        cluster.enrol()
        yield cluster


@pytest.fixture
def cluster(shared: ManagedCluster) -> Iterator[ManagedCluster]:
    """The module's cluster with no job and the default configuration."""
    yield shared
    shared.run("scancel", "--state=PENDING", "--user=alice", check=False)
    shared.run("scancel", "--user=alice", check=False)
    shared.run("scancel", "--user=bob", check=False)
    shared.configure(CONFIGURATION)
    shared.wait_for(
        lambda: not shared.run("squeue", "-h").stdout.strip(), 30, "every job to be gone"
    )
