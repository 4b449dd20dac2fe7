"""The metrics in Prometheus' text format, by prometheus-client.

Knows the format and the metrics' names; what they count is core/monitoring.py's business. Written
to a file for node_exporter's textfile collector, and printed by `slurm-mig metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from slurm_mig.core import monitoring
from slurm_mig.core.model import NodeCondition, NodeView
from slurm_mig.core.monitoring import BOUNDS, Counters, Ended, Histogram

Rows = Iterable[tuple[Sequence[str], float]]


def exposition(ended: Ended, counters: Counters) -> str:
    """Every metric, ready for a `.prom` file."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once([*_gauges(ended, counters), *_counters(counters)]))
    return generate_latest(registry).decode("utf-8")


class _Once(Collector):
    """Metrics that are there already."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauges(ended: Ended, counters: Counters) -> Iterator[Metric]:
    views, report = ended.views, ended.report
    yield _gauge(
        "instances", "MIG instances and whole GPUs by what they do: allocated (a job has it), "
        "held (a process without a job), withheld (kept for a waiting job), free; unknown on a "
        "node that does not answer.",
        ("node", "profile", "state"), monitoring.instances(views).items(),
    )  # fmt: skip
    yield _gauge(
        "node_condition", "1 for what each managed node is to slurm-mig now.",
        ("node", "condition"), _conditions(views),
    )  # fmt: skip
    yield _gauge(
        "node_quarantined", "1 if the node was left fenced for a person.", ("node",),
        [((v.name,), float(v.name in counters.quarantined)) for v in views],
    )  # fmt: skip
    yield _gauge(
        "node_fenced", "1 while slurm-mig's fence stands on the node.", ("node",),
        [((v.name,), float(v.name in ended.transactions)) for v in views],
    )  # fmt: skip
    waiting = monitoring.unmet(ended.requests, report)
    yield _gauge(
        "unmet_instances", "Instances that waiting jobs lack and the last cycle could not make.",
        ("profile",), [((u.profile,), u.instances) for u in waiting],
    )  # fmt: skip
    yield _gauge(
        "unmet_age_seconds", "How long the oldest job that lacks the profile has been unserved.",
        ("profile",), [((u.profile,), max(0.0, report.time - u.since)) for u in waiting],
    )  # fmt: skip
    kinds = [monitoring.kind_of(reason) for reason in report.refusals.values()]
    yield _gauge(
        "refused_jobs", "Waiting jobs that nothing is done for now, by class of the reason.",
        ("reason",), [((kind,), kinds.count(kind)) for kind in sorted(set(kinds))],
    )  # fmt: skip
    yield from _last(ended)


def _last(ended: Ended) -> Iterator[Metric]:
    report = ended.report
    quality = ended.plan.quality
    for name, text, value in (
        ("last_cycle_timestamp_seconds", "When the last cycle ended.", report.time),
        ("last_cycle_seconds", "How long the last cycle took.", report.seconds),
        ("last_plan_seconds", "How long its planning took.", report.plan_seconds),
        ("last_plan_gap_ratio", "By how much its plan may fall short of the best one.",
         quality.gap if quality else 0.0),
    ):  # fmt: skip
        yield _gauge(name, text, (), [((), value)])


def _conditions(views: Iterable[NodeView]) -> Rows:
    return [
        ((view.name, condition.name.lower()), float(view.condition is condition))
        for view in views
        for condition in NodeCondition
    ]


def _counters(known: Counters) -> Iterator[Metric]:
    yield _counter("cycles", "Cycles by how they ended.", ("result",), _by_one(known.cycles))
    yield _counter(
        "reshapes", "Transactions that ended, by node and phase they ended in.",
        ("node", "result"),
        [((node, phase), n) for node, ends in known.reshapes.items() for phase, n in ends.items()],
    )  # fmt: skip
    yield _histogram(
        "step_seconds", "Duration of a transaction's steps.", ("step",),
        [((step,), known.steps[step]) for step in sorted(known.steps)],
    )  # fmt: skip
    yield _histogram(
        "fence_seconds", "From a fence's drain to its resume.", (), [((), known.fences)]
    )
    yield _counter(
        "node_fenced_seconds", "Seconds that a node was fenced.", ("node",), _by_one(known.fenced)
    )
    yield _counter(
        "refusals", "Jobs that came to be refused, by class of the reason.", ("reason",),
        _by_one(known.refusals),
    )  # fmt: skip
    yield _counter(
        "quarantines", "Times that a node was left fenced for a person.", ("node",),
        _by_one(known.quarantines),
    )  # fmt: skip


def _by_one(values: Mapping[str, float]) -> Rows:
    return [((name,), values[name]) for name in sorted(values)]


def _gauge(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = GaugeMetricFamily(f"slurm_mig_{name}", text, labels=labels)
    for values, number in sorted(rows):
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, labels: Sequence[str], rows: Rows) -> Metric:
    family = CounterMetricFamily(f"slurm_mig_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _histogram(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(f"slurm_mig_{name}", text, labels=labels)
    edges = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
    for values, histogram in rows:
        buckets = list(zip(edges, map(float, accumulate(histogram.counts)), strict=True))
        family.add_metric(values, buckets, histogram.total)
    return family
