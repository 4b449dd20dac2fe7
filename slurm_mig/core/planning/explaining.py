"""Why each job that gets nothing gets nothing: looked up on the nodes near it."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence

from slurm_mig.core.draft import NodeDraft, never
from slurm_mig.core.model import NodeView
from slurm_mig.core.planning import reasons
from slurm_mig.core.planning.fleet import Fleet
from slurm_mig.core.planning.parts import CLOSE
from slurm_mig.core.planning.rules import Rules
from slurm_mig.core.planning.sieve import barred
from slurm_mig.core.planning.units import Pools, Size, Unit

LOOKED_AT = 4
"""How many nodes are looked at for a reason, or for a place to withhold, in a large cluster."""

EXPLAINED = 200
"""So many times a node is looked at for reasons; then jobs that wait are only counted."""


class Explaining:
    """Reasons, on a fleet as the plan leaves it. What is asked for often is looked up once."""

    def __init__(
        self,
        views: Sequence[NodeView],
        drafts: Mapping[str, NodeDraft],
        fleet: Fleet,
        pools: Pools,
        rules: Rules,
        still: Mapping[str, str],
    ) -> None:
        self._views = views
        self._drafts = drafts
        self._fleet = fleet
        self._pools = pools
        self._rules = rules
        self._still = still
        self._nodes = {node.name: node for node in fleet.nodes}
        self._impossible: dict[tuple[str, tuple[tuple[str, int], ...]], str] = {}
        self._known: dict[Hashable, str] = {}
        self._looks = EXPLAINED
        self._why = reasons.Reasons()

    def why(self, unit: Unit) -> str:
        """Why such a unit gets nothing."""
        user = unit.requests[0].user if self._rules.barred else ""
        key = unit.sizes, frozenset(unit.capped.values()), user
        if key not in self._known:
            self._known[key] = self._reason(unit)
        return self._known[key]

    def _reason(self, unit: Unit) -> str:
        found: list[str] = []
        for request, size in zip(unit.requests, unit.sizes, strict=True):
            key = (request.partition, size.gpus)
            if key not in self._impossible:
                some = self._pools.eligible(size)
                self._impossible[key] = "" if some else reasons.impossible(self._views, request)
            if self._impossible[key]:
                return self._impossible[key]
            names = self.near(unit, size)
            if self._looks < len(names):
                return "no room: jobs of more weight come first"
            self._looks -= len(names)
            for name in names:
                draft, node = self._drafts[name], self._nodes.get(name)
                own = unit.capped.get(name) or barred(self._rules, draft.view.slurm, request)
                why = own or (
                    self._why.on_node(node, draft, request, self._still.get(name, ""))
                    if node
                    else never(draft.view, request)
                )
                found.append(why)
        said = list(dict.fromkeys(filter(None, found)))
        if not all(found) or not said:
            said.append(
                "what could be changed for it costs more than it is worth, or is not enough"
            )
        return "; ".join(said)

    def near(self, unit: Unit, size: Size) -> list[str]:
        """The nodes to look at: all, or the first ones that the job could run on."""
        if len(self._views) <= CLOSE:
            return [v.name for v in self._views]
        able = (
            self._fleet.nodes[at].name
            for pool in self._pools.eligible(size)
            for at in self._pools.nodes[pool]
        )
        names = itertools.chain(able, unit.capped, (self._views[0].name,))
        return list(itertools.islice(dict.fromkeys(names), LOOKED_AT))
