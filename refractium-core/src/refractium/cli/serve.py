"""``tcp``, ``udp`` and the program without a command: serve."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import rich_click as click

from refractium.cli import render
from refractium.cli.options import Flags, serving_options
from refractium.contract import Transport
from refractium.daemon import logs, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium.assembly.assembly import Assembly


@click.command("tcp")
@serving_options
@click.pass_context
def tcp_command(context: click.Context, /, **_given: Any) -> None:
    """Serve TCP only."""
    serve(Flags.of(context), (Transport.TCP,))


@click.command("udp")
@serving_options
@click.pass_context
def udp_command(context: click.Context, /, **_given: Any) -> None:
    """Serve UDP only."""
    serve(Flags.of(context), (Transport.UDP,))


def serve(flags: Flags, transports: Sequence[Transport] = tuple(Transport)) -> None:
    """Serve until a signal ends the program; see `run.serve`.

    Args:
        flags: the options on the command line.
        transports: the transports to serve. The run leaves out a transport that has neither a route nor a
            fallback.
    """
    begin = partial(logs.configure, flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    run.serve(flags.overrides, transports, begin, _announce)


def _announce(assembly: Assembly) -> None:
    render.banner()
    render.listeners(assembly)
    render.routes(assembly)
