"""A run, from the first bound port to the last connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from refractium.assembly.assembly import assembled
from refractium.assembly.plugin_files import read_plugin_files
from refractium.assembly.sources import file_of, read_file
from refractium.daemon import rights, systemd
from refractium.daemon.instance import Instance, Serving, reloads_on_change, serving
from refractium.daemon.launcher import SIGNALS, Launcher, launch
from refractium.daemon.listening import Listening
from refractium.daemon.observing import Observing
from refractium.daemon.reload import Reloader, ask_on_changes
from refractium.daemon.stdout import claimed_stdout, leave_stdout_to_hooks
from refractium.engine.loop import run
from refractium.errors import ConfigError
from refractium.hooks import used, why_alone
from refractium.observe import collect, control
from refractium.system.files import digest
from refractium.system.signals import default_after

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.contract import Transport
    from refractium.observe.status import Status
    from refractium.plugins.installed import Plugins
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
    watched = {} if file is None else {file: digest(file)}
    decoded = read_file(overrides)
    files = read_plugin_files(overrides, decoded)
    watched |= {one.path: one.digest for one in files}
    if watched:
        import_module("refractium.daemon.watch")  # now, because `server.user` may have no access to modules
    identity = rights.begin(decoded)  # before the log starts its thread
    sockets = systemd.inherited()
    launcher = launch(sockets, identity) if sockets else None  # also before the log starts its thread
    access = begin()
    assembly = assembled(overrides, decoded, files)
    if problems := list(assembly.unserved(transports, overrides.inline)):
        raise ConfigError(problems)
    with claimed_stdout():
        leave_stdout_to_hooks(assembly)
        with contextlib.suppress(OSError):  # serve even if stdout cannot be written
            announce(assembly)
        for warning in assembly.warnings:
            log.warning("%s", warning)
        _take_all_descriptors()
        run_by = serving(overrides, assembly, begin, access, identity)
        inherited = _Inherited(sockets, launcher)
        can_end = run(lambda: _serve(run_by, overrides, assembly, transports, file, watched, inherited))
    if not can_end:
        log.warning("code of a plugin still runs, for example a health check: ending without it")
        logging.shutdown()  # writes the last lines
        os._exit(0)  # the usual end of the interpreter would wait for a thread


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
    file: Path | None,
    watched: dict[Path, bytes | None],
    inherited: _Inherited,
) -> None:
    instance, identity = run_by.instance, run_by.identity
    listening = Listening(instance)
    stopping = _Stopping(instance)
    observing = Observing(
        _status_of(instance, file, inherited.launcher, lambda: reloader.assembly.plugins),
        control.folder_for(identity),
    )
    reloader = Reloader(run_by, overrides, transports, listening, observing, assembly, watched)

    def on_signal(number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            reloader.ask()
        else:
            stopping.on_signal(number)

    inherited.watch_signals(on_signal)
    tasks: list[asyncio.Task[None]] = []
    try:
        starting = asyncio.create_task(
            _start(run_by, assembly, transports, listening, observing, inherited.sockets)
        )
        if await stopping.allows(starting):
            systemd.ready()
            # Only now, because a reload compares the configured listeners with the open listeners.
            tasks.append(asyncio.create_task(reloader.run()))
            for path in watched:
                if identity is not None and rights.is_lost(path, identity):
                    watched[path] = digest(path)  # so a file that becomes readable counts as changed
            if watched:
                watching = ask_on_changes(watched, lambda: reloads_on_change(instance), reloader)
                tasks.append(asyncio.create_task(watching))
        await stopping.begun.wait()
        systemd.stopping()
        for task in tasks:
            task.cancel()
        if inherited.launcher is not None and stopping.first is signal.SIGTERM:
            await asyncio.gather(*tasks, return_exceptions=True)  # a reload could open the metrics again
            await _hand_over(inherited.launcher, instance, listening, reloader.assembly, observing)
        await stopping.done.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await observing.close()
        await instance.stop(0)
    status = await instance.status()
    log.info("stopped after %d connections and %d sessions", status.tcp.accepted, status.udp.sessions)


def _status_of(
    instance: Instance[Any], file: Path | None, launcher: Launcher | None, plugins: Callable[[], Plugins]
) -> Callable[[], Awaitable[Status]]:
    """Return a function that returns the status of the instance.

    The status has the path of the file, the id of the process that takes signals, and the plugins.
    """
    shown = "" if file is None else str(file.resolve())
    pid = os.getpid() if launcher is None else launcher.pid

    async def status() -> Status:
        found = await instance.status()
        return replace(found, pid=pid, file=shown, plugins=tuple(collect.plugins(plugins(), found)))

    return status


async def _start(
    run_by: Serving,
    assembly: Assembly,
    transports: Sequence[Transport],
    listening: Listening,
    observing: Observing,
    sockets: Sequence[socket.socket],
) -> None:
    """Bind all ports, change to the configured user, and serve; open the metrics server and control socket.

    Return after the first checks of the backends.
    """
    change = await listening.begin(sockets, assembly.wanted(transports))
    try:
        exporter = await observing.prepare(assembly)
        if run_by.identity is not None:
            for sock in change.opened:
                run_by.instance.reserve(sock)
            if assembly.server.control is None and not run_by.identity.is_current:
                control.make_folder(run_by.identity)
            rights.give_up(run_by.identity)
    except BaseException:
        await listening.undo(change)
        raise
    try:
        # Before this call, the instance accepts no client and has started no workers and no hooks.
        for failure in await listening.carry_out(change):
            raise failure  # noqa: TRY301 - the handler below closes the exporter
    except BaseException:
        if exporter is not None:
            await exporter.close()
        raise
    await observing.change(assembly, exporter)


async def _hand_over(
    launcher: Launcher,
    instance: Instance[Any],
    listening: Listening,
    assembly: Assembly,
    observing: Observing,
) -> None:
    """Give up everything that the next process needs, and let the launcher end.

    If the next process cannot run beside this process, do nothing. The launcher then waits for this process.
    """
    if reasons := [
        *(f"systemd did not hand over the socket of {address}" for address in listening.opened),
        *(
            f"hook {use.hook.name} can run in one process only"
            for use in map(used, assembly.hook_uses)
            if why_alone(use)
        ),
    ]:
        log.info("the next process has to wait for the end of this process: %s", reasons[0])
        return
    await observing.close()
    await instance.stop_accepting()  # otherwise a client of the next process could reach this process
    launcher.hand_over()


@dataclass(frozen=True, slots=True)
class _Inherited:
    """The sockets that the service manager has handed down, and the launcher; None without such sockets."""

    sockets: Sequence[socket.socket]
    launcher: Launcher | None

    def watch_signals(self, on_signal: Callable[[signal.Signals], None]) -> None:
        """Call a function with each signal from now on, in the running event loop."""
        if self.launcher is not None:
            self.launcher.watch(on_signal)
        else:
            _watch_signals(on_signal)


def _watch_signals(on_signal: Callable[[signal.Signals], None]) -> None:
    """Call a function with each signal. If the loop hangs, the second SIGTERM or SIGINT ends the process."""
    loop = asyncio.get_running_loop()

    def watch(number: signal.Signals) -> None:
        loop.add_signal_handler(number, receive, number)
        if number is not signal.SIGHUP:
            default_after(number)

    def receive(number: signal.Signals) -> None:
        watch(number)
        on_signal(number)

    for number in SIGNALS:
        watch(number)


class _Stopping:
    """The stop of a run: the first signal starts a drain, and the second signal ends the run at once.

    Attributes:
        first: the first signal; None until then.
        begun: the event that is set at the first signal.
        done: the event that is set when the instance has stopped.
    """

    def __init__(self, instance: Instance[Any]) -> None:
        self._instance = instance
        self._tasks: list[asyncio.Task[None]] = []
        self.first: signal.Signals | None = None
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
        self.first = self.first or number
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
