"""Our files never lose a node whose record was lost; one that was given back is not missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.adapters.copies import Copies
from slurm_mig.adapters.managedfiles import ManagedFiles, Places
from slurm_mig.adapters.remote import RemoteControllers
from slurm_mig.adapters.store import FileStore
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.records import ManagedNode, Phase, Transaction
from slurm_mig.errors import DriftError

SITE = "ClusterName=c\nNodeName=n[1-3] CPUs=8 Gres=gpu:1g.5gb:7\n"


def record(name: str) -> ManagedNode:
    return ManagedNode(name, {"CPUs": "8"}, (), ("1g.5gb",))


class Host:
    """A controller's host with three nodes in care."""

    def __init__(self, root: Path) -> None:
        conf, gres = root / "slurm.conf", root / "gres.conf"
        conf.write_text(SITE)
        gres.write_text("")
        self.store = FileStore(root / "state")
        here = ManagedFiles(Places(conf, gres), root / "backups")
        self.files = Copies(here, RemoteControllers([], ["true"], 1), None, self.store.left)
        for name in ("n1", "n2", "n3"):
            self.store.take_up(record(name))
        self.files.switch(self.records, ["n1", "n2", "n3"])
        self.published = here.places.ours[0]

    @property
    def records(self) -> list[ManagedNode]:
        return list(self.store.managed().values())

    def lose(self, name: str) -> None:
        (self.store.root / "nodes" / f"{name}.json").unlink()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_is_written_that_drops_a_node(host: Host) -> None:
    host.lose("n2")
    before = host.published.read_text()
    for write in (
        lambda: host.files.check(host.records),
        lambda: host.files.write(host.records, "n1"),
        lambda: host.files.restore(host.records),
        lambda: host.files.switch(host.records, ["n1", "n3"]),
        lambda: host.files.switch(host.records[:1], ["n3"]),
    ):
        with pytest.raises(DriftError, match="there is no record of n2, which slurm-mig manages"):
            write()
    assert host.published.read_text() == before


def test_all_lost_is_noticed_too(host: Host) -> None:
    for name in ("n1", "n2", "n3"):
        host.lose(name)
    with pytest.raises(DriftError, match="no record of n1 n2 n3") as lost:
        host.files.check([])
    assert "`slurm-mig enrol n1 n2 n3`" in lost.value.hint


def test_a_node_is_taken_up_again(host: Host) -> None:
    """What was open when its record was lost is void."""
    host.store.save_transaction(
        Transaction(
            "1", "n2", Phase.RESHAPED, "slurm-mig: x", 0.0, NodeChange("n2", (), (), ()), ()
        )
    )
    host.lose("n2")
    new = replace(record("n2"), possible=("2g.10gb",))
    host.files.switch([*host.records, new], ["n2"])
    host.store.take_up(new)
    assert not host.files.check(host.records)
    assert host.store.transaction("n2") is None


def test_a_node_that_was_given_back_while_this_controller_was_away(host: Host) -> None:
    """Its line is stale here, and nothing is lost."""
    host.store.forget("n3")
    assert host.files.check(host.records) == [str(path) for path in host.files.here.texts([])]
    host.files.restore(host.records)
    assert "NodeName=n3" not in host.published.read_text()
    assert not host.files.check(host.records)
