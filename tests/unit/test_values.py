"""Records to JSON and back, the published texts, the steps, policy, and what people read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from slurm_mig import render
from slurm_mig.core import planner, policy, publish, slotmap, submit
from slurm_mig.core.codec import decode, encode
from slurm_mig.core.model import Patience
from slurm_mig.core.records import ManagedNode, NodeFacts, Phase, Transaction
from slurm_mig.core.transitions import Situation, Step, next_step
from slurm_mig.errors import ConfigError
from tests.unit.builders import A100, at, gpu, job, node, ones


def managed() -> ManagedNode:
    view = node([gpu(A100, 0, *ones(1), at("3g.20gb", 4))])
    return ManagedNode(
        "n1", {"CPUs": "32", "RealMemory": "64000"}, view.slots, ("1g.5gb", "3g.20gb"),
        cores={0: "0-15"}, most={"1g.5gb": 7, "3g.20gb": 2}, baseline={0: tuple(ones())},
    )  # fmt: skip


def transaction() -> Transaction:
    view = node([gpu(A100, 0, *ones())])
    change = planner.plan([view], [job(1, {"3g.20gb": 1})]).changes[0]
    return Transaction("ab", "n1", Phase.FENCED, "slurm-mig: x", 1.5, change, view.slots)


@pytest.mark.parametrize(
    "value", [managed(), transaction(), NodeFacts((gpu(A100, 0, *ones()),), "580", 7, ("1 sh",))]
)
def test_there_and_back(value: object) -> None:
    assert decode(type(value), json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"gpus": "x"}, "facts.gpus: expected a list, found str"),
        ({"gpus": [], "surprise": 1}, "facts: unknown field surprise"),
        ({}, "facts: missing gpus"),
        ({"gpus": [{"index": "0"}]}, r"facts.gpus\[0\]: missing"),
        ({"gpus": [], "slurmd_pid": True}, "facts.slurmd_pid: expected int, found bool"),
        ([], "facts: expected an object, found list"),
    ],
)
def test_what_a_node_sends_is_not_trusted(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(NodeFacts, data, "facts")


def test_our_files() -> None:
    one = managed()
    text = publish.gres_conf([one])
    assert publish.is_sealed(text)
    assert not publish.is_sealed(text.replace("48", "49"))
    assert text.splitlines()[3:6] == [
        "NodeName=n1 AutoDetect=off",
        "NodeName=n1 Name=gpu Type=1g.5gb MultipleFiles="
        "/dev/nvidia0,/caps/nvidia-cap[66,67] Cores=0-15",
        "NodeName=n1 Name=gpu Type=3g.20gb MultipleFiles="
        "/dev/nvidia0,/caps/nvidia-cap[48,49] Cores=0-15",
    ]
    alike = [replace(one, name=f"n{n}") for n in (3, 10, 2)]
    other = replace(one, name="n4", cores={})
    assert publish.gres_conf([one, *alike, other]).splitlines()[3:] == [
        *(line.replace("n1", "n[1-3,10]") for line in text.splitlines()[3:]),
        *(line.replace("n1", "n4").replace(" Cores=0-15", "") for line in text.splitlines()[3:]),
    ], "nodes that are alike share their lines, each node's in slot order"
    line = publish.nodes_conf([one]).splitlines()[3]
    assert line.startswith("NodeName=n1 CPUs=32 RealMemory=64000 Gres=gpu:1g.5gb:1,gpu:3g.20gb:1,")
    assert publish.Catalog("cat", 1).records([one])[0].line == (
        "NodeName=cat-1 NodeAddr=192.0.2.1 NodeHostname=cat-1 CPUs=32 RealMemory=64000 "
        "Gres=gpu:1g.5gb:7,gpu:3g.20gb:2 State=FUTURE"
    )


def test_the_catalog_has_a_record_for_every_shape_in_its_own_partitions() -> None:
    one = replace(managed(), partitions=("main", "a"))
    alike = replace(one, name="n2", partitions=("b",))
    large = replace(one, name="n3", attributes={"CPUs": "64", "feature": "big", "Topology": "t:s1"})
    other = replace(one, name="n4", most={"1g.6gb": 4})
    records = publish.Catalog("cat", 2).records([other, large, alike, one])
    assert [(r.name, r.partitions, r.like) for r in records] == [
        ("cat-1", ("a", "b", "main"), ("n1", "n2")),
        ("cat-2", ("a", "b", "main"), ("n1", "n2")),
        ("cat-3", ("a", "main"), ("n3",)),
        ("cat-4", ("a", "main"), ("n4",)),
    ]
    assert " CPUs=64 Feature=big Topology=t:s1 Gres=" in records[2].line
    assert "Gres=gpu:1g.6gb:4 " in records[3].line
    assert publish.Catalog().records([one]) == []


def test_the_slot_map_is_flat() -> None:
    lines = slotmap.slot_map(managed().slots, constrained=True).splitlines()
    assert lines[:3] == ["# slurm-mig slots v1", "constrained=yes", "narrow=no"]
    assert lines[3].split()[:2] == ["slot_0='1g.5gb", "MIG-0-1g.5gb@0"]
    assert lines[5].split()[:2] == ["slot_2='off", "-"]


def test_the_slot_map_there_and_back() -> None:
    slots = managed().slots
    known = slotmap.parse(slotmap.slot_map(slots, constrained=False, narrow=True))
    assert (known.constrained, known.narrow) == (False, True)
    assert [s.type for s in known.slots.values()] == [d.type for d in slots]
    assert [known.slots[i].files for i in known.devices] == [d.files for d in slots if d.uuid]


def test_the_submit_table_quotes_what_it_is_given() -> None:
    rules = submit.Rules({'a"b': "1g.5gb"}, long_names={"x\\": ""})
    text = submit.submit_table(rules, [submit.Partition("main", (managed(),))], ["off"])
    assert '["a\\"b"] = "1g.5gb"' in text
    assert '["x\\\\"] = ""' in text
    assert 'managed = { "main" }' in text
    assert "wake" not in text


def test_partitions_know_what_is_possible_on_other_nodes_too() -> None:
    node = managed()
    sites = {"mine": [node.name], "both": [node.name, "x", "y"], "theirs": ["x"]}
    gres = {"x": "gpu:a100:4(S:0),nic:1", "y": ""}
    mine, both = submit.partitions(sites, [node], gres)
    assert mine.possible == set(node.possible)
    assert both.possible == {*node.possible, "a100"}
    assert not both.is_open
    (other,) = submit.partitions({"both": [node.name, "x"]}, [node], {"x": "gpu:4"})
    assert other.is_open


def test_what_is_free_leaves_out_the_busy_and_the_changed() -> None:
    view = node([gpu(A100, 0, *ones(3))], {7: [0]})
    assert submit.free_by_partition([view], ()) == {"main": {"1g.5gb": 2}}
    assert submit.free_by_partition([view], {"n1"}) == {}
    assert "at = " in submit.free_table(1.5, {"main": {"1g.5gb": 2}})


def test_no_step_but_the_fence_before_the_fence() -> None:
    assert next_step(Situation()) is Step.FENCE
    assert next_step(Situation(reshaped=True, written=True, registered=True)) is Step.FENCE


def test_the_release_comes_last_of_all() -> None:
    flags = {"fenced": True, "reshaped": True, "written": True, "registered": True}
    for missing in flags:
        assert next_step(Situation(**{**flags, missing: False})) is not Step.RELEASE
    assert next_step(Situation(**flags)) is Step.RELEASE
    assert next_step(Situation(**flags, released=True)) is Step.DONE


def test_policy_refuses_with_a_reason() -> None:
    view = node([gpu(A100, 0, *ones())])
    waiting = [job(1, {"3g.20gb": 1}, submit_time=90)]
    plan = planner.plan([view], waiting)
    record = replace(managed(), reshaped={0: 95.0})
    cold = policy.review(plan, waiting, {"n1": record}, policy.Policy(cooldown_s=30), 100.0)
    assert cold.refusals[0].reason == "n1 was reshaped lately: cool-down for 25 s more"
    early = policy.review(plan, waiting, {}, policy.Policy(min_wait_s=60), 100.0)
    assert "waits less than min_wait_s (60 s)" in early.refusals[0].reason
    assert policy.review(plan, waiting, {}, policy.Policy(), 100.0) == plan


def test_the_map_is_to_scale() -> None:
    view = node([gpu(A100, 0, *ones(2), at("3g.20gb", 4))], {17: [0], 21: [2]})
    assert render.map_lines(view, 80) == [
        "n1  IDLE",
        "  gpu0 |1g.5gb |1g.5gb |···············|3g.20gb                        |",
        "       |job 17 |free   |               |job 21                         |",
    ]


def test_the_plan_reads_like_a_diff() -> None:
    view = node([gpu(A100, 0, *ones())], {7: [0]})
    plan = planner.plan(
        [view], [job(1, {"3g.20gb": 1}), job(2, {"7g.40gb": 1}, patience=Patience.NONE)]
    )
    assert render.plan_text(plan, [view]) == (
        "n1: for job 1\n"
        "  gpu0\n"
        "    - |1g.5gb   |1g.5gb   |1g.5gb   |1g.5gb   |1g.5gb   |1g.5gb   |1g.5gb   |·········|\n"
        "    + |1g.5gb   |1g.5gb   |1g.5gb   |1g.5gb   |3g.20gb                                |\n"
        "    - 1g.5gb@4\n"
        "    - 1g.5gb@5\n"
        "    - 1g.5gb@6\n"
        "    + 3g.20gb@4\n"
        "      kept: 1g.5gb*4\n"
        "  - Gres 1g.5gb:7\n"
        "  + Gres 1g.5gb:4,3g.20gb:1,off1:2\n"
        "  expected: about 2 s\n"
        "\n"
        "Waits: job 2 (7g.40gb): n1: no room for 7g.40gb: in use by job 7\n"
    )
    assert render.plan_json(plan, [view])["changes"][0]["serves"] == [1]
