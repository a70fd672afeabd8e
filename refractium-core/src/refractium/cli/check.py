"""``check``: validate a configuration and show its listeners and routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import rich_click as click

from refractium.assembly.assembly import assembled
from refractium.assembly.sources import read_file
from refractium.cli import render
from refractium.cli.options import Flags, serving_options
from refractium.contract import Transport
from refractium.daemon import rights
from refractium.errors import ConfigError, ExitStatus
from refractium.wire.text import printable

if TYPE_CHECKING:
    from refractium.problems import Problem


@click.command("check")
@serving_options
@click.option("--strict", is_flag=True, help="Exit 2 if there is a warning.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, strict: bool, as_json: bool, **_given: Any) -> None:
    """Validate the configuration and the plugins, and print the routes.

    Exits 0 if Refractium can serve this configuration, else 2. With --strict, a warning also causes exit
    code 2.
    """
    flags = Flags.of(context)
    try:
        decoded = read_file(flags.overrides)
        assembly = assembled(flags.overrides, decoded)
        if unserved := tuple(assembly.unserved(tuple(Transport), flags.overrides.inline)):
            raise ConfigError(unserved)  # noqa: TRY301 - so that --json reports it like any problem
    except ConfigError as error:
        if not as_json:
            raise
        click.echo(_json(ok=False, problems=_plain(error.problems), warnings=[], listeners=[], routes=[]))
        context.exit(error.exit_status)
    warnings = (*assembly.warnings, *rights.doubts(decoded, [file.path for file in assembly.plugins.files]))
    is_refused = strict and bool(warnings)
    if as_json:
        routes = [render.route_as_dict(route, assembly.hooks) for route in (*assembly.tcp, *assembly.udp)]
        listeners = [msgspec.to_builtins(one) for one in assembly.listeners]
        for one in listeners:
            if one["peek_timeout_ms"] is None:
                del one["peek_timeout_ms"]
        told = _plain(warnings)
        click.echo(_json(ok=not is_refused, problems=[], warnings=told, listeners=listeners, routes=routes))
        context.exit(ExitStatus.MISUSE if is_refused else ExitStatus.SUCCESS)
    render.listeners(assembly)
    render.routes(assembly)
    for warning in warnings:
        click.echo(f"{click.style('warning:', fg='yellow', bold=True)} {printable(str(warning))}", err=True)
    if is_refused:
        click.echo("The configuration is valid, but has warnings.")
        context.exit(ExitStatus.MISUSE)
    click.echo("The configuration is valid.")


def _plain(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(problem) for problem in problems]


def _json(**answer: object) -> str:
    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()
