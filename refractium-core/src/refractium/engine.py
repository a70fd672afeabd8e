"""The engine: what a program that embeds Refractium starts and stops."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from refractium.access import AccessLog
from refractium.address import Address
from refractium.contract import Transport
from refractium.errors import ConfigError, Problem
from refractium.net.bind import bind
from refractium.net.limits import Limits
from refractium.net.reactor import Reactor
from refractium.net.report import Ended, join_host_port
from refractium.net.resolver import Resolver
from refractium.net.tcp import Counters, TcpService
from refractium.net.udp import UdpCounters, UdpService
from refractium.routing import Router
from refractium.settings import Settings

if TYPE_CHECKING:
    import socket
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

    `run_tcp` and `run_udp` serve until `stop` is called or their task is cancelled. A program with a loop of
    its own uses `start_tcp`, `start_udp` and `stop`. An engine serves once: after `stop` make a new one. It
    installs no signal handlers and configures no logging.

    Args:
        tcp: the routes for connections, in order.
        udp: the routes for datagrams, in order.
        fallback_tcp: ``HOST:PORT`` (or several) for connections that no route matches; without it they are
            closed.
        fallback_udp: the same for datagrams; without it they are dropped.
        settings: limits and timeouts.

    Raises:
        ConfigError: routes that cannot be used together, a bad address.
    """

    def __init__(
        self,
        tcp: Sequence[Route] = (),
        udp: Sequence[Route] = (),
        *,
        fallback_tcp: str | Sequence[str] = (),
        fallback_udp: str | Sequence[str] = (),
        settings: Settings = _DEFAULTS,
    ) -> None:
        self.settings = settings
        self._tcp_router = _router(Transport.TCP, tcp, fallback_tcp, settings)
        self._udp_router = _router(Transport.UDP, udp, fallback_udp, settings)
        self._limits = Limits(settings)
        self._reactor: Reactor | None = None
        self._tcp: TcpService | None = None
        self._udp: UdpService | None = None
        self._resolver = Resolver((*self._tcp_router.backends, *self._udp_router.backends))
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
        sockets, reactor = await self._prepare(Transport.TCP, host, port)
        if self._tcp is None:
            self._tcp = TcpService(reactor, self._tcp_router, self.settings, self._limits, AccessLog())
        service = self._tcp
        return tuple(join_host_port(*service.listen(sock).address[:2]) for sock in sockets)

    async def start_udp(self, host: str, port: int) -> tuple[str, ...]:
        """The same for datagrams."""
        sockets, reactor = await self._prepare(Transport.UDP, host, port)
        if self._udp is None:
            self._udp = UdpService(reactor, self._udp_router, self.settings, self._limits, AccessLog())
        service = self._udp
        return tuple(join_host_port(*service.listen(sock).address[:2]) for sock in sockets)

    async def run_tcp(self, host: str, port: int) -> None:
        """Listen and serve until `stop` has been called, or this task is cancelled.

        Cancelling cuts connections at once; `stop` lets them finish.

        Raises:
            ListenError: the address cannot be listened on.
        """
        await self.start_tcp(host, port)
        await self._run()

    async def run_udp(self, host: str, port: int) -> None:
        """The same for datagrams."""
        await self.start_udp(host, port)
        await self._run()

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Stop accepting, let connections and sessions finish, then cut what is left.

        A UDP session has finished when it has been quiet for a second. A second call while the first waits
        makes that wait as short as its own.

        Args:
            drain_timeout_ms: how long to wait (ms), instead of `Settings.drain_timeout_ms`.

        Returns:
            How many connections and sessions were cut.
        """
        timeout_ms = self.settings.drain_timeout_ms if drain_timeout_ms is None else drain_timeout_ms
        already_stopping, self._stopping = self._stopping, True
        services = [service for service in (self._tcp, self._udp) if service is not None]
        for service in services:
            service.drain()
        waits = [asyncio.ensure_future(one.drained.wait()) for one in services if not one.drained.is_set()]
        if timeout_ms and waits:
            await asyncio.wait(waits, timeout=timeout_ms / 1000)
        for wait in waits:
            wait.cancel()
        cut = sum(service.cut(Ended.DRAINED if timeout_ms else Ended.ABORTED) for service in services)
        if cut:
            log.warning("stopped with %d connections or sessions still open: they were cut", cut)
        if not already_stopping:
            await self._resolver.stop()
            for service in services:
                service.close()
            if self._reactor is not None:
                self._reactor.close()
            self._stopped.set()
        return cut

    async def _prepare(
        self, transport: Transport, host: str, port: int
    ) -> tuple[list[socket.socket], Reactor]:
        """Sockets to serve, and what their events come from."""
        if self._stopping:
            raise RuntimeError("the engine was stopped: make a new one")
        loop = asyncio.get_running_loop()
        sockets = await bind(loop, transport, host, port)
        if self._reactor is None:
            self._reactor = Reactor(loop)
            await self._resolver.start(self.settings.connect_timeout_ms)
        return sockets, self._reactor

    async def _run(self) -> None:
        try:
            await self._stopped.wait()
        finally:
            await self.stop(drain_timeout_ms=0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def counters(self) -> Counters:
        """What has happened with TCP so far (counts and bytes)."""
        return self._tcp.counters if self._tcp is not None else Counters()

    @property
    def udp_counters(self) -> UdpCounters:
        """What has happened with UDP so far (counts and bytes)."""
        return self._udp.counters if self._udp is not None else UdpCounters()

    @property
    def active(self) -> int:
        """Connections and UDP sessions open now."""
        return self._limits.active

    def __repr__(self) -> str:
        return f"<Refractium {self.active} active>"


def _router(
    transport: Transport, routes: Sequence[Route], fallback: str | Sequence[str], settings: Settings
) -> Router:
    if wrong := [route for route in routes if route.transport is not transport]:
        raise ConfigError(Problem(f"{one} is not a route for {transport}", where=transport) for one in wrong)
    return Router(routes, _addresses(fallback, f"fallback_{transport}"), settings.peek_buffer_size)


def _addresses(texts: str | Sequence[str], where: str) -> tuple[Address, ...]:
    found, problems = [], []
    for text in (texts,) if isinstance(texts, str) else texts:
        try:
            found.append(Address.parse(text))
        except ValueError as error:
            problems.append(Problem(str(error), where=where))
    if problems:
        raise ConfigError(problems)
    return tuple(found)
