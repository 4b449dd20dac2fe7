"""The configuration file: every fault at once, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig import config
from slurm_mig.errors import ConfigError

EXAMPLE = Path(config.__file__).parents[1] / "etc" / "slurm-mig.yaml"


def written(path: Path, text: str) -> Path:
    file = path / "slurm-mig.yaml"
    file.write_text(text)
    return file


def test_the_documented_file_has_every_key_with_its_default() -> None:
    assert config.load(EXAMPLE) == config.Settings()
    assert config.load_node(EXAMPLE) == config.NodeSettings()


def test_every_fault_at_once_with_its_line(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "policy:\n  cooldwn_s: 3\n  cooldown_s: -1\nstate_dir: [1]\nstate_dir: /x\nremote: 3\n",
    )
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    text = str(caught.value)
    assert f"{file}:2: policy.cooldwn_s: unknown key, did you mean cooldown_s?" in text
    assert f"{file}:5: state_dir: given twice" in text
    assert f"{file}:6: remote:" in text


def test_what_a_type_cannot_say(tmp_path: Path) -> None:
    file = written(
        tmp_path, "remote: {command: [ssh, x]}\nsubmit: {untyped: maybe}\ngroups:\n- {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        config.load(file)
    text = str(caught.value)
    assert f"{file}:1: remote.command: lacks %h" in text
    assert f"{file}:2: submit.untyped: is 'maybe'" in text
    assert f"{file}:4: groups[0]: lacks nodes" in text


def test_a_nodes_settings_need_no_pydantic(tmp_path: Path) -> None:
    file = written(tmp_path, "slurm: {conf: /s}\nnode: {restart_command: [x, y]}\n")
    found = config.load_node(file)
    assert found.restart_command == ("x", "y")
    assert found.slurm_conf == "/s"
    with pytest.raises(ConfigError, match=r"node\.foo: unknown key"):
        config.load_node(written(tmp_path, "node: {foo: 1, restart_command: 3}\n"))


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        config.load(tmp_path / "none.yaml")
    assert config.load_node(tmp_path / "none.yaml") == config.NodeSettings()
    with pytest.raises(ConfigError, match=r":\d: not YAML"):
        config.load(written(tmp_path, "a: 1\n b: [\n"))
