"""The configuration file: every fault at once, with its place, the same from both loaders."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm_mig import config
from slurm_mig.errors import ConfigError, Exit
from tests.unit.builders import DATA

EXAMPLE = Path(config.__file__).parents[1] / "etc" / "slurm-mig.yaml"
LOADERS = (config.load, config.load_node)


def written(path: Path, text: str) -> Path:
    file = path / "slurm-mig.yaml"
    file.write_text(text)
    return file


def faults(load: Any, file: Path) -> list[str]:
    """The faults, each without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(file)
    first, *rest, hint = str(caught.value).splitlines()
    assert first == "bad configuration; nothing was changed"
    assert hint == "  etc/slurm-mig.yaml documents every key."
    assert all(line.startswith(f"{file}:") for line in rest)
    return [line.removeprefix(f"{file}:") for line in rest]


def keys(value: Any) -> Any:
    """The names of all keys, of sections only."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: keys(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not f.metadata.get("derived")
        }
    return None


def nested(data: Any) -> Any:
    """The same of what YAML read."""
    return {k: nested(v) for k, v in data.items()} if isinstance(data, dict) and data else None


def test_the_documented_file_has_every_key_with_its_default() -> None:
    assert config.load(EXAMPLE) == config.Settings()
    assert config.load_node(EXAMPLE) == config.NodeSettings()
    data = yaml.safe_load(EXAMPLE.read_text())
    assert nested(data) == keys(config.Settings())


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "policy:\nslurm:\nnode:\ngroups:\n"])
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, text)
    assert config.load(file) == config.Settings()
    assert config.load_node(file) == config.NodeSettings()


def test_a_whole_file(tmp_path: Path) -> None:
    text = """\
slurm: {conf: /s/slurm.conf, gres_conf: /s/gres.conf, managed_dir: /s/slurm-mig}
state_dir: /shared/state
remote: {command: [slurm-mig, node, serve], timeout_s: 5}
node: {pid_file: /run/slurmd-%n.pid, restart_deadline_s: 2.5}
groups:
- {nodes: "a100-[1-2,7],b1", baseline: {1g.5gb: 4, 3g.20gb: 1}, whole_type: a100}
- {nodes: h100, whole_type: }
catalog: {nodes: 0}
submit: {default_types: {main: 1g.5gb}, untyped: refuse}
policy: {cooldown_s: 0, max_nodes_in_transition: 4}
"""
    file = written(tmp_path, text)
    found = config.load(file)
    assert found.remote == config.RemoteSettings(("slurm-mig", "node", "serve"), 5.0)
    assert found.groups == (
        config.GroupSettings("a100-[1-2,7],b1", {"1g.5gb": 4, "3g.20gb": 1}, "a100"),
        config.GroupSettings("h100"),
    )
    assert found.catalog.nodes == 0
    assert found.submit == config.SubmitSettings({"main": "1g.5gb"}, "refuse")
    assert found.policy == config.PolicySettings(cooldown_s=0.0, max_nodes_in_transition=4)
    assert found.node == config.load_node(file)
    assert found.node.slurm_conf == "/s/slurm.conf"


MANY = """\
policy:
  cooldwn_s: 3
  cooldown_s: -1
  min_wait_s: "3"
