"""What the queue lacks, by profile, and why each job gets nothing now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from slurm_mig.core import demand, monitoring
from slurm_mig.core.model import JobRequest
from slurm_mig.core.monitoring import Ended
from slurm_mig.report.elements import Element, h, lasted, table

MOST_JOBS = 200
"""So many jobs are listed; the rest is counted."""

KINDS = {
    "in_use": "running jobs are in the way",
    "slot_order": "running jobs fix the order of slots",
    "cooldown": "changed lately",
    "next_cycle": "the next cycle's turn",
    "policy": "the site's policy",
    "starts_soon": "starts by itself",
    "cpus_or_memory": "no CPUs or memory",
    "whole_node": "a job has the whole node",
    "reservation": "reserved",
    "paused": "paused by an administrator",
    "drained": "drained by an administrator",
    "away": "node away",
    "changed_by_hand": "changed by another hand",
    "not_worth_it": "others come first",
    "impossible": "impossible",
    "constraint": "another node is asked for",
    "other": "other",
}
"""Classes of refusals (`monitoring.KINDS`) in words for people."""


def section(cycle: Ended, now: float) -> Element:
    """Demand by profile as bars, refusals by class, and the jobs."""
    lacking = monitoring.unmet(cycle.requests, cycle.report)
    parts: list[Element] = [h("h2", "Waiting", id="waiting")]
    if not cycle.requests:
        parts.append(h("p", "No job that asks for GPUs waits.", class_="note"))
        return h("section", parts)
    if lacking:
        most = max(u.instances for u in lacking)
        parts.append(h("div", [_bar(u, most, now) for u in lacking], class_="bars"))
        parts.append(_kinds(cycle))
    else:
        parts.append(h("p", "What waits can start on what is there.", class_="note"))
    parts.append(_jobs(cycle, now))
    return h("section", parts)


def _bar(unmet: monitoring.Unmet, most: int, now: float) -> Element:
    count = f"{unmet.instances} lacking"
    since = lasted(round(now - unmet.since))
    jobs = f"{unmet.jobs} job{'s' * (unmet.jobs != 1)}, the first for {since}"
    return h(
        "div",
        h("b", unmet.profile),
        h("div", h("span", style=f"width: {100 * unmet.instances / most:.1f}%"), class_="bar",
          aria_hidden="true"),
        h("span", f"{count} ({jobs})"),
        class_="demand",
    )  # fmt: skip


def _kinds(cycle: Ended) -> Element:
    count = Counter(map(monitoring.kind_of, cycle.report.refusals.values()))
    chips = [h("li", h("b", str(n)), f" {KINDS[kind]}") for kind, n in count.most_common()]
    return h("ul", chips, class_="chips", aria_label="Refusals by reason")


def _jobs(cycle: Ended, now: float) -> Element:
    refusals = cycle.report.refusals
    requests = sorted(
        cycle.requests, key=lambda r: (r.job_id not in refusals, -r.priority, r.job_id)
    )
    rows = [_row(r, cycle, now) for r in requests[:MOST_JOBS]]
    found = table(("Job", "User", "Wants", "Waits", "Why"), rows, class_="jobs")
    left = len(requests) - len(rows)
    return h("div", found, [h("p", f"and {left} more", class_="note")] if left else [])


def _row(request: JobRequest, cycle: Ended, now: float) -> Sequence[Element | str]:
    wants = ", ".join(t if n == 1 else f"{t}*{n}" for t, n in sorted(request.gpus.items()))
    wants += f" on {request.nodes} nodes" if request.nodes > 1 else ""
    wants += f", {request.tasks} tasks" if request.tasks > 1 else ""
    waited = lasted(round(now - request.submit_time)) if request.submit_time else "?"
    return (str(request.job_id), request.user, wants, waited,
            demand.why(request, cycle.report.refusals))  # fmt: skip
