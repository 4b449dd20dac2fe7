"""What others may write, and what they may not reach with it (docs/security.md)."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig import config
from slurm_mig.adapters import trust
from slurm_mig.adapters.atomic import write_atomic
from slurm_mig.adapters.remote import RemoteNodes
from slurm_mig.core import answers, submit
from slurm_mig.core.changes import NodeChange
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.model import Gpu, Instance
from slurm_mig.core.planning.plan import plan
from slurm_mig.core.policy import Policy, review
from slurm_mig.core.records import ManagedNode, NodeFacts
from slurm_mig.errors import ConfigError, GoneError, SlurmMigError, UnreachableError
from slurm_mig.printing import PlainFormatter, plain
from slurm_mig.render import status_text
from tests.unit.builders import A100, at, gpu, job, node, ones

EVE = 4711


class TestWhoMayWrite:
    @pytest.fixture
    def conf(self, tmp_path: Path) -> Path:
        path = tmp_path / "etc" / "slurm-mig.yaml"
        path.parent.mkdir(mode=0o755)
        path.write_text(f"state_dir: {tmp_path}/state\n")
        return path

    def test_roots_own_is_fine(self, conf: Path) -> None:
        assert config.load(conf).state_dir.endswith("/state")
        assert config.load_node(conf).pid_file

    @pytest.mark.parametrize("mode", [0o666, 0o602, 0o647])
    def test_a_world_writable_configuration(self, conf: Path, mode: int) -> None:
        conf.chmod(mode)
        for load in (config.load, config.load_node):
            with pytest.raises(ConfigError, match=rf"everybody may write {conf} \(mode {mode:04o}"):
                load(conf)

    def test_a_directory_in_which_it_could_be_replaced(self, conf: Path) -> None:
        conf.parent.chmod(0o777)
        with pytest.raises(ConfigError, match=f"everybody may write {conf.parent} "):
            config.load(conf)
        conf.parent.chmod(0o1777)
        config.load(conf)

    def test_another_users_file_directory_or_link(self, conf: Path, tmp_path: Path) -> None:
        os.chown(conf, EVE, EVE)
        with pytest.raises(ConfigError, match=f"{conf} belongs to uid {EVE}"):
            config.load(conf)
        os.chown(conf, 0, 0)
        os.chown(conf.parent, EVE, EVE)
        with pytest.raises(ConfigError, match=f"{conf.parent} belongs to uid {EVE}"):
            config.load(conf)
        link = tmp_path / "link.yaml"
        link.symlink_to(conf)
        with pytest.raises(ConfigError, match=f"{conf.parent} belongs to uid {EVE}"):
            config.load(link)
        os.chown(conf.parent, 0, 0)
        config.load(link)
        os.lchown(link, EVE, EVE)
        with pytest.raises(ConfigError, match=f"{link} belongs to uid {EVE}"):
            config.load(link)

    def test_slurms_own_user_is_trusted_with_it_already(self, conf: Path) -> None:
        (conf.parent / "slurm.conf").write_text("ClusterName=x\nSlurmUser=nobody\n")
        os.chown(conf.parent, 65534, 65534)
        config.load(conf)

    def test_a_group_that_may_write(self, conf: Path) -> None:
        os.chown(conf, 0, EVE)
        conf.chmod(0o664)
        with pytest.raises(ConfigError, match=f"group {EVE} may write"):
            config.load(conf)

    def test_a_directory_that_everybody_may_write(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        state.mkdir()
        trust.refuse_writable("the state directory", state)
        state.chmod(0o777)
        with pytest.raises(ConfigError, match=f"the state directory {state} is not to be trusted"):
            trust.refuse_writable("the state directory", state)

    def test_what_is_not_there_is_nobodys(self, tmp_path: Path) -> None:
        trust.refuse_writable("a file", tmp_path / "none" / "such")


def test_a_link_in_a_directory_of_another_user_is_replaced_not_followed(tmp_path: Path) -> None:
    """free.lua is written by root where SlurmUser may make links."""
    precious, link = tmp_path / "shadow", tmp_path / "free.lua"
    precious.write_text("root")
    os.chown(precious, EVE, EVE)
    link.symlink_to(precious)
    write_atomic(link, "return {}", follow=False)
    assert precious.read_text() == "root"
    assert not link.is_symlink()
    assert link.read_text() == "return {}"
    assert link.stat().st_uid == 0


def facts(*gpus: Gpu) -> NodeFacts:
    return NodeFacts(gpus, driver="580.95.05")


GOOD = gpu(A100, 0, at("3g.20gb", 4), *ones(4))


def with_instance(**changes: object) -> NodeFacts:
    changed: Instance = replace(GOOD.instances[0], **changes)  # type: ignore[arg-type]
    return facts(replace(GOOD, instances=(changed, *GOOD.instances[1:])))


def with_profile(**changes: object) -> NodeFacts:
    changed = replace(GOOD.profiles[0], **changes)  # type: ignore[arg-type]
    return facts(replace(GOOD, profiles=(changed, *GOOD.profiles[1:])))


INJECTED = "/dev/nvidia0\nNodeName=other Name=gpu Type=a100 File=/dev/sda"
HOSTILE: dict[str, Callable[[], NodeFacts]] = {
    "a line of gres.conf in a file": lambda: with_instance(files=(INJECTED,)),
    "an option in a file": lambda: with_instance(files=("/dev/nvidia0 Flags=explicit",)),
    "a file elsewhere": lambda: with_instance(files=("/dev/../etc/shadow",)),
    "a line of slurm.conf in a profile": lambda: with_instance(
        placement=at("1g.5gb", 0)._replace(profile="1g.5gb\nSlurmUser=root")
    ),
    "an attribute in a profile": lambda: with_profile(name="1g.5gb State=DOWN"),
    "a filler for a profile": lambda: with_profile(name="off"),
    "another gres in a profile": lambda: with_profile(name="1g.5gb:7,nic"),
    "sizes without end": lambda: with_profile(max_count=10**9),
    "a place without end": lambda: with_profile(starts=tuple(range(1000))),
    "no size": lambda: with_profile(size=0),
    "instances in one place": lambda: with_instance(placement=at("3g.20gb", 4)),
    "a place that is none": lambda: with_instance(placement=at("1g.5gb", -5)),
    "an escape sequence for a UUID": lambda: with_instance(uuid="MIG-\x1b[2J"),
    "a model with a line break": lambda: facts(replace(GOOD, model="NVIDIA\nA100")),
    "a hook with an escape sequence": lambda: replace(facts(GOOD), hooks=("1 \x1b]0;x\x07",)),
    "more GPUs than any node has": lambda: facts(
        *(replace(GOOD, index=n, instances=(), file="") for n in range(100))
    ),
    "one GPU twice": lambda: facts(GOOD, GOOD),
    "another GPU's device": lambda: facts(GOOD, replace(GOOD, index=1, uuid="GPU-1")),
    "a number that no machine has": lambda: facts(replace(GOOD, memory_mib=10**30)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_real_node_could_say_is_not_believed(what: str) -> None:
    with pytest.raises(UnreachableError, match=r"n1: its answer is not believed: .*nothing"):
        answers.believed(HOSTILE[what](), "n1")


def test_what_real_nodes_say_is_believed() -> None:
    for made in (facts(), facts(GOOD), facts(GOOD, gpu(A100, 1)), facts(replace(GOOD, mig=False))):
        assert answers.believed(made, "n1") is made


@pytest.mark.parametrize(
    "line", [{"Type": "x\nNodeName=y"}, {"File": "/dev/x Name=nic"}, {"a b": "1"}]
)
def test_lines_of_a_nodes_own_gres_conf(line: dict[str, str]) -> None:
    with pytest.raises(UnreachableError, match="not believed"):
        answers.gres_lines([line], "n1")
    good = [{"Name": "gpu", "Type": "a100", "File": "/dev/nvidia[0-1]", "Cores": "0-7"}]
    assert answers.gres_lines(good, "n1") == good


def saying(text: str, tmp_path: Path) -> RemoteNodes:
    """A node whose command answers this, whatever it is asked."""
    (tmp_path / "answer").write_text(text + "\n")
    script = "import sys; sys.stdin.readline(); sys.stdout.write(open(sys.argv[1]).read())"
    return RemoteNodes([sys.executable, "-c", script, str(tmp_path / "answer")], 10)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"result": ' + '{"a":' * 100_000,
        '{"result": {"gpus": "all of them"}}',
        '{"result": {"gpus": [], "rm -rf": 1}}',
        '{"result": {"gpus": [], "slurmd_pid": 1e999}}',
        '{"result": {"gpus": [], "copies": {"a": ["b"]}}}',
        '{"error": {"kind": "Exit", "message": "x"}}',
        '{"error": {"kind": "__class__", "message": {"a": 1}}}',
        '{"error": 7}',
        "rubbish \x1b[2J",
        "null",
    ],
)
def test_whatever_a_node_answers_only_it_is_left_out(text: str, tmp_path: Path) -> None:
    with saying(text, tmp_path) as nodes:
        found = nodes.observe(["n1", "n2"])
    assert set(found) == {"n1", "n2"}
    assert all(isinstance(error, SlurmMigError) for error in found.values())


def test_a_node_cannot_say_that_slurmctld_forgot_it(tmp_path: Path) -> None:
    """That would end its transaction and leave the fence."""
    answer = json.dumps({"error": {"kind": "GoneError", "message": "m" * 10**6, "hint": "h"}})
    with saying(answer, tmp_path) as nodes, pytest.raises(UnreachableError) as caught:
        nodes.reshape("n1", NodeChange("n1", (), (), ()))
    assert not isinstance(caught.value, GoneError)
    assert len(str(caught.value)) < 5000


def test_an_answer_without_end_is_cut_off(tmp_path: Path) -> None:
    script = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with RemoteNodes([sys.executable, "-c", script], 10) as nodes:
        found = nodes.observe(["n1"])["n1"]
    assert "too long" in str(found)


@given(st.dictionaries(st.text(max_size=3), st.integers()))
def test_keys_that_are_no_numbers(data: dict[str, int]) -> None:
    record = encode(ManagedNode("n1", {}, (), ()))
    record["reshaped"] = data
    try:
        found = decode(ManagedNode, record)
    except ConfigError:
        return
    assert all(isinstance(key, int) for key in found.reshaped)


HOSTILE_TEXT = "x\x1b[2J\x1b]0;owned\x07\nERROR all is lost\r\u202egnp.exe\x9b1m"


def test_texts_of_users_steer_no_terminal() -> None:
    view = node([GOOD], note=HOSTILE_TEXT)
    request = job(1, {HOSTILE_TEXT: 1}, user=HOSTILE_TEXT)
    text = status_text(
        [view], waiting=[(request, HOSTILE_TEXT)], transactions=[], report=None, width=80
    )
    shown = plain(text)
    assert "\\x1b[2J" in shown
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    assert "┃ ·│ é 日本" in plain("┃ ·│ é 日本")


def test_texts_of_users_forge_no_line_of_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "a100-1: %s", (HOSTILE_TEXT,), None)
    lines = PlainFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert [line[:2] for line in lines] == ["IN", "  "]


def test_names_of_partitions_and_types_stay_texts_in_lua() -> None:
    hostile = 'x"] = os.execute("id"), ["\\'
    table = submit.free_table(0.0, {hostile: {hostile: 1}})
    assert 'x\\"] = os.execute(\\"id\\"), [\\"\\\\' in table


def flood(at_s: float) -> list[dict[str, int]]:
    """Jobs of one user that want another cut in every cycle."""
    turn = int(at_s) // 5 % 3
    return [[{"7g.40gb": 1}, {"3g.20gb": 1}, {"2g.10gb": 1}][turn]] * 500


def test_a_flood_of_jobs_is_no_storm_of_reshapes() -> None:
    """An hour of cycles every 5 s, each with 500 new jobs that want what the last ones did not:
    cool-down and the number of nodes at a time bound what is done, whatever is asked."""
    names = ("n1", "n2", "n3", "n4")
    views = {name: node([gpu(A100, 0, *ones())], name=name) for name in names}
    managed = {name: ManagedNode(name, {}, views[name].slots, ()) for name in names}
    rules = Policy(cooldown_s=60, max_nodes_in_transition=1)
    per_node: dict[str, list[float]] = {name: [] for name in names}
    for now in range(0, 3600, 5):
        wants = [job(n, gpus, submit_time=now) for n, gpus in enumerate(flood(now), 1)]
        made = plan(list(views.values()), wants, {}, rules.rules(managed, now), now)
        done = review(made, wants, managed, rules, now).changes
        assert len(done) <= 1, "nodes at a time"
        for change in done:
            after = gpu(A100, 0, *(p for part in change.gpus for p in part.target))
            views[change.node] = node([after], name=change.node)
            managed[change.node] = replace(managed[change.node], reshaped={0: float(now)})
            per_node[change.node].append(now)
    total = sum(map(len, per_node.values()))
    assert 4 <= total <= 3600 / 60 * len(names)
    for times in per_node.values():
        assert all(b - a >= 60 for a, b in pairwise(times)), "cool-down"


def test_caps_by_user_hold_whatever_one_user_submits() -> None:
    rules = Policy(planning=replace(Policy().planning, per_user=2))
    view = node([gpu(A100, 0, *ones()), gpu(A100, 1, *ones()), gpu(A100, 2, *ones())])
    wants = [job(n, {"3g.20gb": 1}, user="eve") for n in range(1, 400)]
    wants.append(job(999, {"3g.20gb": 1}, user="alice"))
    made = plan([view], wants, {}, rules.rules({}, 0.0))
    served = [j for change in made.changes for j in change.serves]
    assert len([j for j in served if j != 999]) <= 2
    assert 999 in served
    assert any("2 job(s) of user eve may cause changes at once" in r.reason for r in made.refusals)
