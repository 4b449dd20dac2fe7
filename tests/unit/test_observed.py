"""What real machines showed against the built-in tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.core.codec import decode, encode
from slurm_mig.core.observed import Record, SeenGpu, SeenProfile, differences
from slurm_mig.tables import DATA, tables

OBSERVED = sorted((DATA.parent / "observed").glob("*.json"))

A100 = SeenGpu(
    "NVIDIA A800-SXM4-40GB",
    mode_needs_reset=True,
    profiles=(SeenProfile("3g.20gb", 9, 19968, 3, 2, sm=42, placements=((4, 4), (0, 4))),),
)


def record(gpu: SeenGpu) -> Record:
    return Record("a test", "580.95.05", (gpu,))


@pytest.mark.parametrize("path", OBSERVED, ids=lambda path: path.stem)
def test_the_tables_agree_with_what_was_seen(path: Path) -> None:
    seen = decode(Record, json.loads(path.read_text()), path.name)
    assert seen.source.startswith("https://") or seen.driver
    assert all(gpu.profiles for gpu in seen.gpus)
    assert differences(seen, tables()) == []


def test_a_record_is_read_as_it_was_written() -> None:
    seen = record(A100)
    assert decode(Record, json.loads(json.dumps(encode(seen))), "record") == seen


def test_a_variant_is_found_and_agrees() -> None:
    assert differences(record(A100), tables()) == []


def test_each_difference_is_a_sentence() -> None:
    (profile,) = A100.profiles
    odd = replace(profile, id=8, sm=40, memory_mib=30000, placements=((0, 4), (2, 4), (4, 4)))
    new = SeenProfile("5g.25gb", 77, 25000)
    gpu = replace(A100, mode_needs_reset=False, profiles=(odd, new))
    assert differences(record(gpu), tables()) == [
        "NVIDIA A800-SXM4-40GB: a mode change needs a reset: False, table: True",
        "NVIDIA A800-SXM4-40GB 3g.20gb: id 8, table: 9",
        "NVIDIA A800-SXM4-40GB 3g.20gb: sm 40, table: 42",
        "NVIDIA A800-SXM4-40GB 3g.20gb: memory_mb 30000, table: 19968",
        "NVIDIA A800-SXM4-40GB 3g.20gb: placements [(0, 4), (2, 4), (4, 4)], "
        "table: [(0, 4), (4, 4)]",
        "NVIDIA A800-SXM4-40GB: the table has no 5g.25gb",
    ]


def test_what_the_table_only_guesses_is_said() -> None:
    gpu = SeenGpu("NVIDIA GB300", profiles=(SeenProfile("1g.35gb", 19, sm=20),))
    assert differences(record(gpu), tables()) == [
        "NVIDIA GB300 1g.35gb: sm 20, table: 18, inferred"
    ]


def test_an_unknown_model_is_worth_a_sentence_where_it_can_do_mig() -> None:
    unknown = SeenGpu("NVIDIA X1000", profiles=A100.profiles)
    assert differences(record(unknown), tables()) == ["NVIDIA X1000: no table knows it"]
    assert differences(record(replace(unknown, profiles=())), tables()) == []
