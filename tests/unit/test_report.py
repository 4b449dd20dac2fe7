"""The report in a real browser: what it shows, at two sizes, light and dark, whatever the texts."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from slurm_mig.adapters.store import FileStore
from slurm_mig.config import MonitoringSettings
from slurm_mig.core.changes import Plan
from slurm_mig.core.monitoring import Ended
from slurm_mig.core.records import CycleReport
from slurm_mig.monitor import Monitor
from slurm_mig.report.elements import lasted
from slurm_mig.report.page import Picture, html
from tests.testbed.browser import DARK, LIGHT, Browser
from tests.unit.report_sample import NASTY, NOW, cycle, history, picture

PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tmp_path_factory.mktemp("browser"))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Tags(HTMLParser):
    """Every element and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_needs_nothing_and_no_text_becomes_markup() -> None:
    text = html(picture())
    tags = Tags(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a"} & set(tags.names)
    assert not [n for n, _ in tags.attributes if n.startswith("on") or n in ("src", "href")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in tags.attributes
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"url\(|@import|expression|://", style)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert "&lt;img src=x" in text


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_in_a_browser(browser: Browser, width: int, scheme: int) -> None:
    seen = browser.measure(html(picture()), width, scheme)
    assert seen["width"] == width
    assert seen["wide"] <= width, "it scrolls sideways"
    assert (seen["scripts"], seen["images"], seen["requests"]) == (0, 0, 0)
    assert seen["faint"] == []
    assert seen["page"] == ("rgb(244, 245, 247)" if scheme == LIGHT else "rgb(18, 21, 25)")
    boxes = seen["boxes"]
    assert {b["state"] for b in boxes} == {"allocated", "held", "withheld", "outside", "free",
                                          "uncut"}  # fmt: skip
    assert not [b for b in boxes if b["cut"]], "a profile's name is cut off"
    assert all(b["left"] >= 0 and b["right"] <= width for b in boxes)
    # To scale: 3g.20gb has four memory slices, 1g.5gb one.
    first = boxes[:5]
    assert [b["text"].split("\n")[0] for b in first] == ["1g.5gb"] * 4 + ["3g.20gb"]
    assert 3.8 < first[4]["width"] / first[0]["width"] < 4.4
    # Every state is said in words, too: colour alone tells nothing.
    for box in boxes:
        wanted = {"allocated": "job ", "held": "pid ", "withheld": "for job", "free": "free",
                  "outside": "kubernetes"}  # fmt: skip
        assert wanted.get(box["state"], "") in box["text"]


def test_what_it_says(browser: Browser) -> None:
    text = browser.measure(html(picture()), DESK)["text"]
    for words in (
        "As of 2025-11-25 13:00:00",
        "a100-1 reshaped in 0.62 s for job 40",
        "Paused: a30-1, by root: new driver",
        "6 lacking (6 jobs, the first for 1 h 28 min)",
        "GPU 1 of a100-1 is kept for it until job 9 ends",
        "running jobs are in the way",
        "fenced, waits for running jobs",
        "GPU 1: - 1g.5gb*3 + 3g.20gb",
        "a100-2 did not settle: job 12 is COMPLETING",
        "Its GPUs could not be looked at.",
    ):
        assert words in text
    assert NASTY.replace("\u202e", "\ufffd") in text


def test_no_script_runs_even_if_one_got_in(browser: Browser) -> None:
    bad = "<script>document.title = 'mine'</script><img src=x onerror=\"document.title='mine'\">"
    text = html(picture()).replace("</body>", f"{bad}</body>")
    assert "<title>MIG GPUs</title>" in browser.dom(text)
    assert "<title>mine</title>" in browser.dom(text.replace("Content-Security-Policy", "none"))


def test_screenshots_are_of_the_size_asked_for(browser: Browser, tmp_path: Path) -> None:
    for width, height in ((PHONE, 844), (DESK, 900)):
        shot = tmp_path / f"{width}.png"
        browser.screenshot(html(picture()), shot, width, height)
        data = shot.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert struct.unpack(">II", data[16:24]) == (width, height)
        assert len(data) > 20_000, "an empty page"


def test_an_empty_cluster_and_a_first_cycle() -> None:
    nothing = Ended((), (), Plan(), {}, CycleReport(0.0, ""))
    text = html(Picture(nothing, [], NOW))
    for words in ("No node is enrolled", "No cycle has run yet", "Nothing was changed",
                  "No job that asks for GPUs waits"):  # fmt: skip
        assert words in text


def test_long_queues_and_histories_are_cut_and_counted() -> None:
    many = tuple(replace(r, job_id=1000 + n) for n, r in enumerate(cycle().requests * 100))
    text = html(Picture(replace(cycle(), requests=many), history() * 10, NOW))
    assert "and 200 more" in text
    assert "earlier ones: slurm-mig history" in text


def test_a_cycle_writes_it_when_it_is_old_enough(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    settings = MonitoringSettings(report_file=str(path), report_interval_s=30)
    monitor = Monitor(FileStore(tmp_path), settings)
    monitor.ended(cycle())
    first = path.read_text()
    assert '<meta http-equiv="refresh" content="30">' in first
    written = path.stat().st_mtime
    later = replace(cycle(), report=replace(cycle().report, time=written + 29, sentence="later"))
    monitor.ended(later)
    assert path.read_text() == first
    monitor.ended(replace(later, report=replace(later.report, time=written + 30)))
    assert "later" in path.read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.618, "0.62 s"), (3, "3 s"), (59, "59 s"), (200, "3 min"),
     (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert lasted(seconds) == text
