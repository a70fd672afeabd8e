"""What serves a run: an engine in this process, or several worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from refractium.assembly.assembly import assembled, engine_arguments
from refractium.assembly.sources import parse
from refractium.config import ServerConfig
from refractium.daemon import logs
from refractium.engine.engine import Refractium

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.config import Source
    from refractium.contract import Transport
    from refractium.observe.status import Status
    from refractium.proxy.outcome import Reporter
    from refractium.settings import Settings
    from refractium.system.users import Identity


class Service(Protocol):
    """What an engine and a supervisor have in common; see `refractium.Refractium`."""

    @property
    def settings(self) -> Settings:
        """Limits and timeouts."""

    @property
    def active(self) -> int:
        """Connections and UDP sessions open now."""

    @property
    def generation(self) -> int:
        """How many configurations have been in force."""

    async def start_on(self, sock: socket.socket, listener: str = "") -> str:
        """Serve on a bound socket."""

    async def stop_listening(self, transport: Transport, address: str) -> None:
        """Give up an address; it is free when this returns."""

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Have the status tell of it."""

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Let connections finish, and end."""


class Serving(NamedTuple):
    """Whatever serves.

    Attributes:
        service: the engine, or the supervisor.
        prepare: resolves names and checks backends of another configuration, which changes nothing; the
            function that it returns has the service use the configuration.
        status: what it tells.
        workers: how many processes serve.
        reserve: opens whatever else it needs on the address of a bound socket.
        identity: whom it runs as once all ports are bound; None where that does not change.
    """

    service: Service
    prepare: Callable[[Assembly], Coroutine[Any, Any, Callable[[], Awaitable[None]]]]
    status: Callable[[], Awaitable[Status]]
    workers: int
    reserve: Callable[[socket.socket], None]
    identity: Identity | None


def serving(
    overrides: Overrides,
    assembly: Assembly,
    begin: Callable[[], Reporter],
    access: Reporter,
    identity: Identity | None,
) -> Serving:
    """Make what serves, with as many processes as the configuration says.

    Args:
        overrides: what was given on the command line.
        assembly: the configuration.
        begin: sends the logs of a worker to stderr; returns its access log.
        access: the access log of this process.
        identity: whom to run as.
    """
    workers = assembly.server.worker_count
    if workers == 1:
        return _in_this_process(assembly, access, identity)
    return _in_workers(overrides, assembly, workers, begin, identity)


def _in_this_process(assembly: Assembly, access: Reporter, identity: Identity | None) -> Serving:
    logs.limit(assembly.log)
    engine = Refractium(**engine_arguments(assembly), report=access)

    async def prepare(changed: Assembly) -> Callable[[], Awaitable[None]]:
        prepared = await engine.prepare(**engine_arguments(changed))

        async def use() -> None:
            await engine.use(prepared)
            logs.limit(changed.log)

        return use

    async def status() -> Status:
        return engine.status()

    return Serving(engine, prepare, status, 1, lambda _: None, identity)


def _in_workers(
    overrides: Overrides,
    assembly: Assembly,
    workers: int,
    begin: Callable[[], Reporter],
    identity: Identity | None,
) -> Serving:
    from refractium.workers import Supervisor  # noqa: PLC0415 - one process starts faster without

    supervisor = Supervisor(_Build(overrides, assembly.source), workers, begin)

    async def prepare(changed: Assembly) -> Callable[[], Awaitable[None]]:
        return partial(supervisor.use, *await supervisor.prepare(_Build(overrides, changed.source)))

    return Serving(supervisor, prepare, supervisor.status, workers, supervisor.reserve, identity)


@dataclass(frozen=True)
class _Build:
    """What a worker does to have the same configuration: it reads the same text, wherever the file is now."""

    overrides: Overrides
    source: Source

    def __call__(self) -> dict[str, Any]:
        assembly = assembled(self.overrides, parse(self.source))
        logs.limit(assembly.log)
        return engine_arguments(assembly)


def is_hot(service: Service) -> bool:
    """Whether the configuration in force wants changes of its file to be taken over."""
    return isinstance(service.settings, ServerConfig) and service.settings.hot_reload
