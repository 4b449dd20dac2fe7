"""The built-in tables of GPU models: for the simulator, for messages, and for nodes that are down.

Never for what is there: that is the driver's to say (adapters/gpus.py).
"""

from __future__ import annotations

import json
from pathlib import Path

from slurm_mig.core.observed import Tables

DATA = Path(__file__).parent / "data" / "mig-profiles.json"


def tables() -> Tables:
    """Every model, as data/mig-profiles.json has it."""
    found: Tables = json.loads(DATA.read_text(encoding="utf-8"))
    return found


def minimum_drivers() -> dict[str, str]:
    """The oldest driver with MIG by model, for messages only."""
    found = {}
    for model in tables():
        for name in (model["gpu"], *(variant[0] for variant in model["variants"])):
            found[name] = model["min_driver"] or ""
    return found
