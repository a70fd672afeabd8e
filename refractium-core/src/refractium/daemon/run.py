"""A run, from the first bound port to the last connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from refractium.assembly.assembly import assembled
from refractium.assembly.sources import file_of, read_file
from refractium.daemon import rights, systemd
from refractium.daemon.instance import Instance, Serving, reloads_on_change, serving
from refractium.daemon.listening import Listening
from refractium.daemon.observing import Observing
from refractium.daemon.reload import Reloader, ask_on_changes
from refractium.daemon.stdout import claimed_stdout, leave_stdout_to_hooks
from refractium.daemon.watch import digest
from refractium.engine.loop import run
from refractium.errors import ConfigError
from refractium.observe import control
from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.contract import Transport
    from refractium.observe.status import Status
    from refractium.proxy.summary import Reporter


log = logging.getLogger("refractium")


def serve(
    overrides: Overrides,
    transports: Sequence[Transport],
    begin: Callable[[], Reporter],
    announce: Callable[[Assembly], None],
) -> None:
    """Serve until a signal ends the run.

    Args:
        overrides: the options of the command line.
        transports: the transports to serve. The run leaves out a transport that has neither a route nor a
            fallback.
        begin: the function that sends the logs of a process to stderr and returns the process's access log.
        announce: the function that prints on stdout what is going to be served.

    Raises:
        ConfigError: the configuration cannot be used; nothing was bound.
        ListenError: the run cannot listen on an address.
    """
    file = file_of(overrides)
    known = digest(file) if file is not None else None
    decoded = read_file(overrides)
    identity = rights.begin(decoded)  # before the log starts its thread
    access = begin()
    assembly = assembled(overrides, decoded)
    if not assembly.serves(transports):
        names = " or ".join(transports)
        raise ConfigError(
            [Problem(f"nothing to serve: no listener has a route or a fallback for {names}: add one")]
        )
    with claimed_stdout():
        leave_stdout_to_hooks(assembly)
        with contextlib.suppress(OSError):  # serve even if stdout cannot be written
            announce(assembly)
        for warning in assembly.warnings:
            log.warning("%s", warning)
        _take_all_descriptors()
        run_by = serving(overrides, assembly, begin, access, identity)
        run(lambda: _serve(run_by, overrides, assembly, transports, (file, known)))


def _take_all_descriptors() -> None:
    """Raise the soft limit of descriptors to the hard limit, which the administrator sets.

    The soft limit protects programs that call select(2): see LimitNOFILE in systemd.exec(5). The default of
    the soft limit is 1,024 descriptors, which suffices for about 500 connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # fs.nr_open may be lower than the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    run_by: Serving,
    overrides: Overrides,
    assembly: Assembly,
    transports: Sequence[Transport],
    in_force: tuple[Path | None, bytes | None],
) -> None:
    instance, identity = run_by.instance, run_by.identity
    listening = Listening(instance)
    stopping = _Stopping(instance)
    observing = Observing(_status_of(instance, in_force[0]), control.folder_for(identity))
    reloader = Reloader(run_by, overrides, transports, listening, observing)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, reloader.ask)
    tasks: list[asyncio.Task[None]] = []
    try:
        starting = asyncio.create_task(_start(run_by, assembly, transports, listening, observing))
        if await stopping.allows(starting):
            systemd.ready()
            # Only now, because a reload compares the configured listeners with the open listeners.
            tasks.append(asyncio.create_task(reloader.run()))
            path, known = in_force
            if path is not None:
                if identity is not None and rights.is_lost(path, identity):
                    known = digest(path)  # so a file that becomes readable counts as changed
                watching = ask_on_changes(path, known, lambda: reloads_on_change(instance), reloader)
                tasks.append(asyncio.create_task(watching))
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
        await instance.stop(0)
    status = await instance.status()
    log.info("stopped after %d connections and %d sessions", status.tcp.accepted, status.udp.sessions)


def _status_of(instance: Instance[Any], file: Path | None) -> Callable[[], Awaitable[Status]]:
    """Return a function that returns the status of the instance, with the path of its file."""
    shown = "" if file is None else str(file.resolve())

    async def status() -> Status:
        return replace(await instance.status(), file=shown)

    return status


async def _start(
    run_by: Serving,
    assembly: Assembly,
    transports: Sequence[Transport],
    listening: Listening,
    observing: Observing,
) -> None:
    """Bind all ports, change to the configured user, and serve; open the metrics server and control socket.

    Return after the first checks of the backends.
    """
    change = await listening.begin(systemd.inherited(), assembly.wanted(transports))
    try:
        exporter = await observing.prepare(assembly)
        if run_by.identity is not None:
            for sock in change.sockets:
                run_by.instance.reserve(sock)
            if assembly.server.control is None and not run_by.identity.is_current:
                control.make_folder(run_by.identity)
            rights.give_up(run_by.identity)
    except BaseException:
        await listening.undo(change)
        raise
    try:
        # Before this call, the instance accepts no client and has started no workers and no hooks.
        await listening.carry_out(change)
    except BaseException:
        if exporter is not None:
            await exporter.close()
        raise
    await observing.change(assembly, exporter)


class _Stopping:
    """The stop of a run: the first signal starts a drain, and the second signal ends the run at once."""

    def __init__(self, instance: Instance[Any]) -> None:
        self._instance = instance
        self._tasks: list[asyncio.Task[None]] = []
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    async def allows(self, starting: asyncio.Task[None]) -> bool:
        """Wait for the end of a start; return False if a signal has cancelled the start, else True."""
        begun = asyncio.create_task(self.begun.wait())
        await asyncio.wait((starting, begun), return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if self.begun.is_set():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        await starting
        return True

    def on_signal(self, number: signal.Signals) -> None:
        self.begun.set()
        if self._tasks:
            log.info("%s again: ending at once", number.name)
            self._tasks.append(asyncio.create_task(self._stop(0)))
        else:
            log.info("%s: %d connections may finish", number.name, self._instance.active)
            self._tasks.append(asyncio.create_task(self._stop(None)))

    async def _stop(self, drain_timeout_ms: int | None) -> None:
        await self._instance.stop(drain_timeout_ms)
        self.done.set()
