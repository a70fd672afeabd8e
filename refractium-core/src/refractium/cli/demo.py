"""``demo``: the installed protocols that the demo knows, behind one port, with a real exchange over each."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import asdict

import msgspec
import rich_click as click

from refractium import terminal
from refractium.assembly import assembly
from refractium.cli import render
from refractium.cli.options import Flags
from refractium.daemon import logs
from refractium.daemon.stdout import say
from refractium.demo import SCENES, SceneResult, Stage
from refractium.engine.loop import run
from refractium.errors import ConfigError, ExitStatus
from refractium.problems import Problem


@click.command("demo")
@click.option("--serve", is_flag=True, help="Keep running, and print commands to try by hand.")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    help="Port to listen on.  [any free port]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, /, *, serve: bool, port: int, as_json: bool) -> None:
    """Show Refractium at work: backends for the installed protocols that the demo knows, behind one port.

    Exits 0 if Refractium identified every protocol, and if every backend answered. Otherwise exits 1.
    """
    flags = Flags.of(context)
    logs.configure(flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    installed = assembly.installed(flags.overrides, None).protocols
    names = [name for name in SCENES if any(one.name == name for one in installed)]
    if not names:
        raise ConfigError(
            [Problem("no protocol of the demo is installed: pip install 'refractium-protocols[all]'")]
        )
    results: list[SceneResult] = []

    async def show() -> None:
        async with Stage(installed, port) as stage:
            results.extend([await stage.play(name) for name in names])
            _print(results, stage.port, as_json=as_json)
            if serve:
                await _keep_serving(stage.port, names)

    run(show)
    context.exit(ExitStatus.SUCCESS if all(result.ok for result in results) else ExitStatus.FAILURE)


def _print(results: list[SceneResult], port: int, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([asdict(one) for one in results]), indent=2))
        return
    render.banner()
    columns = ("protocol", "evidence", "backend", "answer", "time", "")
    rows = [
        (
            one.identified_as or f"{one.protocol}: not identified",
            one.evidence,
            one.backend or "none",
            one.answer,
            f"{one.ms:.0f} ms",
            "ok" if one.ok else "FAILED",
        )
        for one in results
    ]
    terminal.table(f"{len(results)} protocols on 127.0.0.1:{port}", columns, rows)


async def _keep_serving(port: int, names: list[str]) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    say(f"\nListening on tcp://127.0.0.1:{port}\n\nTry by hand:")
    for name in names:
        say(f"  {SCENES[name].by_hand.format(port=port)}")
    say("\nCtrl-C ends the demo.")
    await ended.wait()
