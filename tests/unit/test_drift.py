"""What another hand has changed, whether it can be mended, and the record afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from slurm_mig.core import drift, publish
from slurm_mig.core.model import Gpu, NodeView, Withholding
from slurm_mig.core.records import ManagedNode
from tests.unit.builders import A30, A100, at, gpu, instance, node, ones


def record(view: NodeView) -> ManagedNode:
    possible = sorted({p.name for g in view.gpus for p in g.profiles})
    return ManagedNode(
        view.name,
        {},
        view.slots,
        tuple(possible),
        most={p.name: p.max_count for g in view.gpus for p in g.profiles},
        baseline={g.index: tuple(sorted(g.layout)) for g in view.gpus},
        cards=drift.cards(view.gpus),
    )


BEFORE = node([gpu(A100, 0, *ones()), gpu(A100, 1, at("3g.20gb", 0), at("3g.20gb", 4))])


def other_uuid(gpu: Gpu, uuid: str) -> Gpu:
    return replace(gpu, uuid=uuid)


def renamed(gpu: Gpu) -> Gpu:
    """The same GPU under a driver that says 6gb where the other said 5gb."""

    def name(old: str) -> str:
        return old.replace(".5gb", ".6gb").replace("0gb", "1gb")

    return replace(
        gpu,
        profiles=tuple(replace(p, name=name(p.name)) for p in gpu.profiles),
        instances=tuple(
            replace(i, placement=i.placement._replace(profile=name(i.placement.profile)))
            for i in gpu.instances
        ),
    )


ZERO, ONE = BEFORE.gpus
CHANGES: dict[str, tuple[Callable[[], tuple[Gpu, ...]], str, str]] = {
    "nothing": (lambda: (ZERO, ONE), "", ""),
    "an instance less": (
        lambda: (gpu(A100, 0, *ones()[:-1]), ONE),
        "missing GPU 0 1g.5gb@6, unexpected none",
        "",
    ),
    "another layout": (
        lambda: (ZERO, gpu(A100, 1, at("7g.40gb", 0))),
        "missing GPU 1 3g.20gb@0, GPU 1 3g.20gb@4, unexpected GPU 1 7g.40gb@0",
        "",
    ),
    "half made": (
        lambda: (ZERO, replace(ONE, instances=(replace(ONE.instances[0], compute_instances=0),
                                               ONE.instances[1]))),
        "GPU 1 3g.20gb@0 has no compute instance",
        "make it one, or destroy it",
    ),
    "mode off": (
        lambda: (ZERO, replace(ONE, mig=False, instances=())),
        "MIG is off on GPU 1",
        "`nvidia-smi -i 1 -mig 1` on n1",
    ),
    "other minors": (
        lambda: (ZERO, replace(ONE, instances=tuple(
            instance(5, i.placement) for i in ONE.instances))),
        "devices of GPU 1 have other files or UUIDs",
        "",
    ),
    "places exchanged": (
        lambda: (other_uuid(ZERO, ONE.uuid), other_uuid(ONE, ZERO.uuid)),
        "GPU 0 is what GPU 1 was; GPU 1 is what GPU 0 was",
        "",
    ),
    "replaced by its like": (
        lambda: (other_uuid(ZERO, "GPU-9"), ONE), "GPU 0 was replaced: GPU-9 for GPU-0", "",
    ),
    "replaced by another model": (
        lambda: (replace(ZERO, uuid="GPU-9", model="NVIDIA H100"), ONE),
        "GPU 0 is NVIDIA H100, was NVIDIA A100-SXM4-40GB",
        "`leave` and `enrol` the node",
    ),
    "taken out": (
        lambda: (ZERO,), "GPU 1 (NVIDIA A100-SXM4-40GB) is not there any more", "put it back",
    ),
    "one more": (
        lambda: (ZERO, ONE, gpu(A30, 2)), "GPU 2 (NVIDIA A30) is new", "`leave` and `enrol`",
    ),
    "renamed profiles": (
        lambda: (renamed(ZERO), renamed(ONE)),
        "the driver of GPU 0 has other profile names: 1g.11gb, 1g.6gb, 1g.6gb+me",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_is_noticed(what: str) -> None:
    now, text, obstacle = CHANGES[what]
    found = drift.found(record(BEFORE), BEFORE.slurm, now())
    if not text:
        assert found is None
        return
    assert found is not None
    assert text in found.text
    assert obstacle in found.obstacle
    assert bool(found.obstacle) == bool(obstacle)


@pytest.mark.parametrize("what", [w for w, (_, text, obstacle) in CHANGES.items()
                                  if text and not obstacle])  # fmt: skip
def test_what_is_adopted_is_no_drift_once_published(what: str) -> None:
    gpus = CHANGES[what][0]()
    new = drift.adopted(record(BEFORE), gpus)
    published = replace(new, slots=node(gpus).slots)
    assert drift.found(published, BEFORE.slurm, gpus) is None
    assert len(published.slots) == len(BEFORE.slots)


def test_a_job_whose_device_is_gone_is_named_and_nothing_is_published() -> None:
    index = next(i for i, d in enumerate(BEFORE.slots) if d.placement == at("1g.5gb", 6))
    view = node(BEFORE.gpus, {7: [index]})
    found = drift.found(record(view), view.slurm, (gpu(A100, 0, *ones()[:-1]), ONE))
    assert found is not None
    assert "job 7 had 1g.5gb@6 of GPU 0" in found.text
    assert found.obstacle == "end job 7"
    elsewhere = drift.found(record(view), view.slurm, (ZERO, gpu(A100, 1, at("7g.40gb", 0))))
    assert elsewhere is not None
    assert not elsewhere.obstacle, "a job on other devices is in nobody's way"


def test_records_from_before_have_no_cards_and_are_not_drifted() -> None:
    old = replace(record(BEFORE), cards={})
    assert drift.found(old, BEFORE.slurm, (other_uuid(ZERO, "GPU-9"), ONE)) is None


def test_names_of_an_earlier_driver_stay_listed_with_count_0() -> None:
    """A stale copy of the Gres line costs a registration, never a job; nothing else offers them."""
    gpus = (renamed(ZERO), renamed(ONE))
    new = drift.adopted(record(BEFORE), gpus)
    assert "1g.5gb" not in new.possible
    assert "1g.5gb" not in new.most
    assert {"1g.5gb", "3g.20gb"} <= set(new.former)
    assert "gpu:1g.5gb:0" in publish.node_gres(replace(new, slots=node(gpus).slots))
    assert new.baseline[1][0].profile == "3g.21gb"


def test_what_was_withheld_and_is_gone_is_withheld_no_more() -> None:
    held = (
        Withholding(0, frozenset({at("1g.5gb", 6), at("1g.5gb", 5)}), (9,)),
        Withholding(1, frozenset({at("3g.20gb", 4)}), (9,)),
    )
    now = (gpu(A100, 0, *ones()[:-1]), gpu(A100, 1, at("3g.20gb", 0)))
    new = drift.adopted(replace(record(BEFORE), withheld=held), now)
    assert new.withheld == (Withholding(0, frozenset({at("1g.5gb", 5)}), (9,)),)
