"""What a site gives to others than Slurm: what it means on a node; nobody plans with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slurm_mig.core import ownership, slots
from slurm_mig.core.draft import NodeDraft
from slurm_mig.core.layouts import Wanted
from slurm_mig.core.model import GUARD, Gpu, NodeView
from slurm_mig.core.ownership import Claim, Outside, settle
from slurm_mig.core.planning.plan import plan
from slurm_mig.errors import BusyError, ConfigError, SlurmMigError
from slurm_mig.managedlayout import planned
from tests.unit.builders import A100, at, gpu, job, node, ones

TWO = {"1g.5gb": 2}


def boards() -> tuple[Gpu, ...]:
    return gpu(A100, 0, *ones()), replace(gpu(A100, 1), pci="00000000:3B:00.0")


def shared() -> NodeView:
    """GPU 0 with two instances for containers, GPU 1 Kubernetes's."""
    outside = settle(
        [Claim("containers", ("0",), TWO), Claim("kubernetes", ("1",))], (boards()[0], boards()[1])
    )
    gpus = ownership.stamped(boards(), outside)
    view = node(gpus)
    return replace(view, gpus=gpus[:1], outside=gpus[1:])


def test_claims_are_settled_on_what_is_there() -> None:
    assert settle([Claim("k8s", ("GPU-0", "3b:00.0"))], boards()) == (
        Outside("k8s", 0),
        Outside("k8s", 1),
    )
    last = (at("1g.5gb", 5), at("1g.5gb", 6))
    assert settle([Claim("k8s", ("0",), TWO)], boards()) == (Outside("k8s", 0, last),)
    both = settle([Claim("a", ("0",), TWO), Claim("b", ("0",), {}, ("1g.5gb@0",))], boards())
    assert both == (Outside("a", 0, last), Outside("b", 0, (at("1g.5gb", 0),)))
    together = settle([Claim("a", ("0",), {"1g.5gb": 1}, ("1g.5gb@6",))], boards())
    assert together == (Outside("a", 0, last),)


@pytest.mark.parametrize(
    ("claims", "fault"),
    [
        ([Claim("k", ("7",))], "there is no GPU 7 here (there are 0, 1); nothing was changed"),
        ([Claim("k", ("00:00.0",))], "there is no GPU 00:00.0 here"),
        ([Claim("k", ("1",), TWO)], "k should have 2 1g.5gb of GPU 1, which has no instance"),
        ([Claim("k", ("0",), {}, ("3g.20gb@4",))], "k should have 3g.20gb@4 of GPU 0, which has"),
        ([Claim("k", ("0",)), Claim("c", ("0",))], "GPU 0 is given to k and to c"),
        ([Claim("k", ("0",)), Claim("c", ("0",), TWO)], "GPU 0 is given to k and to c"),
        ([Claim("k", ("0",), TWO), Claim("c", ("0",))], "GPU 0 is given to k and to c"),
        ([Claim("k", ("0",), {"1g.5gb": 7}), Claim("c", ("0",), TWO)], "c should have 2 1g.5gb"),
        ([Claim("k", ("0",), TWO), Claim("c", ("0",), {}, ("1g.5gb@6",))],
         "1g.5gb@6 is given twice"),
    ],
)  # fmt: skip
def test_claims_that_cannot_be(claims: list[Claim], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(claims, boards())
    assert fault in str(caught.value)


def test_slurm_has_the_rest_and_the_guard_has_theirs() -> None:
    view = shared()
    kinds = [device.type for device in view.slots]
    assert kinds == ["1g.5gb"] * 5 + ["off"] * 9 + ["guard"], "the count stays constant"
    guard = view.slots[-1]
    assert guard.type == GUARD
    theirs = {i.files[1] for g in (*view.gpus, *view.outside) for i in g.instances if i.owner}
    assert theirs | {"/dev/nvidia1"} <= set(guard.files)
    every = {f"/caps/nvidia-cap{m}" for m in view.outside[0].instance_minors}
    assert every <= set(guard.files), "also those that its owner may make later"


def test_a_plan_goes_around_what_is_not_slurms() -> None:
    view = shared()
    made = plan([view], [job(1, {"3g.20gb": 1})])
    (change,) = made.changes
    assert [(part.gpu, part.created) for part in change.gpus] == [(0, (at("3g.20gb", 0),))]
    assert set(view.gpus[0].foreign) <= set(change.gpus[0].kept)
    assert "1g.5gb" in [d.type for d in change.slots]
    assert not {d.placement for d in change.slots} & view.gpus[0].foreign
    for profile in ("7g.40gb", "4g.20gb"):
        made = plan([view], [job(1, {profile: 1}), job(2, {profile: 1})])
        assert not any(
            view.gpus[0].foreign & set(p.destroyed) for c in made.changes for p in c.gpus
        )


def test_a_gpu_with_an_instance_of_others_keeps_its_mode() -> None:
    view = replace(shared(), switchable=frozenset({0}), whole_types={0: "a100"})
    assert not NodeDraft.of(view, {}).may_switch(view.gpus[0])
    assert not plan([view], [job(1, {"a100": 1})]).changes


def test_apply_names_the_owner() -> None:
    view = shared()
    with pytest.raises(BusyError, match=r"1g.5gb@5 of GPU 0 is held by containers"):
        planned(view, {0: Wanted(devices={"7g.40gb": 1})})
    with pytest.raises(SlurmMigError, match="GPU 1 is kubernetes's, not Slurm's; nothing was tou"):
        planned(view, {1: Wanted(mig=False)})
    (change,) = planned(view, {0: Wanted(devices={"1g.5gb": 2, "3g.20gb": 1})})
    assert {cut.placement for cut in change.kept} == view.gpus[0].foreign


def test_what_is_made_later_beside_them_is_a_device() -> None:
    """The executor's order of slots, from what the node says after a reshape."""
    outside = settle([Claim("containers", ("0",), TWO)], boards())
    after = gpu(A100, 0, at("3g.20gb", 0), at("1g.5gb", 5), at("1g.5gb", 6))
    (stamped,) = ownership.stamped((after,), outside)
    assert [d.type for d in slots.devices_of(stamped, "")] == ["3g.20gb"]
