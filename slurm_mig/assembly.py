"""Puts the adapters behind the ports, from the configuration: the one place that knows them all.

Called by the command line on the controller. Imports of heavy libraries happen here, not on nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.cluster import PyslurmCluster, expand
from slurm_mig.adapters.managedfiles import ManagedFiles
from slurm_mig.adapters.remote import RemoteNodes
from slurm_mig.adapters.slurmfiles import SlurmFiles
from slurm_mig.adapters.store import FileStore
from slurm_mig.adapters.system import RealClock
from slurm_mig.config import Settings
from slurm_mig.core import submit
from slurm_mig.core.policy import Policy
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.enrolment import (
    Enrolment,
    managed_node,
    possible_by_partition,
    refuse_unsupported,
    unsupported,
)
from slurm_mig.errors import ConfigError
from slurm_mig.executor import Executor, Limits
from slurm_mig.reconciler import Reconciler


@dataclass
class Assembly:
    """Everything that a controller command needs."""

    settings: Settings
    cluster: PyslurmCluster
    nodes: RemoteNodes
    files: ManagedFiles
    store: FileStore

    @classmethod
    def of(cls, settings: Settings) -> Assembly:
        prefix, count = settings.catalog.prefix, settings.catalog.nodes
        catalog = [f"{prefix}-{n + 1}" for n in range(count)]
        return cls(
            settings,
            PyslurmCluster(),
            RemoteNodes(settings.remote.command, settings.remote.timeout_s),
            ManagedFiles(Path(settings.slurm.managed_dir), catalog),
            FileStore(Path(settings.state_dir)),
        )

    def reconciler(self) -> Reconciler:
        clock = RealClock()
        rules = self.settings.policy
        executor = Executor(
            self.cluster,
            self.nodes,
            self.files,
            self.store,
            clock,
            Limits(settle_s=rules.settle_s, register_s=rules.fence_deadline_s),
        )
        policy = Policy(
            rules.min_wait_s,
            rules.cooldown_s,
            rules.max_nodes_in_transition,
            reservations=frozenset(rules.reservations),
        )
        return Reconciler(
            self.cluster, self.nodes, self.files, self.store, clock, executor, policy, self.faults
        )

    def faults(self, names: Collection[str]) -> dict[str, str]:
        """What the site's files now say of managed nodes that slurm-mig cannot live with."""
        try:
            return unsupported(self.site(), names)
        except ConfigError as error:
            return dict.fromkeys(names, str(error))

    def site(self) -> SlurmFiles:
        site = SlurmFiles(Path(self.settings.slurm.conf), Path(self.settings.slurm.gres_conf))
        site.load()
        return site

    def enrolment(self) -> Enrolment:
        return Enrolment(
            self.cluster,
            self.nodes,
            RealClock(),
            self.commit,
            self.store.save_managed,
            self.store.forget,
        )

    def build(self, name: str, facts: NodeFacts) -> ManagedNode:
        """The record of a node that is being enrolled, from its lines and its GPUs."""
        site = self.site()
        refuse_unsupported(site, name)
        whole_type = next(
            (
                g.whole_type
                for g in self.settings.groups
                if name in expand(g.nodes) and g.whole_type
            ),
            "",
        )
        return managed_node(site, name, facts, "/dev/nvidia-caps", whole_type)

    def commit(self, managed: Sequence[ManagedNode]) -> None:
        """Write our files for exactly these nodes, and the site's files around them."""
        site = self.site()
        names = [node.name for node in managed]
        catalog = self.files.catalog if managed else []
        partitions = {p: catalog for node in managed for p in node.partitions}
        self.files.write(managed)
        self.write_submit_table(managed)
        backups = self.store.root / "backups"
        site.write(site.manage(names, catalog, partitions), backups)

    def write_submit_table(self, managed: Sequence[ManagedNode]) -> None:
        """What the submit plugin knows: types by partition, and what untyped requests get."""
        rules = self.settings.submit
        fillers = sorted({f for node in managed for f in node.fillers})
        text = submit.submit_table(
            rules.default_types, rules.untyped, possible_by_partition(managed), fillers
        )
        write_atomic(Path(self.settings.slurm.managed_dir) / "submit.lua", text)
