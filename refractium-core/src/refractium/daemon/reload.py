"""Reloads: Refractium applies a changed configuration while it serves, as a whole or not at all."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from refractium.assembly.assembly import assembled
from refractium.assembly.plugin_files import read_plugin_files
from refractium.assembly.sources import read_file
from refractium.daemon import access_log, rights, systemd
from refractium.daemon.stdout import leave_stdout_to_hooks
from refractium.errors import ConfigError, ListenError
from refractium.guard.faults import is_ours, text_of
from refractium.system.users import current_user

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.contract import Transport
    from refractium.daemon.instance import Serving
    from refractium.daemon.listening import Listening
    from refractium.daemon.observing import Observing

log = logging.getLogger("refractium")

_T = TypeVar("_T")


class _SupersededError(Exception):
    """The end of a reload that still waited when another reload was requested."""


class Reloader:
    """A loop that reloads on request, one reload at a time. Requests during a reload count as one request.

    A new request ends a reload that still waits for name servers or for checks of backends.

    Args:
        serving: the engine or the supervisor of the run.
        overrides: the options of the command line, which still take precedence over the file.
        transports: the transports that the command of the run serves.
        listening: the listeners of the run.
        observing: the control socket and the metrics of the run.
        assembly: the configuration at the start.
        watched: the files whose changes cause a reload, each with the digest of the content that was read, as
            for `refractium.daemon.watch.changes`. Each reload replaces the local plugins among these files.

    Attributes:
        assembly: the configuration in force.
    """

    def __init__(
        self,
        serving: Serving,
        overrides: Overrides,
        transports: Sequence[Transport],
        listening: Listening,
        observing: Observing,
        assembly: Assembly,
        watched: dict[Path, bytes | None],
    ) -> None:
        self._serving = serving
        self._overrides = overrides
        self._transports = transports
        self._listening = listening
        self._observing = observing
        self.assembly = assembly
        self._watched = watched
        self._local = {file.path for file in assembly.plugins.files}
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Request a reload."""
        self._asked.set()

    async def run(self) -> None:
        """Reload at each request. Only cancelling ends this loop."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            systemd.reloading()
            await self._reload()
            systemd.ready()

    async def _reload(self) -> None:
        try:
            # Runs in a thread: checking a large file takes time, and the event loop must serve connections.
            assembly = await asyncio.to_thread(self._assembled)
            failures = await self._apply(assembly)
        except _SupersededError:
            log.info("not reloaded: superseded by a newer reload")
        except ConfigError as error:
            self._serving.instance.reload_failed([str(problem) for problem in error.problems])
            for problem in error.problems:
                log.error("not reloaded: %s", problem)  # noqa: TRY400 - the operator's fault needs no traceback
        except ListenError as error:
            reason = rights.explained(error, self._serving.identity)
            self._serving.instance.reload_failed([reason])
            log.error("not reloaded: %s", reason)  # noqa: TRY400 - the operator's fault
        except BaseException as error:
            if is_ours(error):
                raise
            # A plugin may raise any exception when it is loaded, or when it checks its settings.
            self._serving.instance.reload_failed([f"internal error: {text_of(error)}"])
            log.exception("not reloaded: internal error")
        else:
            self._warn(assembly)
            log.info("reloaded: configuration %d is in force", self._serving.instance.generation)
            if failures:
                self._serving.instance.reload_failed(list(map(str, failures)))
            for failure in failures:
                log.error("%s; the next reload tries again", failure)

    def _assembled(self) -> Assembly:
        """Read the files and assemble them. Watch the files also if they turn out to be unusable."""
        decoded = read_file(self._overrides)
        files = read_plugin_files(self._overrides, decoded)
        present = {file.path: file.digest for file in files}
        for path in self._local - present.keys():
            self._watched.pop(path, None)
        self._watched.update(present)
        self._local = set(present)
        return assembled(self._overrides, decoded, files)

    def _warn(self, assembly: Assembly) -> None:
        for warning in assembly.warnings:
            log.warning("%s", warning)
        if assembly.server.worker_count != self._serving.workers:
            log.warning("server.workers: the number stays %d until a restart", self._serving.workers)
        if assembly.server.identity != self._serving.identity:
            log.warning("server.user: Refractium runs as %s until a restart", current_user())

    async def _apply(self, assembly: Assembly) -> list[ListenError]:
        """Change to another configuration. Return the errors of listeners that could not start."""
        wanted = assembly.wanted(self._transports)
        timeout = self._serving.instance.settings.connect_timeout_ms / 1000
        exporter = await self._unless_superseded(self._observing.prepare(assembly, timeout))
        change = None
        try:
            hosts = await self._unless_superseded(self._listening.resolve(wanted, timeout))
            change = await self._listening.prepare(wanted, hosts)
            serve = await self._unless_superseded(self._serving.prepare(assembly))
            await serve()
            self.assembly = assembly
        except BaseException:
            if change is not None:
                await self._listening.undo(change)
            if exporter is not None:
                await exporter.close()
            raise
        access_log.use(assembly.log)
        leave_stdout_to_hooks(assembly)
        failures = await self._listening.carry_out(change)
        await self._listening.close_others(wanted)
        await self._observing.change(assembly, exporter)
        return failures

    async def _unless_superseded(self, step: Coroutine[Any, Any, _T]) -> _T:
        """Wait for a step that changes nothing. Cancel the step if another reload is requested."""
        asked, running = asyncio.create_task(self._asked.wait()), asyncio.create_task(step)
        try:
            await asyncio.wait((asked, running), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            raise _SupersededError
        finally:
            asked.cancel()
            if not running.done():
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def ask_on_changes(
    watched: dict[Path, bytes | None], is_wanted: Callable[[], bool], reloader: Reloader
) -> None:
    """Request a reload at each change of a file if `is_wanted` is true. Only cancelling ends this loop."""
    from refractium.daemon.watch import changes  # noqa: PLC0415 - not every run has a file; see `run.serve`

    async for _ in changes(watched):
        if is_wanted():
            reloader.ask()
