"""Hours of the week: `Mon-Fri 18:00-07:00`, `Sat,Sun`, `22:00-24:00`.

A window that ends before it begins goes on into the next day. Pure: the caller says what time it
is, in seconds since Monday 00:00 on the site's own clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY_S = 86400
WEEK_S = 7 * DAY_S

_FORM = re.compile(r"(?:([A-Za-z,-]+)(?:\s+|$))?(?:(\d\d):(\d\d)-(\d\d):(\d\d))?")


@dataclass(frozen=True)
class Window:
    """Some hours of some days. `text` is what the site wrote."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """(begin, end) in seconds since Monday 00:00; the end may lie in the next week."""


def parse(text: str) -> Window:
    """Raises ValueError that says what is wrong."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not text.strip():
        raise ValueError(f"is {text!r}: should be days and hours such as Mon-Fri 18:00-07:00")
    days = _days(match[1]) if match[1] else list(range(7))
    begin, end = 0, DAY_S
    if match[2]:
        begin, end = _seconds(match[2], match[3]), _seconds(match[4], match[5])
    if end <= begin:
        end += DAY_S
    return Window(text.strip(), tuple((d * DAY_S + begin, d * DAY_S + end) for d in days))


def _days(text: str) -> list[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        one, other = _day(first), _day(last if dash else first)
        found |= {(one + n) % 7 for n in range((other - one) % 7 + 1)}
    return sorted(found)


def _day(text: str) -> int:
    name = text.strip().capitalize()
    if name not in DAYS:
        raise ValueError(f"has {text!r}: should be one of {', '.join(DAYS)}")
    return DAYS.index(name)


def _seconds(hours: str, minutes: str) -> int:
    found = int(hours) * 3600 + int(minutes) * 60
    if int(minutes) > 59 or found > DAY_S:
        raise ValueError(f"has {hours}:{minutes}: should be a time of day")
    return found


def closed(windows: Iterable[Window], week_s: float, needed_s: float) -> str:
    """Why nothing may be begun now that takes so long; empty inside a window, or without any.

    A window that closes sooner is over for it.
    """
    windows = list(windows)
    if not windows or any(_left(window, week_s) >= needed_s for window in windows):
        return ""
    waits = min((begin - week_s) % WEEK_S for window in windows for begin, _ in window.spans)
    hours = ", ".join(window.text for window in windows)
    return f"reshapes only {hours}: again in {_said(waits)}"


def _left(window: Window, week_s: float) -> float:
    """Seconds until the window closes; 0 outside it."""
    inside = (
        end - at
        for begin, end in window.spans
        for at in (week_s, week_s + WEEK_S)
        if begin <= at < end
    )
    return max(inside, default=0.0)


def _said(seconds: float) -> str:
    minutes = int(seconds // 60) + 1
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
