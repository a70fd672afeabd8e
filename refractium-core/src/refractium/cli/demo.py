"""``demo``: a real exchange over each installed protocol that has a scene, all behind one port."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING

import msgspec
import rich_click as click

from refractium import terminal
from refractium.cli import render
from refractium.cli.options import Flags
from refractium.cli.plugins import installed
from refractium.daemon import logs
from refractium.daemon.stdout import say
from refractium.demo import SCENES, SceneResult, Stage
from refractium.engine.loop import run
from refractium.errors import ConfigError, ExitStatus
from refractium.problems import Problem
from refractium.wire.text import printable

if TYPE_CHECKING:
    from refractium.contract import Scene
    from refractium.plugins.installed import Plugins


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
    """Show Refractium at work: backends for the installed protocols, behind one port.

    The demo shows the protocols of the project, and each protocol whose plugin provides a scene.

    Exits 0 if Refractium identified every protocol, and if every backend answered. Otherwise exits 1.
    """
    flags = Flags.of(context)
    logs.configure(flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    plugins = installed(flags)
    scenes = {**SCENES, **{name: one for name, one in plugins.scenes.items() if name not in SCENES}}
    prepared = Stage(plugins.protocols, scenes, port)
    if not prepared.names:
        raise ConfigError([Problem(_nothing_to_show(plugins))])
    results: list[SceneResult] = []

    async def show() -> None:
        async with prepared as stage:
            results.extend([await stage.play(name) for name in stage.names])
            _print(results, stage.port, as_json=as_json)
            if serve:
                await _keep_serving(stage.port, [scenes[name] for name in stage.names])

    run(show)
    context.exit(ExitStatus.SUCCESS if all(result.ok for result in results) else ExitStatus.FAILURE)


def _nothing_to_show(plugins: Plugins) -> str:
    """Return the reason why the demo shows no protocol, and a remedy."""
    if names := ", ".join(dict.fromkeys(one.name for one in plugins.protocols)):
        return f"the plugins of these protocols provide no scene for the demo: {names}"
    return plugins.explain_nothing()


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


async def _keep_serving(port: int, scenes: list[Scene]) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    say(f"\nListening on tcp://127.0.0.1:{port}\n\nTry by hand:")
    for scene in scenes:
        say(f"  {printable(scene.by_hand.replace('{port}', str(port)))}")
    say("\nCtrl-C ends the demo.")
    await ended.wait()
