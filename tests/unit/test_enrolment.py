"""Enrolment where something fails: what the node is left as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.adapters.slurmfiles import GresLine
from slurm_mig.core.model import SlurmNode
from slurm_mig.core.records import Card, ManagedNode, NodeFacts
from slurm_mig.enrolment import Enrolment, Timing
from slurm_mig.errors import SlurmMigError, UnreachableError, UnwritableError, UsageError
from slurm_mig.newnode import not_taken_over
from tests.fakes.gpus import FakeGpus
from tests.fakes.world import NODE, FakeCluster, FakeNodes, World, record
from tests.unit.builders import A100, gpu, ones


class Site(FakeCluster):
    """slurmctld with one idle node, in a state more if told so; nothing is ever registered."""

    def __init__(self, world: World, also: str = "") -> None:
        super().__init__(world)
        self._also = also
        self.read = 0

    def node(self, name: str) -> SlurmNode:
        shown = super().node(name)
        return replace(shown, states=shown.states | ({self._also} if self._also else set()))

    def reconfigure(self) -> None:
        self.read += 1


class Nodes(FakeNodes):
    def own(self, name: str, outside: object) -> None:
        """Nothing here is anybody else's."""


class Files:
    """The files, on a disk that takes so many more writes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def commit(self, nodes: Sequence[ManagedNode], names: Sequence[str]) -> None:
        if not self.room:
            raise UnwritableError("nodes.conf cannot be written: No space left on device")
        self.room -= 1


@pytest.fixture
def world() -> World:
    fake = FakeGpus(gpu(A100, 0, *ones()))
    return World(fake, record(fake.inventory()))


def enrol(world: World, site: Site, room: int) -> None:
    """As a node with other slots than it will ever register."""

    def build(name: str, facts: NodeFacts) -> ManagedNode:
        return replace(world.managed, slots=world.managed.slots[1:])

    enrolment = Enrolment(
        site, Nodes(world), world.clock, Files(room).commit, lambda node: None, lambda name: None
    )
    enrolment.enrol([NODE], {}, build, Timing(settle_s=0.0))


@pytest.mark.parametrize(
    ("room", "error", "drained", "read"),
    [
        (0, UnwritableError, False, 0),
        (1, UnreachableError, True, 1),
        (2, UnreachableError, False, 2),
    ],
    ids=["full from the start", "full when it is undone", "undone"],
)
def test_a_node_is_left_drained_only_where_slurmctld_has_read_what_cannot_be_undone(
    world: World, room: int, error: type[SlurmMigError], *, drained: bool, read: int
) -> None:
    """The error is the first one: the undoing's is logged."""
    site = Site(world)
    with pytest.raises(error):
        enrol(world, site, room)
    assert (world.drained, site.read) == (drained, read)


def test_a_cloud_node_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match=f"{NODE} is a CLOUD node; nothing was changed"):
        enrol(world, Site(world, "CLOUD"), 2)
    assert world.names == []


@pytest.mark.parametrize(
    ("autodetect", "attributes", "cores", "said"),
    [
        ("nvml", {}, {}, "the cores near each GPU, which AutoDetect=nvml finds;"),
        ("nvml", {"Cores": "0-3"}, {0: "0-3"}, ""),
        (None, {"File": "/dev/nvidia0"}, {}, ""),
        ("off", {"Links": "-1,4", "flags": "nvidia_gpu_env"}, {}, "without Links, Flags;"),
    ],
)
def test_what_of_gres_conf_is_not_taken_over_is_said(
    world: World,
    autodetect: str | None,
    attributes: dict[str, str],
    cores: dict[int, str],
    said: str,
) -> None:
    node = replace(world.managed, cores=cores, cards={0: Card("GPU-0", A100)})
    line = GresLine(None, attributes, Path("gres.conf"), 1)
    found = not_taken_over(NODE, node, autodetect, [line])
    assert said in found if said else not found
