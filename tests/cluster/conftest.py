"""One enrolled cluster for most tests, without jobs between them; fresh ones on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.cluster import Cluster
from tests.testbed.jobs import no_jobs
from tests.testbed.product import CONFIGURATION, ManagedCluster

# Where tests mount something of their own. The clusters of all workers share these folders, so one
# that appeared in the middle of another's test was a difference there.
for _folder in ("/etc/cdi", "/etc/containers", "/etc/libvirt"):
    Path(_folder).mkdir(exist_ok=True)


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
    no_jobs(shared)
    shared.configure(CONFIGURATION)
