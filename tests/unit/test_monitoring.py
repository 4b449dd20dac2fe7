"""Metrics and counters: what is counted, what the files in etc/ ask for, and promtool's verdict."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_mig.adapters.prometheus import exposition
from slurm_mig.adapters.store import FileStore
from slurm_mig.config import MonitoringSettings
from slurm_mig.core import monitoring
from slurm_mig.core.changes import NodeChange, Plan, Quality
from slurm_mig.core.model import Device, NodeView, Withholding
from slurm_mig.core.monitoring import Counters, Ended, Histogram, kind_of
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.records import CycleReport, ManagedNode, Phase, Transaction
from slurm_mig.errors import UnreachableError
from slurm_mig.monitor import Monitor
from tests.unit.builders import at, gpu, job, node, ones

ETC = Path(__file__).parents[2] / "etc"
RULES = ETC / "prometheus" / "slurm-mig.rules.yml"
RULE_TESTS = Path(__file__).parents[1] / "monitoring" / "rules.test.yml"
PLACE = at("3g.20gb", 4)


def promtool(*words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *words], input=text, capture_output=True, text=True, check=False, timeout=60
    )


def transaction(name: str = "n1", phase: Phase = Phase.RELEASED, **more: Any) -> Transaction:
    change = NodeChange(name, (), (), ())
    return Transaction("ab12", name, phase, "slurm-mig: reshaping (ab12)", 100.0, change, (),
                       **more)  # fmt: skip


def ended(view: NodeView, **more: Any) -> Ended:
    report = CycleReport(1000.0, "done", seconds=1.5, plan_seconds=0.25)
    values: dict[str, Any] = {
        "views": (view,),
        "requests": (),
        "plan": Plan(quality=Quality(90, 100, proven=False)),
        "transactions": {},
        "report": report,
    }
    return Ended(**{**values, **more})


def samples(text: str) -> dict[str, float]:
    """Value by name and labels."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def full() -> tuple[Ended, Counters]:
    """Something of everything."""
    view = node([gpu(layout_model(), 0, *ones(4), PLACE)], {7: [0]})
    view = replace(view, withheld=(Withholding(0, frozenset({PLACE}), (9,)),))
    report = CycleReport(
        1000.0, "s", {9: "n1: no room for 7g.40gb: in use by job 7"}, {9: 400.0}, seconds=1.5
    )
    cycle = ended(
        view,
        requests=(job(9, {"7g.40gb": 1}, tasks=3), job(10, {"1g.5gb": 1})),
        transactions={"n1": transaction(phase=Phase.PUBLISHED)},
        report=report,
    )
    done = transaction(seconds={"fence": 0.04, "reshape": 0.7, "write files": 0.1, "fenced": 1.2})
    counters = monitoring.counted(Counters(), cycle, [done], 77)
    return cycle, counters


def layout_model() -> str:
    return "NVIDIA A100-SXM4-40GB"


def test_what_a_cycle_says() -> None:
    cycle, counters = full()
    found = samples(exposition(cycle, counters))
    assert found['slurm_mig_instances{node="n1",profile="1g.5gb",state="allocated"}'] == 1
    assert found['slurm_mig_instances{node="n1",profile="1g.5gb",state="free"}'] == 3
    assert found['slurm_mig_instances{node="n1",profile="3g.20gb",state="withheld"}'] == 1
    assert found['slurm_mig_unmet_instances{profile="7g.40gb"}'] == 3
    assert found['slurm_mig_unmet_age_seconds{profile="7g.40gb"}'] == 600
    assert 'slurm_mig_unmet_instances{profile="1g.5gb"}' not in found
    assert found['slurm_mig_refused_jobs{reason="in_use"}'] == 1
    assert found['slurm_mig_node_quarantined{node="n1"}'] == 1
    assert found['slurm_mig_quarantines_total{node="n1"}'] == 1
    assert found["slurm_mig_last_plan_gap_ratio"] == pytest.approx(0.1)
    assert found["slurm_mig_last_cycle_seconds"] == 1.5
    assert found['slurm_mig_reshapes_total{node="n1",result="released"}'] == 1
    assert found['slurm_mig_step_seconds_bucket{le="0.05",step="fence"}'] == 1
    assert found['slurm_mig_step_seconds_bucket{le="0.5",step="reshape"}'] == 0
    assert found['slurm_mig_step_seconds_bucket{le="1",step="reshape"}'] == 1
    assert found['slurm_mig_step_seconds_sum{step="write"}'] == pytest.approx(0.1)
    assert found["slurm_mig_fence_seconds_sum"] == pytest.approx(1.2)
    assert found['slurm_mig_node_fenced_seconds_total{node="n1"}'] == pytest.approx(1.2)


