"""mig-parted's file: what is read, what is refused with file, line and reason, what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.adapters.located import read
from slurm_mig.core.layoutfile import Board, Layouts, export_text, interpret, select
from slurm_mig.core.layouts import Cut, Wanted, agrees
from slurm_mig.core.model import Gpu
from slurm_mig.errors import ConfigError, UsageError
from tests.fakes.gpus import with_cuts
from tests.unit import builders
from tests.unit.builders import A100, at

HEAD = "version: v1\nmig-configs:\n  a:\n"
ENTRY = "  - devices: all\n    mig-enabled: true\n    mig-devices: {}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "layouts.yaml"


def layouts(file: Path, text: str) -> Layouts:
    file.write_text(text)
    return interpret(read(file), "layouts.yaml")


def gpu(index: int, model: str = A100) -> Gpu:
    return replace(with_cuts(builders.gpu(model), ()), index=index)


def test_every_field(file: Path) -> None:
    found = layouts(
        file,
        """\
version: v1
mig-configs:
  mixed:
  - device-filter: ["0x20B010DE", "0x20B210DE:0x146310de"]
    devices: [0, 2]
    mig-enabled: true
    mig-devices: {"1g.5gb": 2, "1c.3g.20gb": 3, "2g.10gb": 0}
  - devices: [1]
    mig-enabled: false
""",
    )
    first, second = found["mixed"]
    assert first.filters == ("0x20B010DE", "0x20B210DE:0x146310de")
    assert (first.gpus, first.mig, first.line) == ((0, 2), True, 4)
    assert first.devices == {"1g.5gb": 2, "1c.3g.20gb": 3, "2g.10gb": 0}
    assert (second.gpus, second.mig, second.devices) == ((1,), False, {})


def test_json_is_read_too(file: Path) -> None:
    text = '{"version": "v1", "mig-configs": {"a": [{"devices": "all", "mig-enabled": false}]}}'
    assert list(layouts(file, text)) == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mig-configs: {}\n", ":1: the field 'version' is missing"),
        ("version: v2\n", ":1: version is 'v2': only 'v1' is known"),
        ("version: v1\nmore: 1\n", ":2: unexpected field 'more'"),
        ("version: v1\nmig-configs: {}\n", ":2: 'mig-configs' needs at least one layout"),
        ("version: v1\nmig-configs:\n  a: []\n", ":3: layout 'a' needs at least one entry"),
        (HEAD + "  - devices: all\n", ":4: the field 'mig-enabled' is missing"),
        (HEAD + "  - mig-enabled: true\n", ":4: the field 'devices' is missing"),
        (HEAD + ENTRY + "    more: 1\n", ":7: unexpected field 'more'"),
        (HEAD + ENTRY.replace("all", "7"), ":4: 'devices' should be all or a list .* not 7"),
        (HEAD + ENTRY.replace("all", "some"), ":4: 'devices' should be all or a list"),
        (HEAD + ENTRY.replace("all", "[-1]"), ":4: there is no GPU -1"),
        (HEAD + ENTRY.replace("all", "['0']"), ":4: a GPU's index should be a whole number"),
        (HEAD + ENTRY.replace("true", "yes please"), ":5: 'mig-enabled' should be true or false"),
        (
            HEAD + "  - devices: all\n    mig-enabled: true\n",
            ":4: 'mig-devices' is missing, which 'mig-enabled: true' needs",
        ),
        (
            HEAD + ENTRY.replace("true", "false").replace("{}", "{1g.5gb: 1}"),
            ":6: 'mig-devices' given although 'mig-enabled' is false",
        ),
        (HEAD + ENTRY.replace("{}", "{1g5gb: 1}"), ":6: '1g5gb' is no MIG device"),
        (HEAD + ENTRY.replace("{}", "{1g.5gb: -1}"), ":6: the count of 1g.5gb is -1"),
        (HEAD + ENTRY.replace("{}", "{1g.5gb: one}"), ":6: the count of 1g.5gb should be a whole"),
        (HEAD + ENTRY.replace("{}", "{1g.5gb: true}"), ":6: the count of 1g.5gb should be a whole"),
        (HEAD + ENTRY.replace("{}", "[1g.5gb]"), ":6: 'mig-devices' should be counts"),
        (
            HEAD + ENTRY + "    device-filter: 0x20B010DE\n",
            ":7: 'device-filter' should be a quoted",
        ),
        (
            HEAD + ENTRY + "    device-filter: '20B010DE'\n",
            ":7: 'device-filter' should be a quoted",
        ),
        (HEAD + ENTRY.replace("{}", "{1g.5gb: 1, 1g.5gb: 2}"), ":6: 1g.5gb is given twice"),
        ("version: v1\n  mig: [\n", ":2: mapping values are not allowed here"),
        ("", " is empty"),
        ("- 1\n", ":1: the file should be keys and values, not a list"),
    ],
)
def test_what_is_refused(file: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"layouts.yaml{reason}"):
        layouts(file, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "none")


def test_aliases_cannot_blow_up(file: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 8)]
    with pytest.raises(ConfigError, match="too many values"):
        layouts(file, "\n".join(lines))


def test_the_last_entry_that_matches_counts(file: Path) -> None:
    boards = [Board(gpu(0), 0x20B010DE, 0), Board(gpu(1), 0x20B210DE, 0x146310DE)]
    entries = layouts(
        file,
        """\
version: v1
mig-configs:
  a:
  - {devices: all, mig-enabled: true, mig-devices: {1g.5gb: 7}}
  - {devices: all, mig-enabled: false, device-filter: "0x20b210de:0x146310DE"}
  - {devices: [0], mig-enabled: true, mig-devices: {}, device-filter: "0x20B210DE"}
""",
    )["a"]
    assert select(entries, boards) == {0: Wanted(devices={"1g.5gb": 7}), 1: Wanted(mig=False)}


def test_gpus_without_mig_are_left_out_unless_named(file: Path) -> None:
    plain = Gpu(0, 0, "GPU-0", "NVIDIA L40S", 46068, mig=False)
    text = HEAD + ENTRY
    assert select(layouts(file, text)["a"], [Board(plain, 0, 0)]) == {}
    named = layouts(file, text.replace("all", "[0]"))["a"]
    with pytest.raises(UsageError, match="line 4 wants MIG on GPU 0, but a NVIDIA L40S cannot"):
        select(named, [Board(plain, 0, 0)])


def test_what_is_written_is_read_again(file: Path) -> None:
    cuts = [Cut(at("3g.20gb", 4), (1, 1, 1)), Cut(at("1g.5gb", 0))]
    gpus = [
        replace(with_cuts(builders.gpu(A100), cuts), index=0),
        replace(with_cuts(builders.gpu(A100), cuts), index=1),
        replace(builders.gpu(A100), index=2, mig=False, mig_pending=False, mig_capable=True),
    ]
    text = export_text(gpus, "current")
    assert text == (
        "version: v1\n"
        "mig-configs:\n"
        "  current:\n"
        "  - devices: [0, 1]\n"
        "    mig-enabled: true\n"
        "    mig-devices:\n"
        '      "1g.5gb": 1\n'
        '      "1c.3g.20gb": 3\n'
        "  - devices: [2]\n"
        "    mig-enabled: false\n"
        "    mig-devices: {}\n"
    )
    wanted = select(layouts(file, text)["current"], [Board(g, 0, 0) for g in gpus])
    assert all(agrees(gpus[index], wish) for index, wish in wanted.items())
    assert len(wanted) == 3
