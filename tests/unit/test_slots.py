"""Which device stands at which index."""

from __future__ import annotations

import pytest

from slurm_mig.core import slots
from slurm_mig.core.model import Device
from slurm_mig.errors import ArrangementError
from tests.unit.builders import at, gpu, node, ones


def device(profile: str, gpu_index: int, start: int) -> Device:
    return slots.planned_device(gpu_index, at(profile, start))


def types(arranged: tuple[Device, ...]) -> list[str]:
    return [d.type for d in arranged]


def test_types_busy_at_the_lowest_middle_and_highest_index_stay() -> None:
    busy = {
        0: device("1g.5gb", 0, 0),
        5: device("3g.20gb", 0, 4),
        9: device("2g.10gb", 1, 0),
    }
    free = [device("1g.5gb", 0, 1), device("4g.20gb", 1, 4), device("1g.5gb", 0, 2)]
    arranged = slots.arrange(10, busy, free)
    assert [arranged[i] for i in busy] == list(busy.values())
    assert types(arranged)[0:3] == ["1g.5gb"] * 3
    assert "4g.20gb" in types(arranged)
    for name in set(types(arranged)):
        where = [i for i, t in enumerate(types(arranged)) if t == name]
        assert where == list(range(where[0], where[-1] + 1)), name


def test_holes_of_a_hull_are_filled_with_free_devices_of_its_type() -> None:
    busy = {2: device("1g.5gb", 0, 0), 4: device("1g.5gb", 0, 1)}
    arranged = slots.arrange(6, busy, [device("1g.5gb", 0, 5), device("3g.20gb", 1, 0)])
    assert arranged[3] == device("1g.5gb", 0, 5)
    assert {i: arranged[i] for i in busy} == busy


def test_a_hull_without_enough_devices_is_refused_with_its_type_and_indexes() -> None:
    busy = {0: device("1g.5gb", 0, 0), 6: device("1g.5gb", 0, 6)}
    with pytest.raises(ArrangementError, match=r"1g\.5gb at indexes 0 and 6") as caught:
        slots.arrange(7, busy, [device("3g.20gb", 1, 0)])
    assert "7 instances, the new layout has 2" in str(caught.value)


def test_hulls_that_interleave_are_refused() -> None:
    busy = {
        0: device("1g.5gb", 0, 0),
        1: device("3g.20gb", 1, 0),
        2: device("1g.5gb", 0, 1),
    }
    with pytest.raises(ArrangementError, match="interleave"):
        slots.arrange(3, busy, [])


def test_the_guard_has_every_capability_that_no_slot_has() -> None:
    gpus = [gpu("NVIDIA A100-SXM4-40GB", 0, *ones(2)), gpu("NVIDIA A100-SXM4-40GB", 1)]
    view = node(gpus)
    guard = view.slots[-1]
    used = {f for d in view.slots[:-1] for f in d.files}
    assert guard.type == "guard"
    assert not set(guard.files) & used
    every = {f"/caps/nvidia-cap{m}" for g in gpus for m in g.instance_minors}
    assert every <= set(guard.files) | used
    assert not {"/caps/nvidia-cap1", "/caps/nvidia-cap2"} & (set(guard.files) | used)


def test_every_filler_has_a_file_of_its_own() -> None:
    view = node([gpu()])
    files = [f for d in view.slots[:-1] for f in d.files]
    assert len(files) == len(set(files)) == 7


def test_the_gres_line_lists_every_possible_type() -> None:
    view = node([gpu("NVIDIA A100-SXM4-40GB", 0, *ones(5))])
    line = slots.gres_line(view.slots, ["1g.5gb", "3g.20gb", "off1"])
    assert line == "gpu:1g.5gb:5,gpu:off:2,gpu:guard:1,gpu:3g.20gb:0,gpu:none:0,gpu:off1:0"


def test_a_bridge_line_lists_a_vanishing_type_once_with_the_same_total() -> None:
    view = node([gpu("NVIDIA A100-SXM4-40GB", 0, at("3g.20gb", 0), at("3g.20gb", 4))])
    line = slots.bridge_line({"1g.5gb": 7, "guard": 1}, view.slots, ["1g.5gb", "3g.20gb"])
    assert line == "gpu:3g.20gb:2,gpu:off:4,gpu:guard:1,gpu:1g.5gb:1,gpu:none:0"
    assert slots.bridge_line(slots.tally(view.slots), view.slots, []) is None