def test_promtool_finds_no_fault_in_the_metrics() -> None:
    done = promtool("check", "metrics", text=exposition(*full()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # The same tool does find one.
    assert promtool("check", "metrics", text="# TYPE a_total gauge\na_total 1\n").returncode == 3


def test_promtool_finds_no_fault_in_the_rules() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("test", "rules", str(RULE_TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    tested = set(re.findall(r"alertname: (\w+)", RULE_TESTS.read_text()))
    assert tested == set(re.findall(r"alert: (\w+)", RULES.read_text()))


def queries() -> Iterator[str]:
    """Every query of the dashboard, its variables as Grafana fills them."""
    dashboard = json.loads((ETC / "grafana" / "slurm-mig.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m").replace("$node", "n.*")


def test_every_query_of_the_dashboard_parses_and_asks_for_a_metric_that_is_there() -> None:
    there = {name.partition("{")[0] for name in samples(exposition(*full()))}
    texts = [*queries(), RULES.read_text()]
    assert len(texts) > 15
    for query in texts[:-1]:
        done = promtool("--experimental", "promql", "format", query)
        assert done.returncode == 0, f"{query}: {done.stderr}"
    for text in texts:
        asked = set(re.findall(r"slurm_mig_\w+", text))
        assert asked <= there, asked - there
    assert promtool("--experimental", "promql", "format", "sum(").returncode != 0


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("n1: no room for 3g.20gb: in use by job 7; n2: node is DOWN", "in_use"),
        ("GPU 0 of n1 is kept for it until job 7 ends", "in_use"),
        ("n1: GPU 0 was reshaped lately: cool-down for 20 s more", "cooldown"),
        ("the cluster was reconfigured lately: again in 9 s", "cooldown"),
        ("1 node(s) in transition at once: next cycle", "next_cycle"),
        ("policy: jobs of user eve cause no reshape", "policy"),
        ("waits less than min_wait_s (60 s) so far", "policy"),
        ("n1 has 0 CPUs free, the job needs 4", "cpus_or_memory"),
        ("n1 is paused: the cluster, by root: new driver", "paused"),
        ("n1: drained by an administrator: disk", "drained"),
        ("n1 is in reservation course", "reservation"),
        ("what could be changed for it costs more than it is worth, or is not enough",
         "not_worth_it"),
        ("no managed GPU of partition main can ever be '9g'; possible: 1g.5gb", "impossible"),
        ("n1 lacks the job's constraint a30", "constraint"),
        ("Slurm may start it by preempting job 3", "starts_soon"),
        ("something that nobody has thought of", "other"),
    ],
)  # fmt: skip
def test_classes_of_reasons(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


@pytest.mark.parametrize(
    ("view", "wanted", "kind"),
    [
        (node([gpu()], {7: [0]}), {"7g.40gb": 1}, "impossible"),
        (node([gpu(layout_model(), 0, *ones())], {7: [0]}), {"7g.40gb": 1}, "in_use"),
        (node([gpu(layout_model(), 0, *ones())], {7: [0]}), {"9g.80gb": 1}, "impossible"),
    ],
)
def test_the_planners_own_words_have_a_class(
    view: NodeView, wanted: dict[str, int], kind: str
) -> None:
    known = replace(view, possible=("1g.5gb", "7g.40gb"))
    if kind == "impossible" and "9g.80gb" not in wanted:
        known = replace(known, gpus=(), slots=(), possible=())
    found = plan([known], [job(9, wanted)]).refusals
    assert [kind_of(r.reason) for r in found] == [kind]


def test_the_nodes_are_shown_as_the_cycle_leaves_them() -> None:
    before = node([gpu(layout_model(), 0, *ones())], {7: [0]})
    kept = before.slots[0]
    new = Device("3g.20gb", ("f",), "MIG-new", 0, PLACE)
    managed = ManagedNode("n1", {}, (kept, new, Device("guard")), ("1g.5gb",))
    after = monitoring.afterwards(before, managed, None)
    assert [str(i.placement) for i in after.gpus[0].instances] == ["1g.5gb@0", "3g.20gb@4"]
    assert monitoring.owners(after) == {
        (0, kept.placement): ("allocated", "job 7"),
        (0, PLACE): ("free", ""),
    }
    whole = replace(managed, slots=(Device("a100", gpu=0), Device("guard")))
    free = replace(before, slurm=replace(before.slurm, allocations=()))
    after = monitoring.afterwards(free, whole, None)
    assert not after.gpus[0].mig
    assert monitoring.instances([after]) == {("n1", "a100", "free"): 1}
    assert monitoring.instances([replace(after, gpus=())]) == {("n1", "a100", "unknown"): 1}


def test_counters_survive_and_count_each_transaction_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    monitor = Monitor(store, MonitoringSettings(str(tmp_path / "m.prom")))
    cycle = ended(node([gpu()]))
    store.save_transaction(transaction(seconds={"fence": 0.1}))
    monitor.ended(cycle)
    monitor.ended(cycle)
    monitor.failed(UnreachableError("slurmctld is away"))
    store.save_transaction(transaction(phase=Phase.ABANDONED))
    with open(tmp_path / "history.jsonl", "a") as file:
        file.write('{"half a line')
    # Another process, after a restart.
    again = Monitor(FileStore(tmp_path), monitor.settings)
    again.ended(cycle)
    assert again.counters.reshapes == {"n1": {"released": 1, "abandoned": 1}}
    assert again.counters.cycles == {"done": 3, "unreachable": 1}
    found = samples((tmp_path / "m.prom").read_text())
    assert found['slurm_mig_reshapes_total{node="n1",result="abandoned"}'] == 1
    # A full history is put away: what it got since is counted, and the new one from its beginning.
    store.save_transaction(transaction("n2"))
    (tmp_path / "history.jsonl").rename(tmp_path / "history.jsonl.1")
    store.save_transaction(transaction("n3"))
    again.ended(cycle)
    released = {"released": 1}
    assert again.counters.reshapes == {"n1": {**released, "abandoned": 1}, "n2": released,
                                       "n3": released}  # fmt: skip


def test_refusals_and_quarantines_are_counted_when_they_come(tmp_path: Path) -> None:
    monitor = Monitor(FileStore(tmp_path), MonitoringSettings())
    first = CycleReport(1.0, "", {1: "in use by job 3", 2: "cool-down"})
    later = CycleReport(2.0, "", {1: "in use by job 4", 2: "in use by job 4"})
    stuck = {"n1": transaction(phase=Phase.PUBLISHED)}
    view = node([gpu()])
    monitor.ended(ended(view, report=first, transactions=stuck))
    monitor.ended(ended(view, report=later, before=first, transactions=stuck))
    assert monitor.counters.refusals == {"in_use": 2, "cooldown": 1}
    assert monitor.counters.quarantines == {"n1": 1}
    monitor.ended(ended(view, report=later, before=later))
    monitor.ended(ended(view, report=later, before=later, transactions=stuck))
    assert monitor.counters.quarantines == {"n1": 2}


def test_a_file_that_cannot_be_written_stops_no_cycle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor(FileStore(tmp_path), MonitoringSettings("/nowhere/m.prom"))
    monitor.ended(ended(node([gpu()])))
    assert "/nowhere/m.prom cannot be written" in caplog.text
    assert monitor.counters.cycles == {"done": 1}


def test_histograms_of_another_version_begin_anew() -> None:
    assert Histogram((5, 5), 9.0).add(0.01) == Histogram().add(0.01)
    assert sum(Histogram().add(0.2).add(9999).counts) == 2
