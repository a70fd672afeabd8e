"""``init``: write a commented configuration file to start from."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from refractium.assembly.sources import DEFAULT_FILE
from refractium.cli.options import Flags
from refractium.config import template
from refractium.errors import ConfigError, RefractiumError
from refractium.problems import Problem


@click.command("init")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help=f"The file to write.  [{DEFAULT_FILE}]",
)
@click.pass_context
def command(context: click.Context, *, force: bool, config: Path | None) -> None:
    """Write a commented configuration file."""
    path: Path = config or Flags.of(context).given.get("config") or DEFAULT_FILE
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(template())
    except FileExistsError:
        raise ConfigError([Problem("exists already; --force overwrites it", source=str(path))]) from None
    except OSError as error:
        raise RefractiumError(f"cannot write {path}: {error.strerror}") from error
    option = f" -c {path}" if path != DEFAULT_FILE else ""
    click.echo(f"Wrote {path}. Edit it, then run `refractium check{option}`.")
