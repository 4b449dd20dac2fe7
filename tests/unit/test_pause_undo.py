"""Pauses, the history, and the way back from a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from slurm_mig import historyrender
from slurm_mig.adapters.history import History
from slurm_mig.adapters.store import FileStore
from slurm_mig.cli import main
from slurm_mig.commands.history import moment
from slurm_mig.core import pauses, planner
from slurm_mig.core.changes import GpuChange, NodeChange
from slurm_mig.core.model import NodeView
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.policy import Policy, review
from slurm_mig.core.records import Event, ManagedNode, Pause, Phase, Transaction
from slurm_mig.core.undo import last_change, undo
from slurm_mig.errors import ArrangementError, BusyError, SlurmMigError, UnwritableError, UsageError
from tests.unit.builders import A100, at, gpu, job, node, ones

GROUPS = {"n1": "old", "n2": "old"}


def done(view: NodeView, change: NodeChange, ident: str = "1a2b3c4d") -> Transaction:
    return Transaction(
        ident, view.name, Phase.RELEASED, "slurm-mig: reshaping", 10.0, change, view.slots,
        change.slots, 12.5, "", {"fence": 0.5, "reshape": 1.25},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ([], {}),
        (["n1"], {"n1": "n1"}),
        (["@old"], {"n1": "group old", "n2": "group old"}),
        (["@none"], {}),
        (["", "n1"], dict.fromkeys(("n1", "n2", "n3"), "the cluster")),
        (["@old", "n1", "n3"], {"n1": "group old", "n2": "group old", "n3": "n3"}),
    ],
)
def test_what_is_paused(scopes: list[str], expected: dict[str, str]) -> None:
    there = [Pause(scope, 1.0, "root", "new driver") for scope in scopes]
    found = pauses.paused(there, ["n1", "n2", "n3"], GROUPS)
    assert found == {n: f"paused: {what}, by root: new driver" for n, what in expected.items()}


def test_a_paused_node_is_not_reshaped_and_the_plan_says_why() -> None:
    views = [node([gpu(A100, 0, *ones())], name=name) for name in ("n1", "n2")]
    rules = Policy(paused={"n1": "paused: n1, by root"})
    wants = [job(1, {"3g.20gb": 1}), job(2, {"3g.20gb": 1}), job(3, {"7g.40gb": 1})]
    made = plan(views, wants, {}, rules.rules({}, 0.0))
    assert [change.node for change in made.changes] == ["n2"]
    assert "n1: paused: n1, by root" in made.refusals[0].reason


def test_no_planner_gets_a_change_of_a_paused_node_past_policy() -> None:
    """The last gate, whatever made the plan."""
    view = node([gpu(A100, 0, *ones())])
    made = planner.plan([view], [job(1, {"3g.20gb": 1})])
    assert made.changes
    left = review(made, [job(1, {"3g.20gb": 1})], {}, Policy(paused={"n1": "paused"}), 0.0)
    assert not left.changes
    assert left.refusals[-1].reason == "n1 is paused"


def test_pauses_are_kept_and_go_with_their_node(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    given = [Pause("", 1.0, "root"), Pause("@old", 2.0, "eve", "x"), Pause("n1", 3.0, "root")]
    for pause in reversed(given):
        store.pause(pause)
    assert store.pauses() == given
    store.lift("")
    store.lift("")
    store.forget("n1")
    assert store.pauses() == given[1:2]


def changed(
    view: NodeView, destroyed: Sequence[str], created: Sequence[str]
) -> tuple[NodeView, Transaction]:
    """GPU 0 of a node after a change, `3g.20gb@4`, and its record."""

    def places(words: Sequence[str]) -> list[object]:
        return [at(word.split("@")[0], int(word.split("@")[1])) for word in words]

    old, gone, new = view.gpus[0].layout, places(destroyed), places(created)
    kept = tuple(sorted(p for p in old if p not in gone))
    after = node([gpu(A100, 0, *kept, *new), *view.gpus[1:]], name=view.name)  # type: ignore[arg-type]
    part = GpuChange(0, kept, tuple(gone), tuple(new))  # type: ignore[arg-type]
    return after, done(view, NodeChange(view.name, (part,), after.slots[:-1], (9,)))


SMALL = [f"1g.5gb@{n}" for n in (4, 5, 6)]


def test_undo_brings_back_what_was_there() -> None:
    before = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones())])
    after, last = changed(before, SMALL, ["3g.20gb@4"])
    back = undo(after, last, "undo of 1a2b3c4d, by root")
    assert [part.gpu for part in back.gpus] == [0]
    assert back.gpus[0].target == before.gpus[0].layout
    assert back.gpus[0].destroyed == (at("3g.20gb", 4),)
    assert back.why == "undo of 1a2b3c4d, by root"
    types = sorted(d.type for d in back.slots)
    assert types == sorted(d.type for d in before.slots[:-1])
    again = undo(before, done(after, back), "redo")
    assert again.gpus[0].target == after.gpus[0].layout


def test_undo_leaves_running_jobs_where_they_are() -> None:
    before = node([gpu(A100, 0, *ones())])
    after, last = changed(before, SMALL, ["3g.20gb@4"])
    index = next(i for i, d in enumerate(after.slots) if d.placement == at("1g.5gb", 2))
    after = node(after.gpus, {7: [index]})
    back = undo(after, last, "")
    assert back.slots[index].placement == at("1g.5gb", 2)


def test_undo_names_the_job_in_the_way() -> None:
    before = node([gpu(A100, 0, *ones())])
    after, last = changed(before, SMALL, ["3g.20gb@4"])
    index = next(i for i, d in enumerate(after.slots) if d.placement == at("3g.20gb", 4))
    with pytest.raises(BusyError, match=r"job 7 has 3g\.20gb@4 of GPU 0"):
        undo(node(after.gpus, {7: [index]}), last, "")
    held = replace(after.gpus[0].instances[-1], pids=(4711,))
    assert held.placement == at("3g.20gb", 4)
    gpus = [replace(after.gpus[0], instances=(*after.gpus[0].instances[:-1], held))]
    with pytest.raises(BusyError, match="a process or a coming reservation"):
        undo(node(gpus), last, "")


def test_undo_says_when_hulls_forbid_it() -> None:
    """Ten 1g.5gb with jobs on the first and the last: seven do not reach from one to the other."""
    before = node([gpu(A100, 0, at("3g.20gb", 0), at("3g.20gb", 4)), gpu(A100, 1, *ones())])
    after, last = changed(before, ["3g.20gb@4"], SMALL)
    small = [i for i, d in enumerate(after.slots) if d.type == "1g.5gb"]
    own, others = [[after.slots[i] for i in small if after.slots[i].gpu == g] for g in (0, 1)]
    there = dict(enumerate(after.slots)) | dict(
        zip(small, [others[0], *own, *others[1:]], strict=True)
    )
    ordered, ends = tuple(there.values()), (small[0], small[-1])
    undo(replace(node(after.gpus), slots=ordered), last, "")
    with pytest.raises(ArrangementError):
        undo(replace(node(after.gpus, {7: ends}), slots=ordered), last, "")


def test_undo_refuses_what_is_no_longer_so() -> None:
    before = node([gpu(A100, 0, *ones())])
    after, last = changed(before, SMALL, ["3g.20gb@4"])
    with pytest.raises(SlurmMigError, match="no longer as the change 1a2b3c4d left it"):
        undo(before, last, "")
    with pytest.raises(SlurmMigError, match="no longer"):
        undo(node([]), last, "")
    whole = replace(after.gpus[0], mig=False, instances=())
    part = GpuChange(0, (), tuple(ones()), (), mig=False)
    made_whole = done(before, NodeChange("n1", (part,), (), ()))
    with pytest.raises(SlurmMigError, match="no longer let its MIG mode change"):
        undo(node([whole]), made_whole, "")


def test_undo_of_a_gpu_that_became_whole() -> None:
    before = node([gpu(A100, 0, *ones())])
    part = GpuChange(0, (), tuple(ones()), (), mig=False)
    last = done(before, NodeChange("n1", (part,), (), ()))
    whole = replace(gpu(A100, 0), mig=False, mig_pending=False)
    now = replace(before, gpus=(whole,), switchable=frozenset({0}), whole_types={0: "a100"})
    slots = (replace(before.slots[0], type="a100", placement=None, gpu=0), *before.slots[1:])
    back = undo(replace(now, slots=slots), last, "")
    assert back.gpus == (GpuChange(0, (), (), tuple(ones()), mig=True),)


def test_the_last_change_is_the_last_that_was_carried_through() -> None:
    before = node([gpu(A100, 0, *ones())])
    after, last = changed(before, SMALL, ["3g.20gb@4"])
    repair = done(after, NodeChange("n1", (), after.slots, ()), "0000000a")
    given_up = replace(last, id="0000000b", phase=Phase.ABANDONED)
    other = replace(last, id="0000000c", node="n2")
    event = Event(1.0, "paused", "n1", "root", nodes=("n1",))
    assert last_change([last, repair, given_up, other, event], "n1") == last
    assert last_change([repair, event], "n1") is None


def test_the_history_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    events = [Event(float(n), "paused", "the cluster", "root") for n in range(100)]
    history = History(tmp_path, full_bytes=2000)
    for event in events:
        history.append(event)
    kept = list(history.entries())
    assert kept == events[-len(kept) :]
    assert 10 <= len(kept) < 100
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4000
    whole = (tmp_path / "history.jsonl").read_bytes()
    (tmp_path / "history.jsonl").write_bytes(whole[:-9])
    history.append(events[0])
    assert list(history.entries()) == [*kept[:-1], events[0]]


def test_a_history_that_cannot_be_written_keeps_no_transaction_open(tmp_path: Path) -> None:
    view = node([gpu(A100, 0, *ones())])
    last = done(view, NodeChange(view.name, (), view.slots, ()))
    store = FileStore(tmp_path)
    store.save_transaction(replace(last, phase=Phase.PUBLISHED))
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(UnwritableError, match=r"history.jsonl cannot be written"):
        store.save_transaction(last)
    assert store.transaction(view.name) == last


def test_an_end_that_a_crash_kept_from_the_journal_is_in_the_history_once(tmp_path: Path) -> None:
    view = node([gpu(A100, 0, *ones())])
    last = done(view, NodeChange(view.name, (), view.slots, ()))
    store, folder = FileStore(tmp_path), tmp_path / "transactions"
    store.save_transaction(replace(last, phase=Phase.PUBLISHED))
    folder.rename(tmp_path / "kept")
    folder.touch()  # As if killed before the journal's end was written.
    with pytest.raises(UnwritableError):
        store.save_transaction(last)
    folder.unlink()
    (tmp_path / "kept").rename(folder)
    assert list(store.history.entries()) == [last], "known, though the next cycle will repeat it"
    event = Event(9.0, "paused", "n2", "root")
    store.history.append(event)
    again = replace(last, note="left drained by somebody else: x")
    store.save_transaction(again)
    assert list(store.history.entries()) == [event, again]
    assert store.history.since(0)[0] == [event, again]


def test_how_the_history_reads() -> None:
    before = node([gpu(A100, 0, *ones())])
    _, last = changed(before, SMALL, ["3g.20gb@4"])
    last = replace(last, change=replace(last.change, why="for job 9 (3g.20gb)", plan="beef"))
    text = historyrender.history_text(last)
    assert "n1 reshaped in 2.50 s: for job 9 (3g.20gb) (1a2b3c4d, plan beef)" in text
    assert "gpu0 -1g.5gb@4 -1g.5gb@5 -1g.5gb@6 +3g.20gb@4" in text
    assert "fence 0.50 s, reshape 1.25 s" in text
    gone = replace(last, phase=Phase.ABANDONED, note="job 7 has it")
    assert "n1 abandoned after 2.50 s (job 7 has it): for job 9" in historyrender.history_text(gone)
    event = Event(12.0, "paused", "group old", "eve", "new driver")
    assert historyrender.history_text(event).endswith("group old paused by eve: new driver\n")
    shown = historyrender.history_json(last)
    assert (shown["why"], shown["plan"], shown["took_s"]) == ("for job 9 (3g.20gb)", "beef", 2.5)


def test_since() -> None:
    assert moment("2h", 10000.0) == 2800.0
    assert moment("2026-11-25 14:00", 0.0) == moment("2026-11-25T14:00:00", 0.0)
    with pytest.raises(UsageError, match="not understood"):
        moment("yesterday", 0.0)


def test_history_on_the_command_line(tmp_path: Path) -> None:
    conf = tmp_path / "slurm-mig.yaml"
    conf.write_text(f"state_dir: {tmp_path}/state\n")

    def said(*words: str) -> str:
        done = CliRunner().invoke(main, ["history", "--config", str(conf), *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert said() == "nothing was done\n"
    store = FileStore(tmp_path / "state")
    for n in range(1, 4):
        store.history.append(Event(n * 1e6, "paused", f"n{n}", "root", nodes=(f"n{n}",)))
    assert said("--last", "1").splitlines()[0] == "(2 earlier: `--last 0` shows them)"
    assert "n2 paused" in said("--node", "n[1-2]")
    assert "n3 paused" not in said("--node", "n[1-2]")
    assert "n1 paused" not in said("--since", "1970-01-15")
    assert '"did": "paused"' in said("--json")


def test_a_record_from_before_names_and_reasons_is_read() -> None:
    """Transactions of earlier versions have no `why` and no `plan`."""
    node_record = ManagedNode("n1", {}, (), ())
    assert node_record.name == "n1"
    view = node([gpu(A100, 0, *ones())])
    change = NodeChange("n1", (), view.slots, (), ())
    assert "what was withheld is offered again" in historyrender.history_text(done(view, change))
