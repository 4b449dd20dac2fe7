"""What stands on the manual's pages in blocks without a prompt: every one is a configuration that
is accepted as it stands, or is in the table here with what holds it. What has a prompt is run by
tests/cluster/test_manual.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm_mig import config
from slurm_mig.config import Settings, load

SOURCE = Path(__file__).parents[2]
PAGES = sorted([*(SOURCE / "docs").glob("*.md"), SOURCE / "README.md", SOURCE / "CONTRIBUTING.md"])
SECTIONS = {*Settings.__dataclass_fields__}
FORMULAS = "a formula"
STANDING = {
    ("README.md", "scripts/demo"): "both are run as they stand by those who run the tests: CI",
    ("README.md", "a100-1  MIXED"): "drawn by the demo; first-reshape.md's drawings are compared",
    ("README.md", "gpu1 |"): "the same, one cycle later",
    ("gpus.md", "scripts/real-gpu FOLDER"): "needs a GPU; what it runs is run on simulated ones by "
    "tests/contract (test_read_only)",
    (
        "isolation.md",
        "ConstrainDevices=yes",
    ): "the testbed's own (tests/testbed/cluster.py)",
    ("many-nodes.md", "restrict,command="): "the key of tests/cluster/test_ssh.py",
    ("planner.md", "k(T) ="): FORMULAS,
    ("planner.md", "maximise "): FORMULAS,
    ("planner.md", "Σ_q r(q,i)"): FORMULAS,
    ("planner.md", "T·(v/100"): FORMULAS,
}
"""By page and beginning."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_configuration(self) -> bool:
        found = re.match(r"(\w+):(\s|$)", self.text)
        return found is not None and found[1] in SECTIONS


def blocks(page: Path) -> Iterator[Block]:
    """Fenced blocks but those with prompts, and indented ones after an empty line."""
    text = page.read_text(encoding="utf-8")
    shape = re.compile(
        r"^```(?P<language>.*)\n(?P<fenced>(?:.*\n)*?)```$|"
        r"(?<=\n\n)(?P<indented>(?: {4}.*\n|\n(?= {4}))+)",
        re.M,
    )
    for found in shape.finditer(text):
        if found["language"] == "console" or (found["language"] or "").startswith("{"):
            continue
        inner = found["fenced"] or re.sub(r"(?m)^ {4}", "", found["indented"])
        yield Block(page.name, text.count("\n", 0, found.start()) + 1, inner.lstrip())


ALL = [block for page in PAGES for block in blocks(page)]


@pytest.mark.parametrize("block", [b for b in ALL if b.is_configuration], ids=str)
def test_a_configuration_is_accepted_as_it_stands(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "slurm-mig.yaml"
    path.write_text(block.text)
    assert load(path) != Settings()
    config.load_node(path)


def test_every_other_block_is_held_by_something() -> None:
    others = [(b.page, b.text) for b in ALL if not b.is_configuration]
    for page, text in others:
        assert any(p == page and text.startswith(begin) for p, begin in STANDING), (page, text)
    for page, begin in STANDING:
        assert any(p == page and text.startswith(begin) for p, text in others), (page, begin)
    assert len(others) < len(ALL)
