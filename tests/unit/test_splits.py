"""Compute instances as devices of their own: slots, what may go, what a plan leaves alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from slurm_mig.core import monitoring, publish, slots, submit
from slurm_mig.core.changes import GpuChange
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.layouts import Cut, parse_inline
from slurm_mig.core.model import ComputeInstance, Gpu, Instance, NodeView, Placement
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.records import ManagedNode, NodeFacts, Phase, Transaction
from slurm_mig.core.undo import undo
from slurm_mig.errors import BusyError, ConfigError, SlurmMigError
from slurm_mig.managedlayout import node_change, planned
from slurm_mig.newnode import managed_node
from slurm_mig.render import map_lines
from slurm_mig.report import gpus as report
from slurm_mig.sitefiles import SiteFiles
from tests.fakes.gpus import made_instance
from tests.unit.builders import A100, at, gpu, job, node, ones

PART = "1c.3g.20gb"
WHOLE = at("3g.20gb", 4)


def split_gpu(index: int = 0, pids: tuple[int, ...] = (), ci: int = 0) -> Gpu:
    """Four 1g.5gb, and a 3g.20gb in three parts of which one may be held."""
    plain = replace(gpu(A100, index, *ones(4)), mig_capable=True)
    made = made_instance(plain, Cut(WHOLE, (1, 1, 1)))
    computes = tuple(replace(c, pids=pids if c.ci == ci else ()) for c in made.computes)
    files = (f"/dev/nvidia{index}", f"/caps/nvidia-cap{30 + index}",
             *(f"/caps/nvidia-cap{c.minor + index}" for c in computes))  # fmt: skip
    instance = replace(made, computes=computes, pids=pids, files=files)
    return replace(plain, instances=(*plain.instances, instance))


def busy_part(view: NodeView) -> int:
    return next(n for n, d in enumerate(view.slots) if d.type == PART)


def test_each_part_is_a_slot_with_its_own_compute_instance() -> None:
    found = [d for d in slots.devices_of(split_gpu(), "") if d.type == PART]
    assert [d.placement and d.placement.ci for d in found] == [0, 1, 2]
    assert len({d.files[2] for d in found}) == len({d.uuid for d in found}) == 3
    assert len({d.files[:2] for d in found}) == 1
    assert {d.home for d in found} == {(0, WHOLE)}
    assert [str(d.placement) for d in found] == [f"{PART}@4/0", f"{PART}@4/1", f"{PART}@4/2"]
    assert decode(Placement, encode(found[1].placement)) == found[1].placement


def test_what_holds_a_part_holds_only_it() -> None:
    held = split_gpu(pids=(7,), ci=1)
    assert {p.ci for p in held.held} == {1}
    unknown = replace(held.instances[-1], pids=(7, 8))
    assert {p.ci for p in unknown.held} == {0, 1, 2}, "whose part is not known may have any"
    view = node([held])
    assert [view.slots[n].type for n in view.held] == [PART]


def test_the_gres_line_has_every_part_that_could_be() -> None:
    made = ManagedNode(
        "n1", {}, node([split_gpu()]).slots, ("3g.20gb",), part_types=("2c.4g.20gb",)
    )
    line = publish.node_gres(made)
    assert f"gpu:{PART}:3" in line
    assert "gpu:2c.4g.20gb:0" in line
    assert submit.Partition("main", (made,)).possible == {"3g.20gb", PART}
    known = submit.submit_table(submit.Rules(), [submit.Partition("main", (made,))], ())
    assert submit.knows_parts(known, [made])
    assert not submit.knows_parts(known, [replace(made, slots=node([gpu()]).slots)])


def test_part_types_are_narrower_than_their_instance() -> None:
    found = slots.part_types(gpu().profiles)
    assert {"1c.2g.10gb", "2c.3g.20gb", "4c.7g.40gb"} <= found
    assert not any(t.startswith(("1c.1g", "3c.3g")) for t in found)


def test_the_planner_keeps_idle_parts_and_gives_them_away() -> None:
    view = node([split_gpu()])
    made = plan([view], [job(1, {PART: 2}), job(2, {"3g.20gb": 1}), job(3, {PART: 1})])
    assert made.startable == (1, 3)
    assert [c.serves for c in made.changes] == [(2,)]
    part = made.changes[0].gpus[0]
    assert WHOLE in part.kept
    assert [d.type for d in made.changes[0].slots].count(PART) == 3
    assert part.splits == ()
    too_large = plan([node([split_gpu()], {4: [busy_part(view)]})], [job(5, {"7g.40gb": 1})])
    assert not too_large.changes
    assert all((0, WHOLE) not in c.blocking for c in too_large.changes)


def test_a_request_splits_and_joins(a100: Gpu) -> None:
    view = node([a100])
    wanted = parse_inline([f"gpu0={PART}@4*3,1g.5gb*4"], view.gpus)
    changes = planned(view, wanted)
    wish = node_change(view, changes)
    assert wish.gpus[0].splits == ((WHOLE, (1, 1, 1)),)
    assert [d.type for d in wish.slots].count(PART) == 3
    split = node([split_gpu()])
    joined = node_change(split, planned(split, parse_inline(["gpu0=3g.20gb,1g.5gb*4"], split.gpus)))
    part = joined.gpus[0]
    assert part.splits == ((WHOLE, ()),)
    assert part.resplit == {WHOLE}
    assert joined.blocking == {(0, WHOLE), (0, None)}
    assert decode(GpuChange, encode(part)) == part
    assert [d.type for d in joined.slots if d.placement] == ["1g.5gb"] * 4 + ["3g.20gb"]


def test_undo_splits_and_joins_again(a100: Gpu) -> None:
    view = node([a100])
    made = node_change(view, planned(view, parse_inline([f"gpu0={PART}@4*3,1g.5gb*4"], view.gpus)))
    last = Transaction("1", "n1", Phase.RELEASED, "", 0.0, made, view.slots)
    split = node([split_gpu()])
    back = undo(split, last, "")
    assert back.gpus[0].created == tuple(ones()[4:])
    again = Transaction("2", "n1", Phase.RELEASED, "", 0.0, back, split.slots)
    assert undo(view, again, "").gpus[0].splits == ((WHOLE, (1, 1, 1)),)
    held = node([split_gpu()], {9: [busy_part(split)]})
    with pytest.raises(BusyError, match=r"job 9 has 3g.20gb@4 of GPU 0"):
        undo(held, last, "")
    other = replace(split_gpu(), instances=(*split_gpu().instances[:4], computes((0, 2), (1, 1))))
    with pytest.raises(SlurmMigError, match="no longer as the change 1 left it"):
        undo(node([other]), last, "")


@pytest.fixture
def a100() -> Gpu:
    return replace(gpu(A100, 0, *ones()), mig_capable=True)


def test_one_busy_part_keeps_the_others() -> None:
    view = node([split_gpu()])
    index = busy_part(view)
    held = node([split_gpu()], {9: [index]})
    for wish in ("gpu0=3g.20gb,1g.5gb*4", f"gpu0=2c.3g.20gb,{PART},1g.5gb*4", "gpu0=7g.40gb"):
        with pytest.raises(BusyError, match=r"3g.20gb@4 of GPU 0 is held by job 9"):
            planned(held, parse_inline([wish], held.gpus))
    beside = node_change(held, planned(held, parse_inline([f"gpu0={PART}*3,2g.10gb"], held.gpus)))
    assert beside.slots[index].key == held.slots[index].key


def test_the_map_shows_who_has_which_part() -> None:
    view = node([split_gpu()])
    held = node([split_gpu()], {9: [busy_part(view) + 1]})
    drawn = map_lines(held, 100)
    assert "|1c.3g.20gb*3 " in drawn[1]
    assert "|free, job 9, free " in drawn[2]


def test_metrics_and_the_report_have_parts() -> None:
    view = node([split_gpu()])
    held = node([split_gpu()], {9: [busy_part(view) + 1]})
    assert monitoring.instances([held])["n1", PART, "free"] == 2
    assert monitoring.instances([held])["n1", PART, "allocated"] == 1
    record = ManagedNode("n1", {}, held.slots, ())
    assert monitoring.afterwards(held, record, None).gpus == held.gpus
    joined = replace(record, slots=node([gpu(A100, 0, *ones(4), WHOLE)]).slots)
    assert not monitoring.afterwards(held, joined, None).gpus[0].split
    split = monitoring.afterwards(node([gpu(A100, 0, *ones(4), WHOLE)]), record, None)
    assert split.gpus[0].split == {WHOLE}
    drawn = "".join(report.node(held).itertext())
    assert drawn.count(PART) == 3
    assert "job 9" in drawn


def computes(*found: tuple[int, int]) -> Instance:
    parts = tuple(ComputeInstance(ci, f"{w}c.3g.20gb", w, f"MIG-{ci}", 40 + ci) for ci, w in found)
    return replace(made_instance(gpu(), Cut(WHOLE)), computes=parts, compute_instances=len(parts))


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        (((0, 2), (1, 1)), False),
        (((0, 1), (1, 2)), True),
        (((0, 1), (2, 1)), True),
    ],
    ids=["widest first", "another order", "a gap"],
)
def test_enrolment_takes_what_comes_back_the_same(
    found: tuple[tuple[int, int], ...], *, refused: bool
) -> None:
    """After a boot the driver counts compute instances from 0 again."""
    facts = NodeFacts((replace(gpu(), instances=(computes(*found),)),))
    if refused:
        with pytest.raises(ConfigError, match="would come back with other ids after a boot"):
            managed_node(SITE, "n1", facts, "/caps")
        return
    made = managed_node(SITE, "n1", facts, "/caps")
    assert made.parts == {"2c.3g.20gb", PART}
    assert len(made.slots) == 8


class Site:
    """A slurm.conf with one plain node; only what `managed_node` asks for is answered."""

    def node(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(attributes={"NodeName": name}, get=lambda key: "")

    def gres_lines(self, node: str) -> tuple[()]:
        return ()

    def partitions_of(self, node: str) -> tuple[str, ...]:
        return ("main",)


SITE = cast(SiteFiles, Site())
