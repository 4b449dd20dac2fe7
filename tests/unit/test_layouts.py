"""What a GPU should be cut into: the least change, the words, the splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from slurm_mig.core.layouts import (
    HALF_MADE,
    Cut,
    LayoutChange,
    Wanted,
    agrees,
    change,
    cut_of,
    devices_of,
    parse_inline,
)
from slurm_mig.core.model import Gpu, Placement
from slurm_mig.core.profiles import parts, profile_name
from slurm_mig.errors import UsageError
from tests.fakes.gpus import with_cuts
from tests.unit import builders
from tests.unit.builders import A30, A100, at, ones


def a100(*cuts: Cut, busy: tuple[Placement, ...] = ()) -> Gpu:
    return with_cuts(builders.gpu(A100), cuts, busy)


def whole(*placements: Placement) -> tuple[Cut, ...]:
    return tuple(Cut(p) for p in placements)


def wanted(devices: Mapping[str, int]) -> Wanted:
    return Wanted(devices=devices)


def shown(part: LayoutChange) -> tuple[list[str], list[str], list[str]]:
    return (
        [str(c) for c in part.kept],
        [str(p) for p in part.destroyed],
        [str(c) for c in (*part.resplit, *part.created)],
    )


def test_what_is_there_stays_where_it_is() -> None:
    gpu = a100(*whole(*ones()))
    part = change(gpu, wanted({"3g.20gb": 1, "1g.5gb": 4}))
    assert shown(part) == (
        ["1g.5gb@0", "1g.5gb@1", "1g.5gb@2", "1g.5gb@3"],
        ["1g.5gb@4", "1g.5gb@5", "1g.5gb@6"],
        ["3g.20gb@4"],
    )


def test_busy_ones_decide_which_half_goes() -> None:
    busy = (at("1g.5gb", 5),)
    part = change(
        a100(*whole(*ones()), busy=busy), wanted({"3g.20gb": 1, "1g.5gb": 3}), frozenset(busy)
    )
    assert part.blockers == ()
    assert [str(c) for c in part.created] == ["3g.20gb@0"]
    assert at("1g.5gb", 5) in {c.placement for c in part.kept}


def test_the_fewest_busy_ones_that_must_go_are_named() -> None:
    busy = frozenset({at("1g.5gb", 0), at("1g.5gb", 4), at("1g.5gb", 5)})
    part = change(a100(*whole(*ones())), wanted({"3g.20gb": 1, "1g.5gb": 2}), busy)
    assert part.blockers == (at("1g.5gb", 0),)


def test_counts_that_agree_change_nothing() -> None:
    gpu = a100(*whole(at("2g.10gb", 4), at("1g.5gb", 0)))
    assert change(gpu, wanted({"1g.5gb": 1, "2g.10gb": 1, "3g.20gb": 0})).empty


def test_given_places_move_what_counts_would_leave() -> None:
    gpu = a100(*whole(at("3g.20gb", 0)))
    part = change(gpu, Wanted(cuts=frozenset(whole(at("3g.20gb", 4)))))
    assert shown(part) == ([], ["3g.20gb@0"], ["3g.20gb@4"])


def test_given_and_counted_ones_find_room_beside_each_other() -> None:
    gpu = a100(*whole(*ones()))
    wish = Wanted(devices={"1g.5gb": 4}, cuts=frozenset(whole(at("3g.20gb", 4))))
    part = change(gpu, wish)
    assert [str(p) for p in part.destroyed] == ["1g.5gb@4", "1g.5gb@5", "1g.5gb@6"]


def test_mig_off_takes_everything_and_names_who_is_there() -> None:
    gpu = a100(*whole(at("3g.20gb", 0), at("3g.20gb", 4)))
    part = change(gpu, Wanted(mig=False), frozenset({at("3g.20gb", 4)}))
    assert part.switch
    assert part.destroyed == (at("3g.20gb", 0), at("3g.20gb", 4))
    assert part.blockers == (at("3g.20gb", 4),)


def test_parts_of_one_profile_share_instances() -> None:
    part = change(a100(), wanted({"1c.3g.20gb": 3, "2c.3g.20gb": 1}))
    assert sorted(c.split for c in part.created) == [(1, 1), (2, 1)]
    both = change(a100(), wanted({"1c.2g.10gb": 2}))
    assert [str(c) for c in both.created] == ["1c+1c.2g.10gb@0"]


def test_an_idle_instance_is_split_again_without_being_destroyed() -> None:
    gpu = a100(Cut(at("3g.20gb", 4), (1, 1, 1)), Cut(at("3g.20gb", 0)))
    part = change(gpu, wanted({"3g.20gb": 2}))
    assert shown(part) == (["3g.20gb@0"], [], ["3g.20gb@4"])
    assert change(gpu, wanted({"3g.20gb": 2}), frozenset({at("3g.20gb", 4)})).blockers


def test_devices_are_counted_by_their_parts() -> None:
    gpu = a100(Cut(at("3g.20gb", 4), (2, 1)), Cut(at("1g.5gb", 0)))
    assert devices_of(gpu) == {"1g.5gb": 1, "2c.3g.20gb": 1, "1c.3g.20gb": 1}
    assert agrees(gpu, wanted({"1g.5gb": 1, "2c.3g.20gb": 1, "1c.3g.20gb": 1}))


def test_what_is_half_made_never_agrees_and_is_completed() -> None:
    gpu = a100(*whole(at("3g.20gb", 0)))
    left = replace(gpu.instances[0], uuid="", computes=(), compute_instances=0)
    gpu = replace(gpu, instances=(left,))
    assert cut_of(left) == Cut(at("3g.20gb", 0), HALF_MADE)
    assert not agrees(gpu, wanted({"3g.20gb": 1}))
    part = change(gpu, wanted({"3g.20gb": 1}))
    assert [str(c) for c in part.resplit] == ["3g.20gb@0"]


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ({"3g.20gb": 3}, r"GPU 0 .* cannot hold 3g.20gb\*3 at once"),
        ({"1g.6gb": 1}, "has no profile 1g.6gb; it has 1g.5gb"),
        ({"1g.5gb+me": 2}, "cannot hold"),
        ({"4c.3g.20gb": 1}, "has no profile 4c.3g.20gb"),
    ],
)
def test_what_a_gpu_can_never_be(devices: Mapping[str, int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        change(a100(), wanted(devices))


def test_words() -> None:
    gpus = [a100(), replace(with_cuts(builders.gpu(A30), ()), index=1)]
    found = parse_inline(["gpu0=3g.20gb@4,1g.5gb*2,1c.2g.10gb@0*2", "gpu1=off"], gpus)
    assert found[0].devices == {"1g.5gb": 2}
    assert found[0].cuts == {Cut(at("3g.20gb", 4)), Cut(at("2g.10gb", 0), (1, 1))}
    assert not found[1].mig
    assert set(parse_inline(["all=", "gpu1=1g.6gb*4"], gpus)) == {0, 1}


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("gpu7=off", "there is no GPU 7 here; 1 are there"),
        ("gpu0=1g.5gb x", "is no MIG device"),
        ("gpu0=3g.20gb@2", "is no place of GPU 0: 3g.20gb starts at 0, 4"),
        ("gpu0=9g.9gb@0", "there is no profile 9g.9gb"),
        ("balanced", "neither a layout's name alone nor"),
        ("gpu0=4c.3g.20gb", "is no MIG device"),
    ],
)
def test_words_that_are_refused(word: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_inline([word], [a100()])


def test_device_names() -> None:
    assert parts("3c.3g.20gb") == (0, "3g.20gb")
    assert parts("1c.3g.20gb") == (1, "3g.20gb")
    assert parts("1g.24gb+me.all") == (0, "1g.24gb+me.all")
    assert parts("2g.48gb-me") == (0, "2g.48gb-me")
    assert [parts(t) for t in ("1g5gb", "c.1g.5gb", "0g.5gb", "1g.5gb+", "")] == [None] * 5


def test_the_name_rule_gives_every_name_of_the_tables() -> None:
    for name, model in builders.models().items():
        if "B300" in name or "GB300" in name:
            continue  # NVIDIA's own names there do not follow the rule (docs/gpus.md)
        for p in model["profiles"]:
            made = profile_name(
                p["enum_value"], p["slices"], p["memory_mb"], model["memory_mb"] << 20
            )
            assert made == p["name"], name
