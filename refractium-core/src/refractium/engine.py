"""The engine: what a program that embeds Refractium starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from refractium.access import report, wants_report
from refractium.address import Address
from refractium.contract import Transport
from refractium.errors import ConfigError, Problem
from refractium.net.listener import bind_tcp
from refractium.net.reactor import Reactor
from refractium.net.resolver import Resolver
from refractium.net.tcp import Counters, TcpService, join_host_port
from refractium.net.weld import Ended
from refractium.routing import Router
from refractium.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from refractium.routing import Route

log = logging.getLogger(__name__)

_DEFAULTS = Settings()


class Refractium:
    """One proxy: routes, limits, and the listeners they apply to.

    ::

        engine = Refractium(tcp=[Route(my_proto, "127.0.0.1:8080")])
        await engine.run_tcp("0.0.0.0", 8081)

    `run_tcp` serves until `stop` is called or its task is cancelled. A program with a loop of its own uses
    `start_tcp` and `stop`. An engine serves once: after `stop` make a new one. It installs no signal handlers
    and configures no logging.

    Args:
        tcp: the routes, in order.
        fallback_tcp: ``HOST:PORT`` (or several) for connections that no route matches; without it they are
            closed.
        settings: limits and timeouts.

    Raises:
        ConfigError: routes that cannot be used together, a bad address.
    """

    def __init__(
        self,
        tcp: Sequence[Route] = (),
        *,
        fallback_tcp: str | Sequence[str] = (),
        settings: Settings = _DEFAULTS,
    ) -> None:
        self.settings = settings
        if wrong := [route for route in tcp if route.transport is not Transport.TCP]:
            raise ConfigError(Problem(f"{route} is not a route for tcp", where="tcp") for route in wrong)
        self._router = Router(tcp, _addresses(fallback_tcp), settings.peek_buffer_size)
        self._service: TcpService | None = None
        self._resolver = Resolver(self._router.backends)
        self._stopped = asyncio.Event()
        self._stopping = False

    async def start_tcp(self, host: str, port: int) -> tuple[str, ...]:
        """Listen and serve. May be called again for further addresses.

        Args:
            host: an address or a name; ``::`` takes IPv4 clients as well.
            port: 0 takes a free one.

        Returns:
            The addresses listened on, as ``HOST:PORT``.

        Raises:
            ListenError: the address cannot be listened on; what was started before goes on.
            RuntimeError: the engine was stopped.
        """
        if self._stopping:
            raise RuntimeError("the engine was stopped: make a new one")
        loop = asyncio.get_running_loop()
        sockets = await bind_tcp(loop, host, port)
        if self._service is None:
            await self._resolver.start(self.settings.connect_timeout_ms)
            self._service = TcpService(Reactor(loop), self._router, self.settings, report, wants_report)
        listeners = [self._service.listen(sock) for sock in sockets]
        return tuple(join_host_port(*listener.address[:2]) for listener in listeners)

    async def run_tcp(self, host: str, port: int) -> None:
        """Listen and serve until `stop` has been called, or this task is cancelled.

        Cancelling cuts connections at once; `stop` lets them finish.

        Raises:
            ListenError: the address cannot be listened on.
        """
        await self.start_tcp(host, port)
        try:
            await self._stopped.wait()
        finally:
            await self.stop(drain_timeout_ms=0)

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Stop accepting, let connections finish, then cut what is left.

        A second call while the first waits makes that wait as short as its own.

        Args:
            drain_timeout_ms: how long to wait (ms), instead of `Settings.drain_timeout_ms`.

        Returns:
            How many connections were cut.
        """
        timeout_ms = self.settings.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        already_stopping, self._stopping = self._stopping, True
        service = self._service
        cut = 0
        if service is not None:
            service.stop_accepting()
            if timeout_ms and not service.drained.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(service.drained.wait(), timeout_ms / 1000)
            cut = service.cut(Ended.DRAINED if timeout_ms else Ended.ABORTED)
            if cut:
                log.warning("stopped with %d connections still open: they were reset", cut)
        if not already_stopping:
            await self._resolver.stop()
            if service is not None:
                service.close()
                service.reactor.close()
            self._stopped.set()
        return cut

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def counters(self) -> Counters:
        """What has happened so far (counts and bytes)."""
        return self._service.counters if self._service is not None else Counters()

    @property
    def active(self) -> int:
        """Connections open now."""
        return len(self._service.connections) if self._service is not None else 0

    def __repr__(self) -> str:
        return f"<Refractium {self.active} active>"


def _addresses(texts: str | Sequence[str]) -> tuple[Address, ...]:
    found, problems = [], []
    for text in (texts,) if isinstance(texts, str) else texts:
        try:
            found.append(Address.parse(text))
        except ValueError as error:
            problems.append(Problem(str(error), where="fallback_tcp"))
    if problems:
        raise ConfigError(problems)
    return tuple(found)
