"""`slurm-mig catalog`: the records that let jobs for absent profiles queue, by partition."""

from __future__ import annotations

import json
from pathlib import Path

import click

from slurm_mig import config
from slurm_mig.commands.options import CONFIG_OPTION, JSON_OPTION


@click.command()
@CONFIG_OPTION
@JSON_OPTION
def catalog(config_path: Path, as_json: bool) -> None:  # noqa: FBT001
    """Show the catalog's node records: one for each shape of managed nodes; change nothing.

    They are written at `enrol` and `leave`; `catalog.nodes` in the configuration says how many.
    """
    from slurm_mig.assembly import Assembly

    assembly = Assembly.of(config.load(config_path))
    records = assembly.files.here.catalog.records(assembly.store.managed().values())
    if as_json:
        rows = [
            {"name": r.name, "partitions": r.partitions, "like": r.like, "line": r.line}
            for r in records
        ]
        click.echo(json.dumps({"records": rows}, indent=2))
        return
    for record in records:
        click.echo(f"# in {','.join(record.partitions)}; like {','.join(record.like)}")
        click.echo(record.line)
    if not records:
        click.echo("no records: nothing is enrolled, or catalog.nodes is 0")
