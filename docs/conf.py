"""Sphinx: HTML and man pages from docs/*.md and the pages that scripts/lib/manual.py generates."""

import json
from pathlib import Path

HERE = Path(__file__).parent
PAGES = HERE / "reference" / "man.json"

project = "slurm-mig"
author = "the slurm-mig developers"
copyright = "the slurm-mig developers, MIT licence"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# verbs: parts of the generated pages.
exclude_patterns = ["_build", "verbs"]
html_theme = "alabaster"
html_theme_options = {"page_width": "70rem", "description": "MIG GPUs as the Slurm queue asks for"}
# Two dashes are an option, not a dash.
smartquotes = False
html_show_sourcelink = False
# Generated: a page for each command, and the configuration file's.
man_pages = [
    (f"reference/{name}", name, text, "", section)
    for name, text, section in (json.loads(PAGES.read_text()) if PAGES.exists() else ())
]
man_show_urls = False