state_dir: [1]
state_dir: /x
remote: {command: [ssh, x], timeout_s: !x y}
groups: [{}, {nodes: "a b"}, 3]
submit: {untyped: maybe, default_types: {a: off, b: off1}}
nod: {}
"""


def test_every_fault_at_once_with_its_line(tmp_path: Path) -> None:
    assert faults(config.load, written(tmp_path, MANY)) == [
        "2: policy.cooldwn_s: unknown key, did you mean cooldown_s?",
        "3: policy.cooldown_s: is -1: should be 0 to 86400",
        "4: policy.min_wait_s: should be a number",
        "6: state_dir: given twice (first at line 5)",
        "7: remote.command: lacks %h, the node's name",
        "7: remote.timeout_s: is no value: could not determine a constructor for the tag '!x'",
        "8: groups[0].nodes: is missing",
        "8: groups[1].nodes: is 'a b': should be a node set such as a100-[1-2]",
        "8: groups[2]: should be keys and values",
        "9: submit.default_types.a: should be a text",
        "9: submit.default_types.b: is 'off1': a filler, which no job may ask for",
        "9: submit.untyped: is 'maybe': should be default or refuse",
        "10: nod: unknown key, did you mean node?",
    ]


def test_a_node_reads_only_what_is_its_own(tmp_path: Path) -> None:
    """But whatever makes the file ambiguous, or hides a section, is a fault there too."""
    assert faults(config.load_node, written(tmp_path, MANY)) == [
        "6: state_dir: given twice (first at line 5)",
        "7: remote.timeout_s: is no value: could not determine a constructor for the tag '!x'",
        "10: nod: unknown key, did you mean node?",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("slurm: {conf: 3}", "1: slurm.conf: should be a text"),
        ("slurm: 3", "1: slurm: should be keys and values"),
        ("slurm: {publish: all}", "1: slurm.publish: is 'all': should be node or reconfigure"),
        (
            "slurm: {config: x}",
            "1: slurm.config: is 'x': should be shared or per-host or configless",
        ),
        (
            "slurm: {controllers: [a b]}",
            "1: slurm.controllers: has 'a b': should be the names of hosts",
        ),
        (
            "slurm: {controller_command: [ssh, head]}",
            "1: slurm.controller_command: lacks %h, the node's name",
        ),
        ("slurm: {gres_conf: }", "1: slurm.gres_conf: should be a text"),
        ("node: [x]", "1: node: should be keys and values"),
        ("node: {foo: 1}", "1: node.foo: unknown key"),
        ("node: {slurm_conf: /x}", "1: node.slurm_conf: unknown key"),
        ("node:\n  restart_command: 3", "2: node.restart_command: should be a list"),
        (
            "node: {restart_command: []}",
            "1: node.restart_command: should be a program and its arguments",
        ),
        ("node: {restart_command: [x, 3]}", "1: node.restart_command[1]: should be a text"),
        (
            "node: {run_dir: 'a b'}",
            "1: node.run_dir: is 'a b': should be an absolute path without spaces",
        ),
        ("node: {restart_deadline_s: yes}", "1: node.restart_deadline_s: should be a number"),
        ("node: {restart_deadline_s: '3'}", "1: node.restart_deadline_s: should be a number"),
        (
            "node: {restart_deadline_s: 0}",
            "1: node.restart_deadline_s: is 0: should be more than 0 and at most 3600",
        ),
        (
            "node: {restart_deadline_s: .nan}",
            "1: node.restart_deadline_s: is nan: should be more than 0 and at most 3600",
        ),
        ("node: {pid_file: !x y}", "1: node.pid_file: is no value: could not determine a "
         "constructor for the tag '!x'"),
        ("node: &a {foo: *a}", "1: node.foo: contains itself"),
        ("? [a]\n: 3", "1: a key should be one word (line 1)"),
        ("- a", "1: should be keys and values"),
        ("!x y", "1: is no value: could not determine a constructor for the tag '!x'"),
    ],
)  # fmt: skip
def test_both_loaders_say_the_same(tmp_path: Path, text: str, fault: str) -> None:
    file = written(tmp_path, text)
    for load in LOADERS:
        assert faults(load, file) == [fault]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("state_dir: x", "state_dir: is 'x': should be an absolute path without spaces"),
        ("state_dir: ", "state_dir: should be a text"),
        ("slurm: {managed_dir: /x}", "slurm.managed_dir: is '/x': should be /etc/slurm/slurm-mig, "
         "beside slurm.conf, which includes it"),
        ("remote: {command: [/bin/false]}", "remote.command: lacks %h, the node's name"),
        ("remote: {command: x %h}", "remote.command: should be a list"),
        ("remote: {timeout_s: 1e9}", "remote.timeout_s: should be a number"),
        ("remote: {timeout_s: 9999}",
         "remote.timeout_s: is 9999: should be more than 0 and at most 3600"),
        ("groups: {nodes: a}", "groups: should be a list"),
        ("groups: [{nodes: }]", "groups[0].nodes: should be a text"),
        ("groups: [{nodes: ''}]", "groups[0].nodes: is '': should be a node set such as "
         "a100-[1-2]"),
        ("groups: [{nodes: a, baseline: {3g: 1}}]", "groups[0].baseline.3g: is '3g': should be a "
         "MIG profile such as 3g.20gb"),
        ("groups: [{nodes: a, baseline: {3g.20gb: 0}}]",
         "groups[0].baseline.3g.20gb: is 0: should be 1 to 16"),
        ("groups: [{nodes: a, outside: [{gpus: [0]}]}]", "groups[0].outside[0].owner: is missing"),
        ("groups: [{nodes: a, outside: [{owner: k8s, gpus: []}]}]",
         "groups[0].outside[0].gpus: should have at least one GPU"),
        ("groups: [{nodes: a, outside: [{owner: k8s, gpus: [first]}]}]",
         "groups[0].outside[0].gpus: has 'first': should be indexes, UUIDs or PCI addresses of "
         "GPUs"),
        ("groups: [{nodes: a, outside: [{owner: k8s, gpus: [0], placements: [3g.20gb]}]}]",
         "groups[0].outside[0].placements: has '3g.20gb': should be places such as 3g.20gb@4"),
        ("groups: [{nodes: a, outside: [{owner: k8s, gpus: [0], instance: {1g.5gb: 1}}]}]",
         "groups[0].outside[0].instance: unknown key, did you mean instances?"),
        ("groups: [{nodes: a, whole_type: guard}]",
         "groups[0].whole_type: is 'guard': a filler, which no job may ask for"),
        ("catalog: {nodes: 65}", "catalog.nodes: is 65: should be 0 to 64"),
        ("catalog: {nodes: 1.5}", "catalog.nodes: should be a whole number"),
        ("catalog: {nodes: yes}", "catalog.nodes: should be a whole number"),
        ("catalog: {prefix: a b}", "catalog.prefix: is 'a b': should be a node name"),
        ("submit: {default_types: [a]}", "submit.default_types: should be keys and values"),
        ("submit: {default_types: {'a b': x}}",
         "submit.default_types.a b: is 'a b': should be one partition's name"),
        ("submit: {default_types: {a: 'x;y'}}", "submit.default_types.a: is 'x;y': should be a "
         "gpu type such as 1g.5gb or a100"),
        ("policy: {max_nodes_in_transition: 0}",
         "policy.max_nodes_in_transition: is 0: should be 1 to 1000"),
        ("policy: {cooldown_s: .inf}", "policy.cooldown_s: is inf: should be 0 to 86400"),
        ("policy: {settle_s: }", "policy.settle_s: should be a number"),
    ],
)  # fmt: skip
def test_what_the_controller_refuses(tmp_path: Path, text: str, fault: str) -> None:
    file = written(tmp_path, text)
    assert faults(config.load, file) == [f"1: {fault}"]


def test_managed_dir_follows_slurm_conf(tmp_path: Path) -> None:
    file = written(tmp_path, "slurm: {conf: /s/slurm.conf}\n")
    assert faults(config.load, file) == [
        "1: slurm.managed_dir: is '/etc/slurm/slurm-mig': should be /s/slurm-mig, beside "
        "slurm.conf, which includes it"
    ]


def test_one_key_twice_is_one_fault(tmp_path: Path) -> None:
    """Not one for each key inside as well."""
    file = written(tmp_path, "node:\n  run_dir: /a\nnode:\n  run_dir: /b\n")
    for load in LOADERS:
        assert faults(load, file) == ["3: node: given twice (first at line 1)"]


def test_a_baseline_may_name_every_known_profile(tmp_path: Path) -> None:
    names = {p["name"] for gpu in json.loads(DATA.read_text()) for p in gpu["profiles"]}
    text = yaml.safe_dump({"groups": [{"nodes": "a", "baseline": dict.fromkeys(names, 1)}]})
    assert config.load(written(tmp_path, text)).groups[0].baseline == dict.fromkeys(names, 1)


@pytest.mark.parametrize("load", LOADERS)
def test_no_file_and_no_yaml(tmp_path: Path, load: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file") as caught:
        load(tmp_path / "none.yaml")
    assert "Copy etc/slurm-mig.yaml there" in caught.value.hint
    assert caught.value.exit_code == Exit.CONFIG
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r":2: not YAML"):
        load(written(tmp_path, "a: 1\n b: [\n"))
    (tmp_path / "bytes").write_bytes(b"a: \xff\n")
    with pytest.raises(ConfigError, match=r"bytes is not UTF-8 text"):
        load(tmp_path / "bytes")


def test_a_node_needs_no_pydantic() -> None:
    program = (
        "import sys; sys.modules['pydantic'] = sys.modules['pydantic_core'] = None\n"
        "from pathlib import Path; from slurm_mig import config\n"
        "assert config.load_node(Path(sys.argv[1])) == config.NodeSettings()\n"
    )
    subprocess.run([sys.executable, "-c", program, str(EXAMPLE)], check=True)
