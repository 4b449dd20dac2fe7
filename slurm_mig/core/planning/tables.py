"""The options of every GPU of a fleet, beside what the hulls of its node need."""

from __future__ import annotations

from collections.abc import Hashable

from slurm_mig.core.planning.gpudraft import Draft
from slurm_mig.core.planning.limits import Key
from slurm_mig.core.planning.node import Node
from slurm_mig.core.planning.options import Option, OptionTable, State, table_of
from slurm_mig.core.planning.weights import Weights

Beside = tuple[tuple[int, ...], tuple[int, ...], tuple[Key, ...]]
"""What a node's hulls can spare of each type that they need, its slots have room for of each wanted
type, and its group limits."""

MOST = 16
"""More instances of a type than any GPU can have."""


class Tables:
    """The options of every GPU for one list of wanted types, beside what hulls need."""

    def __init__(
        self,
        types: tuple[str, ...],
        weights: Weights,
        guarded: tuple[str, ...] = (),
        *,
        tight: bool = False,
        close: bool = False,
    ) -> None:
        self._tight = tight
        self._close = close
        self.types = types
        self.guarded = guarded
        self.weights = weights
        self._of_shape: dict[int, OptionTable] = {}
        self._number = {t: n for n, t in enumerate(types)}
        self._guard = {t: n for n, t in enumerate(guarded)}
        self._wanted: dict[frozenset[Hashable], list[tuple[int, str, int]]] = {}
        self._known: dict[object, tuple[Option, ...]] = {}

    def of_node(self, node: Node) -> list[tuple[Option, ...]]:
        """The options of each of its GPUs, in their order."""
        limited = node.budget.keys if node.budget and self._tight else ()
        beside = self.spares(node), self._growth(node), limited
        return [self._options(draft, beside) for draft in node.drafts]

    def _growth(self, node: Node) -> tuple[int, ...]:
        if not self._tight:
            return ()
        wanted = self._wanted.get(node.kinds)
        if wanted is None:
            shapes = [draft.shape for draft in node.drafts]
            wanted = [
                (n, t, max(shape.of_profile.get(t, 0).bit_count() for shape in shapes))
                for n, t in enumerate(self.types)
                if t in node.possible
            ]
            self._wanted[node.kinds] = wanted
        found = [0] * len(self.types)
        for n, gres_type, most in wanted:
            # No more than its GPUs could ever use, so that more nodes are alike.
            found[n] = max(0, min(most, node.growth(gres_type)))
        return tuple(found)

    def spares(self, node: Node) -> tuple[int, ...]:
        """What a GPU may lose of each type; -1 where no hull of the node needs any.

        No GPU's loss is made up for by what another one of the node gains: a change must be
        possible by itself. Where every node is told apart, what is lost of a fleeting type counts
        too, of which every one may go.
        """
        found = [-1] * len(self.guarded)
        for gres_type in node.holes if self.guarded else ():
            spare = node.spare(gres_type) or 0
            found[self._guard[gres_type]] = max(0, min(MOST, spare))
        for gres_type in node.fleeting.keys() & self._guard.keys() if self._close else ():
            found[self._guard[gres_type]] = MOST
        return tuple(found)

    def _options(self, draft: Draft, beside: Beside) -> tuple[Option, ...]:
        if draft.target is not None:
            return self._worked_out(draft, beside)
        key = (draft.alike, draft.busy | draft.claimed, draft.idle, draft.whole_busy, beside)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._worked_out(draft, beside)
        return found

    def _worked_out(self, draft: Draft, beside: Beside) -> tuple[Option, ...]:
        table = self._of_shape.get(id(draft.shape))
        if table is None:
            table = table_of(draft.shape, self.types, self.guarded, self.weights)
            self._of_shape[id(draft.shape)] = table
        if draft.target is None and draft.gpu.mig and not draft.switchable:
            idle, growth, limits = draft.idle, beside[1], len(beside[2])
            if draft.frozen or not table.creatable(draft.fixed, idle, growth):
                return table.alone(idle, limits)
        return table.of(_state(draft, table, beside, self._number.get(draft.whole_type, -1)))


def _state(draft: Draft, table: OptionTable, beside: Beside, whole: int) -> State:
    """A GPU as its options see it. One that the plan changes already changes no more."""
    fixed, idle, done = draft.busy | draft.claimed, draft.idle, draft.target
    if done is not None:
        fixed |= draft.taken
        idle = (idle & ~done.destroyed) | (done.created & ~draft.taken)
    mig = draft.mig_after
    return State(
        fixed,
        idle,
        draft.baseline,
        mig,
        whole,
        not mig and not draft.whole_busy,
        draft.switchable,
        draft.gpu.mode_needs_reset,
        bool(draft.frozen) or done is not None,
        table.clipped(idle, beside[0]),
        table.room(beside[1]),
        beside[2],
    )
