"""What was done: each reshape and fence on a line of its node, and the same as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slurm_mig.core.monitoring import FENCED
from slurm_mig.core.purpose import purpose
from slurm_mig.core.records import Event, Phase, Transaction
from slurm_mig.report.elements import Child, Element, h, lasted, moment, table

MOST_ROWS = 60
"""So many entries are in the table, the newest; all of the period's are on the lines."""

RESULTS = {
    "done": "carried through",
    "given-up": "given up, the node as it was",
    "open": "under way, or left for a person",
}


@dataclass(frozen=True)
class Period:
    """The time that the lines show, in seconds since the epoch."""

    begin: float
    end: float

    def at(self, when: float) -> float:
        """Percent of the way."""
        share = (when - self.begin) / (self.end - self.begin)
        return 100 * min(1.0, max(0.0, share))


def section(history: Sequence[Transaction | Event], under_way: Sequence[Transaction],
            hours: float, now: float) -> Element:  # fmt: skip
    """`history`: what has ended, oldest first; `under_way`: open transactions."""
    period = Period(now - hours * 3600, now)
    done = [e for e in history if _ended(e) >= period.begin]
    shown = [e for e in done if isinstance(e, Transaction)] + list(under_way)
    parts: list[Element] = [h("h2", f"The last {hours:g} hours", id="timeline")]
    if not done and not under_way:
        parts.append(h("p", "Nothing was changed.", class_="note"))
        return h("section", parts)
    if shown:
        parts += [_legend(), _lines(shown, period)]
    newest = [*under_way, *reversed(done)]
    heads = ("When", "Where", "What", "Why", "Result", "Took", "Fenced")
    parts.append(table(heads, map(_row, newest[:MOST_ROWS]), class_="changes"))
    if len(newest) > MOST_ROWS:
        left = f"and {len(newest) - MOST_ROWS} earlier ones: slurm-mig history"
        parts.append(h("p", left, class_="note"))
    return h("section", parts)


def _ended(entry: Transaction | Event) -> float:
    return entry.time if isinstance(entry, Event) else entry.finished


def _legend() -> Element:
    items = [h("li", h("span", class_=f"key mark {name}", aria_hidden="true"), text)
             for name, text in RESULTS.items()]  # fmt: skip
    return h("ul", items, class_="legend")


def _lines(shown: Sequence[Transaction], period: Period) -> Element:
    by_node: dict[str, list[Transaction]] = {}
    for transaction in shown:
        by_node.setdefault(transaction.node, []).append(transaction)
    lines = [
        h("div", h("b", name), h("div", [_mark(t, period) for t in by_node[name]], class_="line"),
          class_="lane")
        for name in sorted(by_node)
    ]  # fmt: skip
    ticks = [
        h("span", moment(period.begin + (period.end - period.begin) * n / 4)[11:16],
          style=f"left: {25 * n}%")
        for n in range(5)
    ]  # fmt: skip
    axis = h("div", h("b"), h("div", ticks, class_="axis"), class_="lane", aria_hidden="true")
    return h("div", lines, axis, class_="lanes")


def _mark(transaction: Transaction, period: Period) -> Element:
    left = period.at(transaction.started)
    width = period.at(transaction.finished or period.end) - left
    said = (f"{moment(transaction.started)} {transaction.node}: {_result(transaction)} "
            f"{purpose(transaction.change)}")  # fmt: skip
    return h("span", class_=f"mark {_kind(transaction)}", title=said,
             style=f"left: {left:.3f}%; width: {width:.3f}%")  # fmt: skip


def _kind(transaction: Transaction) -> str:
    if transaction.is_open:
        return "open"
    return "done" if transaction.phase is Phase.RELEASED else "given-up"


def _result(transaction: Transaction) -> str:
    if transaction.waits:
        return "fenced, waits for running jobs"
    if transaction.is_open:
        return f"left at {transaction.phase.value}"
    return "done" if transaction.phase is Phase.RELEASED else "given up"


def _row(entry: Transaction | Event) -> tuple[Child, ...]:
    if isinstance(entry, Event):
        why = entry.why or ""
        return moment(entry.time), entry.what, entry.did, why, f"by {entry.by}", "", ""
    fenced = entry.seconds.get(FENCED)
    result = h("span", _result(entry), class_=f"result {_kind(entry)}")
    if entry.note:
        result = h("span", result, h("br"), h("small", entry.note))
    return (
        moment(entry.started),
        entry.node,
        _what(entry),
        purpose(entry.change),
        result,
        lasted(entry.finished - entry.started) if entry.finished else "",
        lasted(fenced) if fenced is not None else "",
    )


def _what(entry: Transaction) -> Element:
    """Each GPU's losses and gains, counted by profile."""
    lines: list[Element] = []
    for part in entry.change.gpus:
        words = [f"GPU {part.gpu}:"]
        words += [f"- {n}" for n in _counted([p.profile for p in part.destroyed])]
        words += [f"+ {n}" for n in _counted([p.profile for p in part.created])]
        if not (part.destroyed or part.created):
            words.append(f"MIG {'on' if part.mig else 'off'}")
        lines.append(h("div", " ".join(words)))
    return h("div", lines or ["published again"])


def _counted(profiles: Sequence[str]) -> list[str]:
    found = dict.fromkeys(profiles)
    return [p if profiles.count(p) == 1 else f"{p}*{profiles.count(p)}" for p in found]
