"""The engine: what a program that embeds Refractium starts and stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from refractium._version import __version__
from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.engine.plan import Plan
from refractium.engine.spec import DEFAULTS, ONE_LISTENER, EngineSpec
from refractium.hooks import Hooks
from refractium.observe import collect, status
from refractium.observe.access_log import AccessLog
from refractium.proxy.counters import Counters, UdpCounters
from refractium.proxy.limits import Limits
from refractium.proxy.outcome import Ended
from refractium.proxy.tcp import TcpService
from refractium.proxy.udp import UdpService
from refractium.sockets.bind import addresses_of, bind, prepare
from refractium.sockets.descriptors import Descriptors
from refractium.sockets.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import Self

    from refractium.backends.state import Authority
    from refractium.hooks import HookUse
    from refractium.observe.status import Status
    from refractium.proxy.outcome import Reporter
    from refractium.routing import ListenerRules, Route
    from refractium.settings import Settings

log = logging.getLogger(__name__)

_FLUSH_SECONDS: Final = 1.0
"""How long hooks have at a stop for what is in their queues."""


class Shared(NamedTuple):
    """What an engine has in common with others that serve the same on the same addresses.

    Attributes:
        limits: those of each transport, which hold over all of them.
        authorities: who decides what is believed of the backends of each transport.
    """

    limits: Mapping[Transport, Limits]
    authorities: Mapping[Transport, Authority]


class Refractium:
    """One proxy: routes, limits, and the listeners they apply to.

    ::

        engine = Refractium(tcp=[Route(my_proto, "127.0.0.1:8080")])
        await engine.run_tcp("0.0.0.0", 8081)

    `run_tcp` and `run_udp` serve until `stop` is called or their task is cancelled. A program with a loop of
    its own uses `start_tcp`, `start_udp` and `stop`. An engine serves once: after `stop` make a new one. It
    installs no signal handlers and configures no logging.

    Args:
        tcp: like the arguments up to `hooks`, the attribute of `EngineSpec` of this name.
        udp: see `EngineSpec`.
        fallback_tcp: see `EngineSpec`.
        fallback_udp: see `EngineSpec`.
        settings: see `EngineSpec`.
        listeners: see `EngineSpec`.
        hooks: see `EngineSpec`.
        report: told of every connection and session that ended; by default the access log.
        shared: what it has in common with other engines, if it is one of several (`refractium.workers`).

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
        settings: Settings = DEFAULTS,
        listeners: Mapping[str, ListenerRules] = ONE_LISTENER,
        hooks: Sequence[HookUse] = (),
        report: Reporter | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._started = status.now()
        self._report = report or AccessLog()
        self._authorities = shared.authorities if shared is not None else None
        spec = EngineSpec(tcp, udp, fallback_tcp, fallback_udp, settings, listeners, hooks)
        self._plan = Plan(spec, authorities=self._authorities)
        self._hooks = Hooks()
        self._limits = (
            shared.limits
            if shared is not None
            else {transport: Limits(settings, transport) for transport in Transport}
        )
        self._descriptors = Descriptors(lambda: self._tcp.awaiting_socket if self._tcp is not None else 0)
        self._reactor: Reactor | None = None
        self._tcp: TcpService | None = None
        self._udp: UdpService | None = None
        self._stopped = asyncio.Event()
        self._stopping = False
        self._generation = 1
        self._reloads_failed = 0
        self._last_reload: status.Reload | None = None

    @classmethod
    def of(cls, spec: EngineSpec, *, report: Reporter | None = None, shared: Shared | None = None) -> Self:
        """Make an engine of a spec; the other arguments are those of the class.

        Raises:
            ConfigError: routes that cannot be used together, a bad address.
        """
        return cls(
            spec.tcp,
            spec.udp,
            fallback_tcp=spec.fallback_tcp,
            fallback_udp=spec.fallback_udp,
            settings=spec.settings,
            listeners=spec.listeners,
            hooks=spec.hooks,
            report=report,
            shared=shared,
        )

    @property
    def settings(self) -> Settings:
        """Limits and timeouts, as they are for connections to come."""
        return self._plan.settings

    async def start_tcp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """Listen and serve. May be called again for further addresses.

        Args:
            host: an address or a name; ``::`` takes IPv4 clients as well.
            port: 0 takes a free one.
            listener: by whose rules.

        Returns:
            The addresses listened on, as ``HOST:PORT``.

        Raises:
            ListenError: the address cannot be listened on; what was started before goes on.
            RuntimeError: the engine was stopped.
            ValueError: there are no rules of a listener of this name.
        """
        return await self._start(Transport.TCP, host, port, listener)

    async def start_udp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """The same for datagrams."""
        return await self._start(Transport.UDP, host, port, listener)

    async def start_on(self, sock: socket.socket, listener: str = "") -> str:
        """The same on a socket that somebody else has bound, such as systemd.

        Args:
            sock: a stream socket that listens, or a datagram socket; the engine's from now on.
            listener: by whose rules.

        Returns:
            The address listened on, as ``HOST:PORT``.
        """
        prepare(sock)
        transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
        (address,) = await self._listen(transport, [sock], listener)
        return address

    def reserve(self, sock: socket.socket) -> None:
        """Do nothing: one process needs no socket beside the bound one (see `Supervisor.reserve`)."""

    async def run_tcp(self, host: str, port: int, listener: str = "") -> None:
        """Listen and serve until `stop` has been called, or this task is cancelled.

        Cancelling cuts connections at once; `stop` lets them finish.

        Raises:
            ListenError: the address cannot be listened on.
        """
        await self.start_tcp(host, port, listener)
        await self._run()

    async def run_udp(self, host: str, port: int, listener: str = "") -> None:
        """The same for datagrams."""
        await self.start_udp(host, port, listener)
        await self._run()

    async def apply(self, spec: EngineSpec) -> None:
        """Serve by other routes, limits and timeouts from now on.

        Open connections and sessions keep the routes and timeouts that they began with. What is known of
        backends that stay is kept. New backends are resolved and checked first, as at the start. A listener
        that `spec` does not name goes on by its former rules until it is stopped.

        Raises:
            ConfigError: nothing has changed.
            RuntimeError: the engine was stopped.
        """
        serve = await self.prepare(spec)
        await serve()

    async def prepare(self, spec: EngineSpec) -> Callable[[], Awaitable[None]]:
        """Do the part of `apply` that takes time and changes nothing: resolve names, check backends.

        Cancelling leaves nothing behind.

        Returns:
            The rest of `apply`, to be called once.

        Raises:
            ConfigError: same as `apply`.
            RuntimeError: same as `apply`.
        """
        plan = Plan(spec, successor_of=self._plan, authorities=self._authorities)
        try:
            for transport in self._plan.prepared:
                await plan.prepare(transport)
            if self._stopping:
                raise RuntimeError("the engine was stopped: make a new one")  # noqa: TRY301
        except BaseException:
            await plan.stop()
            raise
        return partial(self._serve_by, plan)

    async def _serve_by(self, plan: Plan) -> None:
        former, self._plan = self._plan, plan
        if self._reactor is not None:
            self._hooks.use(plan.hooks)
        for limits in self._limits.values():
            limits.apply(plan.settings)
        for transport, service in ((Transport.TCP, self._tcp), (Transport.UDP, self._udp)):
            if service is not None:
                service.apply(plan.routers[transport], plan.settings)
        self._generation += 1
        self._last_reload = status.Reload(status.now(), ok=True)
        await former.stop()

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Have `status` tell that a new configuration was no good; `apply` tells of those that were."""
        self._reloads_failed += 1
        self._last_reload = status.Reload(status.now(), ok=False, errors=tuple(errors))

    async def stop_listening(self, transport: Transport | Literal["tcp", "udp"], address: str) -> None:
        """Give up one of the addresses that `start_tcp` or `start_udp` gave; its connections go on.

        When it returns, the address is free for others.

        Raises:
            ValueError: it is not listened on.
        """
        service = self._tcp if Transport(transport) is Transport.TCP else self._udp
        for listener in service.listeners if service is not None else ():
            if join_host_port(*listener.address[:2]) == address:
                service.stop_listening(listener)  # type: ignore[union-attr, arg-type]
                await asyncio.sleep(0)  # in which the reactor closes the socket
                return
        raise ValueError(f"{transport}://{address} is not listened on")

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
            await self._plan.stop()
            await self._hooks.stop(_FLUSH_SECONDS)
            for service in services:
                service.close()
            if self._reactor is not None:
                self._reactor.close()
            self._stopped.set()
        return cut

    async def _start(self, transport: Transport, host: str, port: int, listener: str) -> tuple[str, ...]:
        if self._stopping:
            raise RuntimeError("the engine was stopped: make a new one")
        self._plan.refuse_unknown(listener)
        sockets = bind(transport, host, port, await addresses_of(transport, host, port))
        return await self._listen(transport, sockets, listener)

    async def _listen(
        self, transport: Transport, sockets: Sequence[socket.socket], listener: str
    ) -> tuple[str, ...]:
        """Serve on bound sockets; clients that connect before it is prepared wait in their queues."""
        self._plan.refuse_unknown(listener)
        if self._reactor is None:
            self._reactor = Reactor(asyncio.get_running_loop())
        await self._plan.prepare(transport)
        if self._stopping:
            for sock in sockets:
                sock.close()
            raise RuntimeError("the engine was stopped meanwhile")
        self._hooks.use(self._plan.hooks)
        service = self._service(transport, self._reactor)
        return tuple(join_host_port(*service.listen(sock, listener).address[:2]) for sock in sockets)

    def _service(self, transport: Transport, reactor: Reactor) -> TcpService | UdpService:
        """The service of a transport, made when it is first needed."""
        what = (
            reactor,
            self._plan.routers[transport],
            self.settings,
            self._limits[transport],
            self._report,
            self._descriptors,
        )
        if transport is Transport.TCP:
            self._tcp = self._tcp or TcpService(*what)
            return self._tcp
        self._udp = self._udp or UdpService(*what)
        return self._udp

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
        return sum(limits.active for limits in self._limits.values())

    @property
    def generation(self) -> int:
        """How many configurations have been in force: one more with every `apply`."""
        return self._generation

    async def status(self) -> Status:
        """Tell everything that is known at this moment."""
        return self.status_now()

    def status_now(self) -> Status:
        """Same as `status`, for callers that run in the loop of the engine and cannot wait."""
        pools = self._plan.pools
        tcp, udp = self._tcp, self._udp
        return status.Status(
            version=__version__,
            started=self._started,
            at=status.now(),
            generation=self._generation,
            reloads_failed=self._reloads_failed,
            last_reload=self._last_reload,
            listeners=(
                *collect.listeners(Transport.TCP, tcp.listeners if tcp is not None else ()),
                *collect.listeners(Transport.UDP, udp.listeners if udp is not None else ()),
            ),
            routes=tuple(
                found for transport, those in pools.items() for found in collect.routes(transport, those)
            ),
            tcp=collect.tcp(
                self.counters,
                tcp.connections if tcp is not None else (),
                self._plan.faults[Transport.TCP],
            ),
            udp=collect.udp(
                self.udp_counters,
                udp.sessions.values() if udp is not None else (),
                self._plan.faults[Transport.UDP],
            ),
            hooks=tuple(collect.hooks(self._hooks)),
        )

    def __repr__(self) -> str:
        return f"<Refractium {self.active} active>"
