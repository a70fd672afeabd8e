"""Serving: no command at all, ``tcp`` or ``udp``."""

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
from refractium.contract import Transport
from refractium.engine import Refractium

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from refractium.assembly import Assembly
    from refractium.config import ServerConfig

log = logging.getLogger("refractium")


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
    """Serve until a signal ends it.

    Args:
        flags: what was given.
        transports: what to serve. One without routes and fallback is left out, unless it is the only one.

    Raises:
        ConfigError: the configuration cannot be used; nothing was bound.
        ListenError: an address cannot be listened on.
    """
    logs.configure(flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    assembly = configuration.assembly(flags)
    wanted = [transport for transport in transports if assembly.has(transport)] or transports[:1]
    with contextlib.suppress(OSError):  # nobody reads stdout: no reason not to serve
        render.banner()
        render.routes(assembly)
    for warning in assembly.warnings:
        log.warning("%s", warning)
    run(lambda: _serve(assembly, wanted))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop where uvloop could not be installed."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


async def _serve(assembly: Assembly, transports: Sequence[Transport]) -> None:
    server = assembly.server
    engine = Refractium(
        assembly.tcp,
        assembly.udp,
        fallback_tcp=server.fallback_tcp or (),
        fallback_udp=server.fallback_udp or (),
        settings=server,
    )
    stopping = _Stopping(engine)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    try:
        for address in await _listen(engine, server, transports):
            say(f"Listening on {address}")
        await stopping.done.wait()
    finally:
        await engine.stop(0)
    log.info(
        "stopped after %d connections and %d sessions",
        engine.counters.accepted,
        engine.udp_counters.sessions,
    )


async def _listen(engine: Refractium, server: ServerConfig, transports: Sequence[Transport]) -> list[str]:
    """Start every transport, all on one port, even where that port was to be any free one."""
    addresses = []
    port = server.port
    for transport in transports:
        start = engine.start_tcp if transport is Transport.TCP else engine.start_udp
        found = await start(server.bind, port)
        port = int(found[0].rpartition(":")[2])
        addresses += [f"{transport}://{address}" for address in found]
    return addresses


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
