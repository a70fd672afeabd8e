"""The instance of a run: an engine in this process, or a supervisor with several worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from refractium.assembly.assembly import assembled
from refractium.config import ServerConfig, decode
from refractium.daemon import access_log
from refractium.engine.engine import Refractium

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Sequence

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.config import Source
    from refractium.contract import Transport
    from refractium.engine.spec import EngineSpec
    from refractium.observe.status import Status
    from refractium.plugins.local import PluginFile
    from refractium.proxy.summary import Reporter
    from refractium.settings import Settings
    from refractium.system.users import Identity


SpecT_contra = TypeVar("SpecT_contra", contravariant=True)


class Instance(Protocol[SpecT_contra]):
    """The methods that an engine and a supervisor have in common; see `refractium.Refractium`."""

    @property
    def settings(self) -> Settings:
        """The limits and timeouts for new connections."""

    @property
    def active(self) -> int:
        """The number of connections and UDP sessions that are open now."""

    @property
    def generation(self) -> int:
        """The number of configurations that have been in force."""

    def reserve(self, sock: socket.socket) -> None:
        """Open all further sockets that the instance needs on the address of a bound socket."""

    async def start_on(self, sock: socket.socket, listener: str = "", *, is_shared: bool = False) -> str:
        """Serve on a bound socket, which other processes may use as well."""

    async def stop_listening(self, transport: Transport, address: str) -> None:
        """Close the listener on an address; the address is free when this method returns."""

    async def prepare(self, spec: SpecT_contra, /) -> Callable[[], Awaitable[None]]:
        """Resolve names and check backends, but change nothing. Return the function that makes the change."""

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Record for `status` that a configuration could not be applied."""

    async def status(self) -> Status:
        """Return the present status."""

    async def stop_accepting(self) -> None:
        """Return when no process of the instance accepts clients any more."""

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Let open connections finish, and stop."""


@dataclass(frozen=True, slots=True)
class Serving:
    """An engine or a supervisor, with further facts that the daemon needs.

    Attributes:
        instance: the engine or the supervisor.
        spec_of: the function that makes the argument of `Instance.prepare` from a configuration.
        workers: the number of processes that serve.
        identity: the user to run as after all ports are bound; None if the configuration names no user.
    """

    instance: Instance[Any]
    spec_of: Callable[[Assembly], Any]
    workers: int
    identity: Identity | None

    async def prepare(self, assembly: Assembly) -> Callable[[], Awaitable[None]]:
        """Prepare the change to a configuration; see `Instance.prepare`."""
        return await self.instance.prepare(self.spec_of(assembly))


def serving(
    overrides: Overrides,
    assembly: Assembly,
    begin: Callable[[], Reporter],
    access: Reporter,
    identity: Identity | None,
) -> Serving:
    """Make an engine or a supervisor, depending on the number of processes in the configuration.

    Args:
        overrides: the options of the command line.
        assembly: the configuration.
        begin: the function that sends the logs of a worker to stderr and returns the worker's access log.
        access: the access log of this process.
        identity: the user to run as after all ports are bound; None if the configuration names no user.
    """
    access_log.use(assembly.log)
    workers = assembly.server.worker_count
    if workers == 1:
        return Serving(Refractium.of(assembly.spec, report=access), attrgetter("spec"), 1, identity)
    from refractium.workers import Supervisor  # noqa: PLC0415 - one process starts faster without it

    def build_of(changed: Assembly) -> _Build:
        return _Build(overrides, changed.source, changed.plugins.files)

    return Serving(Supervisor(build_of(assembly), workers, begin), build_of, workers, identity)


@dataclass(frozen=True)
class _Build:
    """A function that makes a worker's spec from the texts that the supervisor has read.

    It does not read the files again, because somebody may have moved or changed the files since then.
    """

    overrides: Overrides
    source: Source
    files: tuple[PluginFile, ...]

    def __call__(self) -> EngineSpec:
        assembly = assembled(self.overrides, decode(self.source), self.files)
        access_log.use(assembly.log)
        return assembly.spec


def reloads_on_change(instance: Instance[Any]) -> bool:
    """Return whether the configuration in force asks for a reload at each change of the file."""
    return isinstance(instance.settings, ServerConfig) and instance.settings.hot_reload
