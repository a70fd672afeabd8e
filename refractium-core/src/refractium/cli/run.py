"""Serving: no command at all, ``tcp`` or ``udp``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

import rich_click as click

from refractium.cli import configuration, logs, render, systemd
from refractium.cli.listening import Listening
from refractium.cli.observing import Observing
from refractium.cli.options import Flags, serving_options
from refractium.cli.reload import Reloader, ask_on_changes
from refractium.cli.stdout import leave_stdout_to_hooks
from refractium.config import ServerConfig
from refractium.contract import Transport
from refractium.engine import Refractium
from refractium.watch import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from refractium.assembly import Assembly
    from refractium.net.report import Reporter

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
    access = logs.configure(flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    file = configuration.file(flags)
    known = digest(file) if file is not None else None
    assembly = configuration.assembly(flags)
    leave_stdout_to_hooks(assembly)
    with contextlib.suppress(OSError):  # nobody reads stdout: no reason not to serve
        render.banner()
        render.listeners(assembly)
        render.routes(assembly)
    for warning in assembly.warnings:
        log.warning("%s", warning)
    run(lambda: _serve(flags, assembly, transports, (file, known), access))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own loop where uvloop could not be installed."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())


async def _serve(
    flags: Flags,
    assembly: Assembly,
    transports: Sequence[Transport],
    in_force: tuple[Path | None, bytes | None],
    access: Reporter,
) -> None:
    engine = Refractium(**configuration.engine_arguments(assembly), report=access)
    listening = Listening(engine)
    stopping = _Stopping(engine)
    observing = Observing(engine)
    reloader = Reloader(engine, flags, transports, listening, observing)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    tasks = [asyncio.create_task(reloader.run())]
    path, known = in_force
    if path is not None:
        tasks.append(asyncio.create_task(ask_on_changes(path, known, lambda: _is_hot(engine), reloader)))
    try:
        wanted = assembly.wanted(transports)
        await listening.take(systemd.inherited(), wanted)
        await listening.carry_out(await listening.prepare(wanted))
        exporter = await observing.prepare(assembly)
        await observing.change(assembly, exporter)
        systemd.ready()
        await stopping.begun.wait()
        systemd.stopping()
        for task in tasks:
            task.cancel()
        await stopping.done.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await observing.close()
        await engine.stop(0)
    log.info(
        "stopped after %d connections and %d sessions",
        engine.counters.accepted,
        engine.udp_counters.sessions,
    )


def _is_hot(engine: Refractium) -> bool:
    """Whether the configuration in force wants changes of its file to be taken over."""
    return isinstance(engine.settings, ServerConfig) and engine.settings.hot_reload


class _Stopping:
    """The first signal drains, the second ends at once."""

    def __init__(self, engine: Refractium) -> None:
        self._engine = engine
        self._tasks: list[asyncio.Task[None]] = []
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    def on_signal(self, number: signal.Signals) -> None:
        self.begun.set()
        if self._tasks:
            log.info("%s again: ending at once", number.name)
            self._tasks.append(asyncio.create_task(self._stop(0)))
        else:
            log.info("%s: %d connections may finish", number.name, self._engine.active)
            self._tasks.append(asyncio.create_task(self._stop(None)))

    async def _stop(self, drain_timeout_ms: int | None) -> None:
        await self._engine.stop(drain_timeout_ms)
        self.done.set()
