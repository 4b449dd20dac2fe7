"""What a cycle does about nodes that are otherwise than published.

Where slurmctld and the record disagree, what is there is published again at once. Where another
hand has changed the GPUs, it is first let finish: only what two cycles in a row have seen alike is
mended. Who changes a node again and again is not fought: after a few times it is left to people.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from slurm_mig.core import drift
from slurm_mig.core.model import NodeCondition, NodeView
from slurm_mig.core.policy import Policy
from slurm_mig.core.records import ManagedNode, Phase
from slurm_mig.executor import Executor, Outcome
from slurm_mig.ports import Files, Store

log = logging.getLogger(__name__)

MOST, WITHIN_S = 3, 3600.0
"""A node is mended so often in so many seconds; then its drift is only reported."""


class Mending:
    """One cycle's mending; afterwards `said`, `seen` and `times` are for its report."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        files: Files,
        rules: Policy,
        now: float,
    ) -> None:
        before = store.report()
        self._store, self._executor, self._files = store, executor, files
        self._rules, self._now = rules, now
        self._seen_before: Mapping[str, str] = before.drift if before else {}
        lately = before.mended if before else {}
        self.times = {
            name: kept
            for name, times in lately.items()
            if (kept := tuple(t for t in times if 0 <= now - t < WITHIN_S))
        }
        """When each node was mended lately."""
        self.seen: dict[str, str] = {}
        """What differs, by node."""
        self.said: list[str] = []
        """What is not mended, and why."""

    def mend(self, views: Sequence[NodeView], paused: Collection[str]) -> list[Outcome]:
        """Mend what may be; call under the lock."""
        managed, outcomes = self._store.managed(), []
        for view in views:
            node = managed[view.name]
            if view.condition is NodeCondition.BROKEN:
                if view.name not in paused and self._rules.mends(view.name):
                    outcomes.append(self._executor.repair(node, view.note))
            elif view.condition is NodeCondition.DRIFTED:
                outcomes += self._drifted(view, node, paused)
        return outcomes

    def _drifted(self, view: NodeView, node: ManagedNode, paused: Collection[str]) -> list[Outcome]:
        found = drift.found(node, view.slurm, view.gpus)
        if found is None:
            return []
        self.seen[view.name] = found.text
        if self._seen_before.get(view.name) != found.text:
            log.warning("%s: %s", view.name, found.note)
        if left := self._left(view.name, found, paused):
            self.said.append(f"{view.name}: {found.text}; {left}")
            return []
        return [self._adopt(view, node, found)]

    def _left(self, name: str, found: drift.Drift, paused: Collection[str]) -> str:
        """Why it is not mended now; empty when it is."""
        if name in paused:
            return "paused"
        if found.obstacle:
            return f"to mend it: {found.obstacle}"
        if not self._rules.mends(name):
            return "repair: report"
        if len(self.times.get(name, ())) >= MOST:
            return f"mended {MOST} times within an hour: left until nobody changes it any more"
        if self._seen_before.get(name) != found.text:
            return "mended in the next cycle if it stays so"
        return ""

    def _adopt(self, view: NodeView, node: ManagedNode, found: drift.Drift) -> Outcome:
        """Publish what is there, as it is."""
        self.times[view.name] = (*self.times.get(view.name, ()), self._now)
        new = drift.adopted(node, view.gpus)
        self._store.save_managed(new)
        outcome = self._executor.repair(new, found.text)
        if outcome.phase is Phase.RELEASED:
            self.seen.pop(view.name, None)
            if new.possible != node.possible:
                # The catalog's records and the submit plugin's table go by the names, too.
                self._files.restore(list(self._store.managed().values()))
                log.warning("profile names changed: `scontrol reconfigure` has slurmctld read the "
                            "catalog's new records")  # fmt: skip
        return replace(outcome, done="mended")
