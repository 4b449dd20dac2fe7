"""Puts the adapters behind the ports, from the configuration: the one place that knows them all.

Called by the command line on the controller. Imports of heavy libraries happen here, not on nodes.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slurm_mig.adapters import trust
from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.cluster import PyslurmCluster
from slurm_mig.adapters.copies import Copies
from slurm_mig.adapters.managedfiles import ManagedFiles, Places
from slurm_mig.adapters.nodesets import expand
from slurm_mig.adapters.remote import RemoteControllers, RemoteNodes
from slurm_mig.adapters.slurmfiles import GresLine, SlurmFiles
from slurm_mig.adapters.store import FileStore
from slurm_mig.adapters.system import RealClock
from slurm_mig.adapters.wake import Wake
from slurm_mig.config import GroupSettings, Settings
from slurm_mig.core import publish, submit, windows
from slurm_mig.core.ownership import Claim
from slurm_mig.core.policy import Policy
from slurm_mig.core.records import CycleReport, ManagedNode, NodeFacts
from slurm_mig.core.silence import Silences
from slurm_mig.enrolment import Enrolment
from slurm_mig.errors import ConfigError
from slurm_mig.executor import Executor
from slurm_mig.monitor import Monitor
from slurm_mig.newnode import Whole, managed_node, not_taken_over
from slurm_mig.noderun import Limits
from slurm_mig.reconciler import Reconciler
from slurm_mig.sitefiles import refuse_other_way, refuse_unsupported, unsupported
from slurm_mig.siterules import group_rules, planning_rules

log = logging.getLogger(__name__)


@dataclass
class Assembly:
    """Everything that a controller command needs."""

    settings: Settings
    cluster: PyslurmCluster
    nodes: RemoteNodes
    files: Copies
    store: FileStore

    @classmethod
    def of(cls, settings: Settings, nodes: RemoteNodes | None = None) -> Assembly:
        """`nodes`: those of an earlier cycle, whose sessions are kept where they still serve.
        Raises ConfigError where others could write what is gone by."""
        slurm, remote = settings.slurm, settings.remote
        store = FileStore(Path(settings.state_dir))
        owners = trust.slurms_own(Path(slurm.conf))
        trust.refuse_writable("the state directory", Path(settings.state_dir), owners)
        trust.refuse_writable("the directory of our files", Path(slurm.managed_dir), owners)
        new = RemoteNodes(remote.command, remote.timeout_s, remote.fanout, remote.observe_s)
        if nodes is None or not nodes.is_like(new):
            if nodes is not None:
                nodes.close()
            nodes = new
        nodes.turn = lambda: store.turn
        nodes.overtaken = store.overtaken
        here = {socket.gethostname(), socket.gethostname().partition(".")[0]}
        others = [host for host in slurm.controllers if host not in here]
        controllers = RemoteControllers(others, slurm.controller_command, remote.timeout_s)
        own = nodes if slurm.nodes_have_own else None
        files = Copies(LocalFiles(settings), controllers, own, store.left)
        return cls(settings, PyslurmCluster(), nodes, files, store)

    def limits(self) -> Limits:
        """How long a reshape waits for what, by the site's policy."""
        rules = self.settings.policy
        return Limits(
            settle_s=rules.settle_s,
            register_s=rules.fence_deadline_s,
            caps_dir=self.settings.node.caps_dir,
            fence_wait_s=rules.fence_wait_s,
            fence_waits={
                name: own.fence_wait_s
                for name, own in self.policy().of_group.items()
                if own.fence_wait_s is not None
            },
            quarantine_after_s=rules.quarantine_after_s,
        )

    def executor(self) -> Executor:
        return Executor(
            self.cluster,
            self.nodes,
            self.files,
            self.store,
            RealClock(),
            self.limits(),
            by_reconfigure=self.by_reconfigure,
        )

    def reconciler(self) -> Reconciler:
        last, remote = self.store.report(), self.settings.remote
        silent = last.silent if last else {}
        self.nodes.silences = Silences(remote.rest_s, silent, RealClock().now)
        return Reconciler(
            self.cluster,
            self.nodes,
            self.files,
            self.store,
            RealClock(),
            self.executor(),
            self.policy(),
            self.faults,
            self.monitor.ended,
            self.nodes.silences,
        )

    def policy(self) -> Policy:
        """The site's rules, those of its groups by node."""
        rules = self.settings.policy
        group_of: dict[str, GroupSettings] = {}
        for group in self.settings.groups:
            for name in expand(group.nodes):
                group_of.setdefault(name, group)
        known = {id(group): group_rules(group) for group in self.settings.groups}
        return Policy(
            rules.min_wait_s,
            rules.cooldown_s,
            rules.max_nodes_in_transition,
            rules.withhold_s,
            rules.fence_wait_s,
            self.settings.slurm.reconfigure_interval_s,
            self.by_reconfigure,
            frozenset(rules.reservations),
            baseline_after_s=rules.baseline_after_s,
            max_gpus=rules.max_gpus_in_transition,
            windows=tuple(map(windows.parse, rules.windows)),
            free_for=rules.free_for,
            of_group={n: known[id(g)] for n, g in group_of.items()},
            repair=rules.repair == "auto",
            repairs={n: g.repair == "auto" for n, g in group_of.items() if g.repair},
            groups={n: g.name for n, g in group_of.items() if g.name},
            planning=planning_rules(self.settings),
        )

    def faults(self, names: Collection[str]) -> dict[str, str]:
        """What the site's files now say of managed nodes that slurm-mig cannot live with."""
        try:
            return unsupported(self.site(), names)
        except ConfigError as error:
            return dict.fromkeys(names, str(error))

    @property
    def by_reconfigure(self) -> bool:
        """Is what is published taken up by a reconfigure of the whole cluster?"""
        return self.settings.slurm.publish == "reconfigure"

    def site(self) -> SlurmFiles:
        """The site's files on this host. Raises ConfigError."""
        return self.files.here.site()

    def enrolment(self) -> Enrolment:
        return Enrolment(
            self.cluster,
            self.nodes,
            RealClock(),
            self.files.switch,
            self.store.take_up,
            self.store.forget,
        )

    @property
    def monitor(self) -> Monitor:
        return Monitor(self.store, self.settings.monitoring)

    @property
    def wake(self) -> Wake:
        return Wake(Path(self.settings.wake.file), self.settings.wake.min_interval_s)

    def write_free(self, report: CycleReport) -> None:
        """Tell the submit plugin what is free, where its directory has been made."""
        path = free_file(self.settings)
        if path.parent.is_dir():
            # SlurmUser may write there: a link of his must not lead root elsewhere.
            write_atomic(path, submit.free_table(report.time, report.free), follow=False)

    def build(self, name: str, facts: NodeFacts) -> ManagedNode:
        """The record of a node that is being enrolled, from its lines and its GPUs."""
        site = self.site()
        refuse_unsupported(site, name)
        slurm = self.settings.slurm
        refuse_other_way(site, slurm.config)
        conf = Path(slurm.gres_conf)
        own = [
            GresLine(None, attributes, conf, 0)
            for attributes in (self.nodes.gres_lines(name) if slurm.nodes_have_own else ())
        ]
        group = next((g for g in self.settings.groups if name in expand(g.nodes)), None)
        whole = Whole(group.whole_type, group.mode_change) if group else Whole()
        claims = claims_of(group) if group else ()
        node = managed_node(
            site, name, facts, self.settings.node.caps_dir, whole, own, claims,
            slotted=group.slots if group else True,
        )  # fmt: skip
        lines = [*site.gres_lines(name), *own]
        if lost := not_taken_over(name, node, site.autodetect(name), lines):
            log.warning("%s", lost)
        return replace(node, explicit=self.settings.submit.exclusive == "explicit")


