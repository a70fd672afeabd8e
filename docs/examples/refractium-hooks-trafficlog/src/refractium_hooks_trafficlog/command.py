"""The command ``traffic``, which shows the sessions in the file as a table."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from refractium.kit import ConfigError, OwnTable, RefractiumError, config_option, table
from refractium_hooks_trafficlog import TrafficLogSettings
from refractium_hooks_trafficlog.line_file import STDOUT

COLUMNS = ("time", "protocol", "client", "backend", "seconds", "inbound", "outbound", "ended")


@click.command("traffic")
@config_option()
def command(config: Path | None) -> None:
    """Show the ended sessions in the traffic log."""
    own = OwnTable.read("trafficlog", TrafficLogSettings, config)
    path = own.settings.path
    if path == STDOUT:
        raise ConfigError([own.problem("lines go to stdout: set path to a file", "path")])
    try:
        text = Path(path).read_bytes()
        lines = [msgspec.json.decode(line, type=dict[str, object]) for line in text.splitlines()]
    except (OSError, msgspec.DecodeError) as error:
        raise RefractiumError(f"cannot read {path}: {error}") from None
    closed = [line for line in lines if line.get("event") == "close"]
    table(None, COLUMNS, [[str(line.get(column, "")) for column in COLUMNS] for line in closed])
