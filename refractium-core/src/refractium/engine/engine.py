"""The engine, which a program that embeds Refractium starts and stops."""

from __future__ import annotations

import asyncio
import logging
import os
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
from refractium.observe.access_lines import AccessLogger
from refractium.proxy.counters import TcpCounters, UdpCounters
from refractium.proxy.limiter import Limiter
from refractium.proxy.summary import Ended
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
    from refractium.proxy.summary import Reporter
    from refractium.routing import ListenerRules, Route
    from refractium.settings import Settings

log = logging.getLogger(__name__)

_FLUSH_SECONDS: Final = 1.0
"""Longest time (s) that a stop waits for the hooks to receive the packets in their queues."""


class Shared(NamedTuple):
    """State that the engine of a worker shares with the engines of the other workers.

    Attributes:
        limiters: the limiter of each transport. Its limits apply to all these engines together.
        authorities: for each transport, the object that decides which backends are up.
    """

    limiters: Mapping[Transport, Limiter]
    authorities: Mapping[Transport, Authority]


class Refractium:
    """A proxy with its listeners, routes and limits.

    ::

        engine = Refractium(tcp=[Route(my_proto, "127.0.0.1:8080")])
        await engine.run_tcp("0.0.0.0", 8081)

    `run_tcp` and `run_udp` serve until `stop` returns or their task is cancelled. A program that runs its
    own event loop uses `start_tcp`, `start_udp` and `stop`. An engine serves once: after `stop`, make a new
    engine. An engine installs no signal handlers and configures no logging.

    Args:
        tcp: see `EngineSpec.tcp`.
        udp: see `EngineSpec.udp`.
        fallback_tcp: see `EngineSpec.fallback_tcp`.
        fallback_udp: see `EngineSpec.fallback_udp`.
        settings: see `EngineSpec.settings`.
        listeners: see `EngineSpec.listeners`.
        hooks: see `EngineSpec.hooks`.
        report: the object that receives a summary of each finished connection and session; by default the
            access log.

    Raises:
        ConfigError: an argument is not valid, or routes cannot be used together.
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
        _shared: Shared | None = None,
    ) -> None:
        self._started = status.now()
        self._report = report or AccessLogger()
        self._authorities = _shared.authorities if _shared is not None else None
        spec = EngineSpec(tcp, udp, fallback_tcp, fallback_udp, settings, listeners, hooks)
        self._plan = Plan(spec, authorities=self._authorities)
        self._hooks = Hooks()
        self._limiters = (
            _shared.limiters
            if _shared is not None
            else {transport: Limiter(settings, transport) for transport in Transport}
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
    def of(cls, spec: EngineSpec, *, report: Reporter | None = None, _shared: Shared | None = None) -> Self:
        """Make an engine from a spec; for `report` see `Refractium`.

        Raises:
            ConfigError: a part of the spec is not valid, or routes cannot be used together.
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
            _shared=_shared,
        )

    @property
    def settings(self) -> Settings:
        """The limits and timeouts for new connections."""
        return self._plan.settings

    async def start_tcp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """Listen on an address and serve its TCP clients. Call this method again for each further address.

        Args:
            host: an IP address or a host name; ``::`` also accepts IPv4 clients.
            port: the port; 0 means any free port.
            listener: the name of the listener rules that apply, a key of `EngineSpec.listeners`.

        Returns:
            The addresses on which this call has begun to listen, as ``HOST:PORT``.

        Raises:
            ListenError: the engine cannot listen on the address; earlier listeners continue to serve.
            RuntimeError: the engine was stopped.
            ValueError: no listener rules have this name.
        """
        return await self._start(Transport.TCP, host, port, listener)

    async def start_udp(self, host: str, port: int, listener: str = "") -> tuple[str, ...]:
        """Listen on an address and serve its UDP clients. Arguments and result are like those of `start_tcp`.

        Raises:
            ListenError: the engine cannot listen on the address; earlier listeners continue to serve.
            RuntimeError: the engine was stopped.
            ValueError: no listener rules have this name.
        """
        return await self._start(Transport.UDP, host, port, listener)

    async def start_on(self, sock: socket.socket, listener: str = "", *, is_shared: bool = False) -> str:
        """Serve on a socket that is already bound, for instance by systemd.

        Args:
            sock: a stream socket that listens, or a datagram socket. The engine owns the socket from now on.
            listener: the name of the listener rules that apply, a key of `EngineSpec.listeners`.
            is_shared: whether other processes may use the socket as well, for instance the next process of a
                service. While the engine stops, it leaves the datagrams of a shared UDP socket to the other
                processes, and open sessions only receive answers.

        Returns:
            The address of the socket, as ``HOST:PORT``.

        Raises:
            RuntimeError: the engine was stopped.
            ValueError: no listener rules have this name.
        """
        prepare(sock)
        transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
        (address,) = await self._listen(transport, [sock], listener, [sock] if is_shared else [])
        return address

    def reserve(self, sock: socket.socket) -> None:
        """Do nothing: one process needs only the bound socket (see `Supervisor.reserve`)."""

    async def run_tcp(self, host: str, port: int, listener: str = "") -> None:
        """Listen, and serve TCP clients until `stop` has finished or this task is cancelled.

        Cancelling the task cuts connections at once; `stop` waits until connections have finished.

        Raises:
            ListenError: the engine cannot listen on the address.
            RuntimeError: the engine was stopped.
            ValueError: no listener rules have this name.
        """
        await self.start_tcp(host, port, listener)
        await self._run()

    async def run_udp(self, host: str, port: int, listener: str = "") -> None:
        """Listen, and serve UDP clients until `stop` has finished or this task is cancelled.

        Cancelling the task cuts sessions at once; `stop` waits until sessions have finished.

        Raises:
            ListenError: the engine cannot listen on the address.
            RuntimeError: the engine was stopped.
            ValueError: no listener rules have this name.
        """
        await self.start_udp(host, port, listener)
        await self._run()

    async def apply(self, spec: EngineSpec) -> None:
        """Replace the routes, limits and timeouts.

        Open connections and sessions keep the routes and timeouts with which they began. A backend that is
        in `spec` with the same health settings keeps its state. The engine first resolves and checks new
        backends, as at the start. A listener that `spec` does not name keeps its former rules until
        `stop_listening` closes the listener.

        Raises:
            ConfigError: `spec` is not valid; the engine has changed nothing.
            RuntimeError: the engine was stopped.
        """
        serve = await self.prepare(spec)
        await serve()

    async def prepare(self, spec: EngineSpec) -> Callable[[], Awaitable[None]]:
        """Prepare `apply` without any change: resolve names and check backends, which takes time.

        If the task is cancelled, the engine ends all lookups and health checks that this call began.

        Returns:
            The function that puts `spec` into effect. Call this function once.

        Raises:
            ConfigError: `spec` is not valid.
            RuntimeError: the engine was stopped.
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
        for limiter in self._limiters.values():
            limiter.apply(plan.settings)
        for transport, service in ((Transport.TCP, self._tcp), (Transport.UDP, self._udp)):
            if service is not None:
                service.apply(plan.routers[transport], plan.settings)
        self._generation += 1
        self._last_reload = status.Reload(status.now(), ok=True)
        await former.stop()

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Record for `status` that a new configuration was refused; `apply` records accepted configurations.

        Args:
            errors: the reasons.
        """
        self._reloads_failed += 1
        self._last_reload = status.Reload(status.now(), ok=False, errors=tuple(errors))

    async def stop_listening(self, transport: Transport | Literal["tcp", "udp"], address: str) -> None:
        """Close the listener on an address that `start_tcp` or `start_udp` returned.

        Open connections continue, but UDP sessions end. When this method returns, other programs can listen
        on the address.

        Raises:
            ValueError: the engine does not listen on the address.
        """
        service = self._tcp if Transport(transport) is Transport.TCP else self._udp
        for listener in service.listeners if service is not None else ():
            if join_host_port(*listener.address[:2]) == address:
                service.stop_listening(listener)  # type: ignore[union-attr, arg-type]
                await asyncio.sleep(0)  # let the reactor run once, to close the socket
                return
        raise ValueError(f"{transport}://{address} is not listened on")

    async def stop_accepting(self) -> None:
        """Leave all further clients to other processes on the same sockets; `stop` begins with this step."""
        for service in (self._tcp, self._udp):
            if service is not None:
                service.drain()

    async def stop(self, drain_timeout_ms: int | None = None) -> int:
        """Stop accepting clients, let connections and sessions finish, then cut all that are still open.

        A UDP session has finished when it has been silent for one second. If `stop` is called again while the
        first call still waits, the first call ends its wait when the second call does, or before.

        Args:
            drain_timeout_ms: the time to wait (ms), instead of `Settings.drain_timeout_ms`.

        Returns:
            The number of connections and sessions that were cut.
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
        self,
        transport: Transport,
        sockets: Sequence[socket.socket],
        listener: str,
        shared: Sequence[socket.socket] = (),
    ) -> tuple[str, ...]:
        """Serve on bound sockets; clients wait in the queues of the sockets until the plan is prepared."""
        self._plan.refuse_unknown(listener)
        if self._reactor is None:
            self._reactor = Reactor(asyncio.get_running_loop())
        await self._plan.prepare(transport)
        if self._stopping:
            for sock in sockets:
                sock.close()
            raise RuntimeError("the engine was stopped before it could listen: make a new one")
        self._hooks.use(self._plan.hooks)
        service = self._service(transport, self._reactor)
        if isinstance(service, UdpService):
            service.shared.update(shared)
        return tuple(join_host_port(*service.listen(sock, listener).address[:2]) for sock in sockets)

    def _service(self, transport: Transport, reactor: Reactor) -> TcpService | UdpService:
        """Return the service of a transport; the first call makes it."""
        what = (
            reactor,
            self._plan.routers[transport],
            self.settings,
            self._limiters[transport],
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
    def counters(self) -> TcpCounters:
        """The counts and bytes of TCP connections so far."""
        return self._tcp.counters if self._tcp is not None else TcpCounters()

    @property
    def udp_counters(self) -> UdpCounters:
        """The counts and bytes of UDP sessions so far."""
        return self._udp.counters if self._udp is not None else UdpCounters()

    @property
    def active(self) -> int:
        """The number of connections and UDP sessions that are open now."""
        return sum(limiter.active for limiter in self._limiters.values())

    @property
    def generation(self) -> int:
        """The number of configurations so far: 1 at the start, and one more after each `apply`."""
        return self._generation

    async def status(self) -> Status:
        """Return the status of the engine at this moment."""
        return self.status_now()

    def status_now(self) -> Status:
        """Return the status at once, for callers in the engine's event loop that cannot await `status`."""
        pools = self._plan.pools
        tcp, udp = self._tcp, self._udp
        return status.Status(
            version=__version__,
            pid=os.getpid(),
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