def claims_of(group: GroupSettings) -> tuple[Claim, ...]:
    """What the group gives to others than Slurm."""
    return tuple(
        Claim(given.owner, tuple(map(str, given.gpus)), given.instances, given.placements)
        for given in group.outside
    )


class LocalFiles(ManagedFiles):
    """This controller's copies, and what its submit plugin reads."""

    def __init__(self, settings: Settings) -> None:
        slurm = settings.slurm
        places = Places(Path(slurm.conf), Path(slurm.gres_conf), slurm.includes)
        catalog = publish.Catalog(settings.catalog.prefix, settings.catalog.nodes)
        super().__init__(places, Path(settings.state_dir) / "backups", catalog)
        self._settings = settings

    def besides(self, nodes: Sequence[ManagedNode]) -> dict[Path, str]:
        return {self._submit_file: self._submit_table(nodes)}

    def write(self, nodes: Sequence[ManagedNode]) -> None:
        """With the submit plugin's table, where a reshape has made or undone a split."""
        super().write(nodes)
        try:
            table = self._submit_file.read_text()
        except FileNotFoundError:
            table = ""
        if not submit.knows_parts(table, nodes):
            self._submit_file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomic(self._submit_file, self._submit_table(nodes))

    @property
    def _submit_file(self) -> Path:
        return Path(self._settings.slurm.managed_dir) / "submit.lua"

    def _submit_table(self, managed: Sequence[ManagedNode]) -> str:
        """What the submit plugin knows: the rules, and what each partition can ever have."""
        settings = self._settings
        rules = submit.Rules(
            default_types=settings.submit.default_types,
            untyped=settings.submit.untyped,
            exclusive=settings.submit.exclusive,
            long_names=settings.submit.long_names,
            wake_file=settings.wake.file,
            free_file=str(free_file(settings)),
        )
        site = self.site()
        names = site.node_names()
        sites = {
            p.name: names if p.nodes == "ALL" else sorted(expand(p.nodes))
            for p in site.partitions()
        }
        gres = {name: site.node(name).get("Gres") or "" for name in names}
        fillers = {f for node in managed for f in node.fillers}
        alike = submit.shapes(self.catalog.records(managed), managed)
        return submit.submit_table(rules, submit.partitions(sites, managed, gres), fillers, alike)


def free_file(settings: Settings) -> Path:
    """Where the submit plugin finds what the last cycle left free."""
    return Path(settings.wake.file).with_name("free.lua")
