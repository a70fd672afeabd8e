"""Serving: no command at all, or ``tcp``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

import rich_click as click

from refractium.cli import configuration, logs, render
from refractium.cli.options import Flags, serving_options
from refractium.engine import Refractium

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from refractium.assembly import Assembly

log = logging.getLogger("refractium")


@click.command("tcp")
@serving_options
@click.pass_context
def command(context: click.Context, /, **_given: Any) -> None:
    """Serve TCP."""
    serve(Flags.of(context))


def serve(flags: Flags) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigError: the configuration cannot be used; nothing was bound.
        ListenError: an address cannot be listened on.
    """
    assembly = configuration.assembly(flags)
    logs.configure(flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    with contextlib.suppress(OSError):  # nobody reads stdout: no reason not to serve
        render.banner()
        render.routes(assembly)
    for warning in assembly.warnings:
        log.warning("%s", warning)
    for route in assembly.udp:
        log.warning("route %s for udp is not served", route)
    run(lambda: _serve(assembly))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop where uvloop could not be installed."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


async def _serve(assembly: Assembly) -> None:
    server = assembly.server
    engine = Refractium(assembly.tcp, fallback_tcp=server.fallback_tcp or (), settings=server)
    stopping = _Stopping(engine)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    for address in await engine.start_tcp(server.bind, server.port):
        say(f"Listening on tcp://{address}")
    await stopping.done.wait()
    log.info("stopped after %d connections", engine.counters.accepted)


class _Stopping:
    """The first signal drains, the second ends at once."""

    def __init__(self, engine: Refractium) -> None:
        self._engine = engine
        self._tasks: list[asyncio.Task[None]] = []
        self.done = asyncio.Event()

    def on_signal(self, number: signal.Signals) -> None:
        if self._tasks:
            log.info("%s again: ending at once", number.name)
            self._tasks.append(asyncio.create_task(self._stop(0)))
        else:
            log.info("%s: %d connections may finish", number.name, self._engine.active)
            self._tasks.append(asyncio.create_task(self._stop(None)))

    async def _stop(self, drain_timeout_ms: int | None) -> None:
        await self._engine.stop(drain_timeout_ms)
        self.done.set()


def say(line: str) -> None:
    """Print a line that scripts may wait for; it does not matter if nobody reads."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
