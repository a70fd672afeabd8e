"""``plugins new``: write the package of a new plugin to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

import rich_click as click

from refractium.errors import ConfigError, RefractiumError
from refractium.problems import Problem

KIND_NAMES: Final = ("protocol", "hook", "balancer", "health-check", "command")
"""The names of the kinds in `refractium.scaffold`, which other commands do not import."""


@click.command("new")
@click.argument("kind", metavar="KIND", type=click.Choice(KIND_NAMES))
@click.argument("name", metavar="NAME")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The folder in which to make the folder of the package.  [the current folder]",
)
def command(kind: str, name: str, output: Path) -> None:
    """Write the package of a new plugin: code, tests, README, licence and workflows.

    KIND is protocol, hook, balancer, health-check or command. NAME is the id of the plugin, such as redis.
    """
    from refractium.plugins import load_plugins  # noqa: PLC0415 - as the next line
    from refractium.scaffold import KINDS, problem_of_new_name, write_package  # noqa: PLC0415 - see KIND_NAMES

    if problem := problem_of_new_name(KINDS[kind], name, load_plugins()):
        raise ConfigError([Problem(problem, where=name)])
    try:
        folder = write_package(KINDS[kind], name, output)
    except FileExistsError as error:
        raise ConfigError([Problem("exists already", source=error.filename)]) from None
    except OSError as error:
        raise RefractiumError(f"cannot write {error.filename}: {error.strerror}") from error
    click.echo(f"Wrote {folder}. To install the package and to run its tests:")
    click.echo(f"  cd {shlex.quote(str(folder))}")
    click.echo("  pip install --editable . --group dev")
    click.echo("  pytest")
