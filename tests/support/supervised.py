"""Several workers for tests of the library: a supervisor on an event loop in a separate thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import uvloop

from refractium import (
    Direction,
    EngineSpec,
    Health,
    HookContext,
    ListenerRules,
    Route,
    Supervisor,
    define_hook,
)
from refractium.proxy import half_closed
from support.clients import PATIENCE
from support.proxy import eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Self

    from refractium.hooks import HookUse
    from refractium.observe.status import Status, WorkerStatus

INTERVAL_MS: Final = 100


def checked(targets: str | tuple[str, ...]) -> Sequence[Route]:
    """Return a route whose backends have active health checks."""
    health = Health(kind="tcp", interval_ms=INTERVAL_MS, timeout_ms=5000, rise=2, fall=2)
    return (Route(starting_with(b"magic"), targets, health=health),)


def unchecked(targets: str | tuple[str, ...]) -> Sequence[Route]:
    """Return a route without active health checks: connections of clients show which backends are down."""
    health = Health(interval_ms=60_000, fall=3)
    return (Route(starting_with(b"magic"), targets, health=health),)


@define_hook("counted")
def counted(_context: HookContext, _direction: Direction, _data: bytes) -> None:
    """Receive packets and do nothing."""


def make_room_soon() -> None:
    """Let half-closed connections of this process make room after a short silence."""
    vars(half_closed)["_ROOM_MS"] = 100


@dataclass(frozen=True)
class Build:
    """A function that makes the specification of an engine, in this process and in workers.

    Args:
        tcp: the fallback for connections, or the backends of `routes`.
        udp: the fallback for datagrams.
        settings: limits and timeouts that replace the short ones of `quick`.
        routes: a function of a module that makes the routes.
        listeners: the names of listeners.
        hooks: the hooks of all routes.
        only_in: the only process in which it succeeds; None for all processes.
    """

    tcp: str | tuple[str, ...] = ()
    udp: str | tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    routes: Callable[[str | tuple[str, ...]], Sequence[Route]] | None = None
    listeners: tuple[str, ...] = ("",)
    hooks: tuple[HookUse, ...] = ()
    only_in: int | None = None

    def __call__(self) -> EngineSpec:
        if self.only_in not in {None, os.getpid()}:
            raise ValueError("not here")
        return EngineSpec(
            tcp=() if self.routes is None else self.routes(self.tcp),
            fallback_tcp=self.tcp if self.routes is None else (),
            fallback_udp=self.udp,
            settings=quick(**self.settings),
            listeners=dict.fromkeys(self.listeners, ListenerRules()),
            hooks=self.hooks,
        )


class Supervised:
    """A `Supervisor` that runs on an event loop in a separate thread while the block runs, on a free port.

    Args:
        build: the function that makes the specification of the engines.
        workers: the number of workers.
        drain_timeout_ms: the drain timeout (ms) of the stop at the end of the block.
        begin: the function that each worker calls first.

    Attributes:
        supervisor: the supervisor.
        address: the address and port for TCP, or for UDP if TCP is not served.
    """

    def __init__(
        self,
        build: Build,
        workers: int = 2,
        *,
        drain_timeout_ms: int = 0,
        begin: Callable[[], None] | None = None,
    ) -> None:
        self._build = build
        self._workers = workers
        self._more = () if begin is None else (begin,)
        self._drain_timeout_ms = drain_timeout_ms
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.call(self._start())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call(self.supervisor.stop(self._drain_timeout_ms))
        finally:
            self._end()

    async def _start(self) -> None:
        self.supervisor = Supervisor(self._build, self._workers, *self._more)
        try:
            addresses: tuple[str, ...] = ()
            if self._build.udp:
                addresses = await self.supervisor.start_udp("127.0.0.1", 0, self._build.listeners[0])
            if self._build.tcp:
                addresses = await self.supervisor.start_tcp("127.0.0.1", 0, self._build.listeners[0])
        except BaseException:
            await self.supervisor.stop(0)
            raise
        self.address = self.ip_and_port(addresses[0])

    def _end(self) -> None:
        self.call(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    @staticmethod
    def ip_and_port(address: str) -> tuple[str, int]:
        """Return the host and the port in an address."""
        host, _, port = address.rpartition(":")
        return host, int(port)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in the supervisor's loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Callable[[], Any]:
        """Start a coroutine in the supervisor's loop, and return a function that waits for its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return lambda: future.result(PATIENCE)

    def in_loop(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the supervisor's loop, and return its result."""

        async def run() -> Any:
            return function(*arguments)

        return self.call(run())

    def status(self) -> Status:
        status: Status = self.call(self.supervisor.status())
        return status

    @property
    def workers(self) -> list[WorkerStatus]:
        return list(self.status().workers)

    def kill(self, number: int, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a worker, and return its process id."""
        pid = self.workers[number - 1].pid
        assert pid is not None
        os.kill(pid, how)
        return pid

    def await_replaced(self, number: int, pid: int) -> None:
        """Wait until another process serves in place of the process `pid`."""
        eventually(
            lambda: self.workers[number - 1].pid not in {None, pid} and self.all_serve, "another worker"
        )

    @property
    def all_serve(self) -> bool:
        return bool(self.in_loop(lambda: len(self.supervisor._crew.serving) == self._workers))
