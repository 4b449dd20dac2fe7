"""The page: one file, no script, nothing from elsewhere.

Called by `slurm-mig report` and, where monitoring.report_file is set, at the end of each cycle. A
Content-Security-Policy in the page forbids scripts and every request, whatever the texts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from slurm_mig import __version__
from slurm_mig.core import monitoring
from slurm_mig.core.model import NodeCondition
from slurm_mig.core.monitoring import Ended
from slurm_mig.core.pauses import said
from slurm_mig.core.records import Event, Pause, Transaction
from slurm_mig.report import gpus, timeline, waiting
from slurm_mig.report.elements import Element, h, moment, page

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Picture:
    """All that the page shows."""

    cycle: Ended
    history: Sequence[Transaction | Event]
    """Oldest first."""
    now: float
    hours: float = 24.0
    """How far the timeline goes back."""
    refresh_s: float = 0.0
    """How often a browser loads the page again; 0: never."""
    pauses: Sequence[Pause] = ()


def html(picture: Picture) -> str:
    """The whole page's text."""
    cycle = picture.cycle
    return page(
        h(
            "html",
            _head(picture),
            h(
                "body",
                h("main", _header(picture), _tiles(cycle), _gpus(cycle),
                  waiting.section(cycle, picture.now),
                  timeline.section(picture.history, list(cycle.transactions.values()),
                                   picture.hours, picture.now)),
                h("footer", f"slurm-mig {__version__}"),
            ),
            lang="en",
        )
    )  # fmt: skip


def _head(picture: Picture) -> Element:
    style = resources.files("slurm_mig").joinpath("data/report.css").read_text(encoding="utf-8")
    parts = [
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", http_equiv="Content-Security-Policy", content=POLICY),
        h("meta", name="color-scheme", content="light dark"),
        h("title", "MIG GPUs"),
        h("style", style),
    ]
    if picture.refresh_s:
        parts.insert(1, h("meta", http_equiv="refresh", content=f"{picture.refresh_s:.0f}"))
    return h("head", parts)


def _header(picture: Picture) -> Element:
    report = picture.cycle.report
    last = (f"Last cycle {moment(report.time)}: {report.sentence}" if report.time
            else "No cycle has run yet.")  # fmt: skip
    stops = [h("p", said(pause).capitalize(), class_="banner") for pause in picture.pauses]
    return h("header", h("h1", "MIG GPUs"), h("p", f"As of {moment(picture.now)}"), h("p", last),
             stops, class_="top")  # fmt: skip


def _tiles(cycle: Ended) -> Element:
    count = gpus.slices(cycle.views)
    total = sum(count.values())
    used = count["allocated"] + count["held"]
    lacking = sum(u.instances for u in monitoring.unmet(cycle.requests, cycle.report))
    unwell = [v for v in cycle.views
              if v.condition not in (NodeCondition.USABLE, NodeCondition.OURS)]  # fmt: skip
    stuck = monitoring.quarantined(cycle.transactions)
    left_alone = ", ".join(v.name for v in unwell) or "every node is usable"
    there = sum(len(v.all_gpus) for v in cycle.views)
    tiles = [
        ("GPUs", str(there), f"on {len(cycle.views)} nodes", ""),
        ("In use", f"{100 * used / total:.0f} %" if total else "none", "of all memory slices", ""),
        ("Lacking", str(lacking), "instances that jobs wait for", "warn" if lacking else ""),
        ("Left alone", str(len(unwell)), left_alone, "warn" if unwell else ""),
        ("For a person", str(len(stuck)), ", ".join(stuck) or "nothing to mend",
         "alarm" if stuck else ""),
    ]  # fmt: skip
    return h(
        "ul",
        [h("li", h("span", name), h("b", value), h("small", more), class_=f"tile {kind}".strip())
         for name, value, more, kind in tiles],
        class_="tiles",
    )  # fmt: skip


def _gpus(cycle: Ended) -> Element:
    parts: list[Element] = [h("h2", "GPUs", id="gpus")]
    if not cycle.views:
        parts.append(h("p", "No node is enrolled: slurm-mig enrol NODE takes one into care.",
                       class_="note"))  # fmt: skip
        return h("section", parts)
    parts += [gpus.share_bar(gpus.slices(cycle.views)), gpus.legend()]
    parts.append(h("div", [gpus.node(view) for view in cycle.views], class_="nodes"))
    return h("section", parts)
