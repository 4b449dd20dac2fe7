"""A real browser without a screen, kept off the network: what it makes of a page."""

from __future__ import annotations

import html
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSER = "chromium-headless-shell"
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
)  # fmt: skip
LIGHT, DARK = 1, 0

MEASURE = """
const seen = {width: innerWidth, wide: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight, scripts: document.scripts.length - 1,
  images: document.images.length, requests: performance.getEntriesByType('resource').length,
  text: document.body.innerText, page: getComputedStyle(document.body).backgroundColor,
  boxes: [], faint: []};
const colour = text => (text.match(/[\\d.]+/g) || []).map(Number);
const light = c => c.slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => { for (; e; e = e.parentElement) {
  const c = colour(getComputedStyle(e).backgroundColor);
  if (c.length === 3 || c[3] > 0.99) return c; } return [255, 255, 255]; };
for (const e of document.querySelectorAll('main *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.getClientRects().length) continue;
  const [a, b] = [light(colour(getComputedStyle(e).color)), light(behind(e))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) seen.faint.push([e.textContent, Math.round(ratio * 100) / 100]);
}
for (const e of document.querySelectorAll('.box')) {
  const r = e.getBoundingClientRect();
  const name = e.querySelector('b');
  seen.boxes.push({state: e.classList[1], width: r.width, left: r.left, right: r.right,
    text: e.innerText, cut: !!name && name.scrollWidth > name.clientWidth + 1});
}
document.documentElement.setAttribute('data-seen', JSON.stringify(seen));
"""


@dataclass(frozen=True)
class Browser:
    """Pages are written to `folder` first."""

    folder: Path

    def dom(self, text: str, width: int = 1280, scheme: int = LIGHT) -> str:
        """The document after the browser has read it, as HTML."""
        return self._run(text, width, 900, scheme, "--dump-dom")

    def measure(self, text: str, width: int, scheme: int = LIGHT) -> dict[str, Any]:
        """Sizes, colours and what was asked for. The page's own policy forbids scripts, so it is
        taken out for this."""
        open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        assert open_page != text
        scripted = open_page.replace("</body>", f"<script>{MEASURE}</script></body>")
        found = re.search(r'data-seen="([^"]*)"', self.dom(scripted, width, scheme))
        assert found is not None
        seen: dict[str, Any] = json.loads(html.unescape(found[1]))
        return seen

    def screenshot(self, text: str, to: Path, width: int, height: int, scheme: int = LIGHT) -> None:
        self._run(text, width, height, scheme, f"--screenshot={to}")

    def _run(self, text: str, width: int, height: int, scheme: int, what: str) -> str:
        page = self.folder / "page.html"
        page.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [BROWSER, *FLAGS, f"--user-data-dir={self.folder}/browser",
             f"--window-size={width},{height}", f"--blink-settings=preferredColorScheme={scheme}",
             what, f"file://{page}"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout
