"""The command itself. Everything that only it needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click


@click.command("capture")
@click.argument("source", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as a file grows, and as others follow it.")
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Configuration file that says where packets go.  [refractium.toml]",
)
@click.option(
    "-w", "--write", "target", metavar="FILE", help="Pass the packets on to a new FILE, or - (stdout)."
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each session, at its end.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    source: str | None,
    follow: bool,
    target: str | None,
    as_json: bool,
    **_given: Any,
) -> None:
    """Show the sessions in a capture: on a terminal as they come, else at the end.

    SOURCE is a file (pcapng or pcap), - for stdin, or where an instance listens for viewers:
    TCP@HOST:PORT, HOST:PORT or PORT. Without it: the listen of [plugins.pcap], or else its path.
    """
    from refractium.cli.options import Flags  # noqa: PLC0415 - every command would load it
    from refractium_hooks_pcap.capture.intake import STDOUT  # noqa: PLC0415 - the same
    from refractium_hooks_pcap.capture.watch import watch  # noqa: PLC0415 - the same

    if target == STDOUT and as_json:
        raise click.UsageError("-w - and --json both want stdout")
    if target == STDOUT and sys.stdout.isatty():
        raise click.UsageError("stdout is a terminal: pipe it into a program that reads captures")
    watch(source, Flags.of(context).given.get("config"), follow=follow, target=target, as_json=as_json)
