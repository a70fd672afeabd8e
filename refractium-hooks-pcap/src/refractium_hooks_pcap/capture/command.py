"""The command ``capture``, which imports the other modules of this package only when the command runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import rich_click as click

from refractium.kit import config_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command("capture")
@click.argument("source", required=False)
@click.option("-f", "--follow", is_flag=True, help="Continue when a file grows or a new file appears.")
@config_option("Configuration file with [plugins.pcap].  [refractium.toml]")
@click.option("-w", "--write", "target", metavar="FILE", help="Copy the packets to a new FILE or - (stdout).")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a line of JSON for each session when the session ends."
)
def command(
    *, source: str | None, follow: bool, config: Path | None, target: str | None, as_json: bool
) -> None:
    """Show the sessions in a capture: live on a terminal, otherwise at the end of the capture.

    SOURCE is a file (pcapng or pcap), - for stdin, or the address at which an instance listens for viewers:
    TCP@HOST:PORT, HOST:PORT or PORT. The default is the address in the key listen of [plugins.pcap];
    without listen, the files in the key path.
    """
    from refractium_hooks_pcap.capture.intake import STDOUT  # noqa: PLC0415 - other commands need no intake
    from refractium_hooks_pcap.capture.watch import watch  # noqa: PLC0415 - other commands need no watch

    if target == STDOUT and as_json:
        raise click.UsageError("-w - and --json both want stdout: leave one of them out")
    if target == STDOUT and sys.stdout.isatty():
        raise click.UsageError("stdout is a terminal: pipe it into a program that reads captures")
    watch(source, config, follow=follow, target=target, as_json=as_json)
