"""``schema``: print the JSON Schema of the configuration file, for editors."""

from __future__ import annotations

import msgspec
import rich_click as click

from refractium.config import json_schema


@click.command("schema")
@click.option("--json", "as_json", is_flag=True, help="No effect: the output is always JSON.")
def command(*, as_json: bool) -> None:  # noqa: ARG001 - the option has no effect
    """Print the JSON Schema of the configuration file."""
    click.echo(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2))
