"""What is kept for jobs that running jobs are in the way of: instances withheld, or a fence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from slurm_mig.core import planner, withhold
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.model import JobRequest, NodeView, Patience
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.node import uses
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.sieve import barred
from slurm_mig.core.planning.units import slices_of, worth_of
from slurm_mig.core.withhold import Kept, Price


class Keeping:
    """Decides on the drafts of the nodes, which it changes."""

    def __init__(
        self,
        drafts: dict[str, NodeDraft],
        fleet: Fleet,
        rules: Rules,
        still: Mapping[str, str],
        now: float,
    ) -> None:
        """`still` are nodes on which nothing may change now, and why."""
        self._price = Price(
            now,
            rules.withhold_s,
            {name: own for name, (own, _) in rules.patience.items()},
            slice_minute=rules.weights.withhold,
        )
        self._drafts = drafts
        self._fleet = fleet
        self._rules = rules
        self._still = still
        self.fences: dict[str, NodeChange] = {}
        """By node, the fence behind which it waits."""
        self.held: dict[int, Kept] = {}
        """By job for which instances were withheld and still are."""
        self.given: set[int] = set()
        """Those that have what was withheld for them."""

    def go_on(self, views: Sequence[NodeView], requests: Sequence[JobRequest]) -> None:
        """Serve the jobs for which instances are withheld if that is possible now; else go on
        withholding, before anybody else may want them."""
        holding = {
            job: [v.name for v in views if any(job in w.jobs for w in v.withheld)]
            for v in views
            for w in v.withheld
            for job in w.jobs
        }
        highest = max((r.priority for r in requests), default=0)
        slices = slices_of(self._fleet) if holding else {}
        for request in requests:
            names = [
                name
                for name in holding.get(request.job_id, ())
                if self._patience(name, request) is Patience.WITHHOLD
                and not self._barred(name, request)
            ]
            if names and not request.het_job:
                worth = worth_of(request, slices, highest, self._rules.weights)
                self._go_on(request, names, worth)

    def _go_on(self, request: JobRequest, names: Sequence[str], worth: int) -> None:
        here = {name: self._drafts[name] for name in names if name not in self._still}
        if not here or planner.reshape_for(here, request) is not None:
            # Elsewhere it is begun anew, where that may be.
            near = [n for n in self._drafts if n in names or self._may_wait_at(n, request)]
            kept = self._keep(near, request, worth)
            if kept and kept.held:
                self.held[request.job_id] = kept
        elif self._within_limits(here):
            self._drafts.update(here)
            if request.tasks == 1:
                self.given.add(request.job_id)

    def _within_limits(self, changed: Mapping[str, NodeDraft]) -> bool:
        """Do the groups' limits allow these drafts, beside what was decided before?"""
        taken: dict[int, list[int]] = {}
        drafts = {**self._drafts, **changed}
        for node in self._fleet.nodes:
            for use in uses(node.budget, drafts[node.name]) if node.budget else ():
                known = taken.setdefault(id(node.budget), [0] * len(use))
                taken[id(node.budget)] = [a + b for a, b in zip(known, use, strict=True)]
        budgets = {id(budget): budget for budget in self._fleet.budgets}
        return all(budgets[key].allows(use) for key, use in taken.items())

    def wait(self, names: Sequence[str], request: JobRequest, worth: int) -> Kept | None:
        """Withhold for the job on one of these nodes, where that costs least, or fence it; None
        where nothing can be done."""
        return self._keep([n for n in names if self._may_wait_at(n, request)], request, worth)

    def _may_wait_at(self, name: str, request: JobRequest) -> bool:
        """Without slots nothing can be withheld, but behind a fence every gpu job ends."""
        if not self._drafts[name].view.slotted:
            fenced = self._patience(name, request) is Patience.FENCE
            return fenced and name not in self._rules.frozen
        return name not in self._still

    def _keep(self, names: Sequence[str], request: JobRequest, worth: int) -> Kept | None:
        """The same among all of these nodes, each as patient as its group is."""
        found, price = None, replace(self._price, worth=worth)
        for patience in (Patience.WITHHOLD, Patience.FENCE):
            nearby = {
                n: self._drafts[n]
                for n in names
                if self._patience(n, request) is patience and not self._barred(n, request)
            }
            asking = replace(request, patience=patience)
            kept = planner.wait_for(nearby, asking, self.fences, price)
            if kept and kept.held:
                self._drafts.update(nearby)
                return kept
            found = found or kept
        return found

    def _barred(self, name: str, request: JobRequest) -> str:
        return barred(self._rules, self._drafts[name].view.slurm, request)

    def _patience(self, name: str, request: JobRequest) -> Patience:
        own = self._rules.patience.get(name)
        if own is None or request.unserved_s < 0:
            return request.patience
        return withhold.patience(request.unserved_s, *own)
