"""HTML elements from the standard library's tree: every text and attribute is escaped by it.

Nothing else in the report writes markup, so no text of a user's can become any.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from xml.etree import ElementTree

Element = ElementTree.Element
Child = Element | str

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""What no page may have (control characters, half a character), and what turns text around."""


def h(tag: str, *children: Child | Iterable[Child], **attributes: object) -> Element:
    """An element; `class_` is its class, `data_label` the attribute `data-label`."""
    made = Element(tag, {k.rstrip("_").replace("_", "-"): plain(v) for k, v in attributes.items()})
    for child in children:
        for item in [child] if isinstance(child, (str, Element)) else child:
            _add(made, item)
    return made


def _add(parent: Element, child: Child) -> None:
    if isinstance(child, Element):
        parent.append(child)
    elif len(parent):
        parent[-1].tail = (parent[-1].tail or "") + plain(child)
    else:
        parent.text = (parent.text or "") + plain(child)


def plain(value: object) -> str:
    return _UNSEEN.sub("\ufffd", str(value))


def page(root: Element) -> str:
    """The whole document."""
    return (
        "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[Child]], **attributes: object) -> Element:
    """A table whose cells know their column's name: on a phone each row becomes a card."""
    heads = list(heads)
    return h(
        "table",
        h("thead", h("tr", [h("th", head, scope="col") for head in heads])),
        h("tbody", [h("tr", _cells(heads, row)) for row in rows]),
        **attributes,
    )


def _cells(heads: list[str], row: Iterable[Child]) -> list[Element]:
    return [h("td", cell, data_label=head) for head, cell in zip(heads, row, strict=True)]


def moment(seconds: float) -> str:
    """A time of the controller's own zone: `2026-11-25 14:03:07`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def lasted(seconds: float) -> str:
    """`0.82 s`, `14 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{max(seconds, 0):.2f}".removesuffix(".00") + " s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
