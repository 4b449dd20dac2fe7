"""Whether this node is in the controller's care, by what the controller has published here."""

from __future__ import annotations

import re
from pathlib import Path

from slurm_mig.config import NodeSettings


def managed_here(settings: NodeSettings, name: str) -> bool:
    """True if our nodes.conf beside slurm.conf has the node, or hooks have a slot map of it."""
    published = Path(settings.slurm_conf).parent / settings.slurm.includes[0]
    try:
        text = published.read_text(errors="replace")
    except OSError:
        return (Path(settings.run_dir) / "slots").exists()
    return re.search(rf"(?m)^NodeName={re.escape(name)}\s", text) is not None
