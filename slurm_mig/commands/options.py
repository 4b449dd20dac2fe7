"""Options that many commands take."""

from __future__ import annotations

from pathlib import Path

import click

from slurm_mig import config

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="SLURM_MIG_CONFIG",
    default=Path(config.DEFAULT_PATH),
    show_default=True,
    help="Configuration file.",
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
