"""What serves a run: an engine in this process, or several worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from refractium.cli import configuration, logs
from refractium.config import ServerConfig, parse
from refractium.engine import Refractium

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from refractium.assembly import Assembly
    from refractium.cli.options import Flags
    from refractium.config import Source
    from refractium.contract import Transport
    from refractium.net.report import Reporter
    from refractium.settings import Settings
    from refractium.status import Status
    from refractium.users import Identity


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


def serving(flags: Flags, assembly: Assembly, access: Reporter, identity: Identity | None) -> Serving:
    """Make what serves, with as many processes as the configuration says.

    Args:
        flags: what was given.
        assembly: the configuration.
        access: the access log of this process.
        identity: whom to run as.
    """
    workers = assembly.server.worker_count
    if workers == 1:
        return _in_this_process(assembly, access, identity)
    return _in_workers(flags, assembly, workers, identity)


def _in_this_process(assembly: Assembly, access: Reporter, identity: Identity | None) -> Serving:
    logs.limit(assembly.log)
    engine = Refractium(**configuration.engine_arguments(assembly), report=access)

    async def prepare(changed: Assembly) -> Callable[[], Awaitable[None]]:
        prepared = await engine.prepare(**configuration.engine_arguments(changed))

        async def use() -> None:
            await engine.use(prepared)
            logs.limit(changed.log)

        return use

    async def status() -> Status:
        return engine.status()

    return Serving(engine, prepare, status, 1, lambda _: None, identity)


def _in_workers(flags: Flags, assembly: Assembly, workers: int, identity: Identity | None) -> Serving:
    from refractium.workers import Supervisor  # noqa: PLC0415 - one process starts faster without

    begin = partial(logs.configure, flags.given.get("log_format"), debug=bool(flags.given.get("debug")))
    supervisor = Supervisor(_Build(flags, assembly.source), workers, begin)

    async def prepare(changed: Assembly) -> Callable[[], Awaitable[None]]:
        return partial(supervisor.use, *await supervisor.prepare(_Build(flags, changed.source)))

    return Serving(supervisor, prepare, supervisor.status, workers, supervisor.reserve, identity)


@dataclass(frozen=True)
class _Build:
    """What a worker does to have the same configuration: it reads the same text, wherever the file is now."""

    flags: Flags
    source: Source

    def __call__(self) -> dict[str, Any]:
        assembly = configuration.assembly(self.flags, parse(self.source))
        logs.limit(assembly.log)
        return configuration.engine_arguments(assembly)


def is_hot(service: Service) -> bool:
    """Whether the configuration in force wants changes of its file to be taken over."""
    return isinstance(service.settings, ServerConfig) and service.settings.hot_reload
