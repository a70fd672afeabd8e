"""The engine: what a program that embeds Refractium starts and stops."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from refractium import __version__, status
from refractium.access import AccessLog
from refractium.address import Address
from refractium.contract import Transport
from refractium.errors import ConfigError, Problem
from refractium.hooks import Hooks, HookSet, used
from refractium.net.bind import bind, prepare
from refractium.net.checker import Checker
from refractium.net.checks import resolved
from refractium.net.counters import Counters, UdpCounters
from refractium.net.limits import Limits
from refractium.net.reactor import Reactor
from refractium.net.report import Ended, join_host_port
from refractium.net.resolver import Resolver
from refractium.net.tcp import TcpService
from refractium.net.udp import UdpService
from refractium.networks import parse_network
from refractium.routing import ListenerRules, Pools, Router
from refractium.routing.route import hook_problems
from refractium.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

    from refractium.hooks import HookUse, UsedHook
    from refractium.net.report import Reporter
    from refractium.routing import Route

log = logging.getLogger(__name__)

_DEFAULTS = Settings()
_FLUSH_SECONDS: Final = 1.0
"""How long hooks have at a stop for what is in their queues."""
_ONE_LISTENER: Final = {"": ListenerRules()}


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
        listeners: the rules of listeners, by a name that `start_tcp`, `start_udp` and `start_on` are given.
            By default there is one, which they need not be told, and it serves every route to everybody.
        hooks: packet hooks of every route and of the fallbacks, as `Route` takes them.
        report: told of every connection and session that ended; by default the access log.

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
        listeners: Mapping[str, ListenerRules] = _ONE_LISTENER,
        hooks: Sequence[HookUse] = (),
        report: Reporter | None = None,
    ) -> None:
        self._started = status.now()
        self._report = report or AccessLog()
        self._plan = _Plan(tcp, udp, fallback_tcp, fallback_udp, settings, listeners, hooks)
        self._hooks = Hooks()
        self._limits = Limits(settings)
        self._reactor: Reactor | None = None
        self._tcp: TcpService | None = None
        self._udp: UdpService | None = None
        self._stopped = asyncio.Event()
        self._stopping = False
        self._generation = 1
        self._reloads_failed = 0
        self._last_reload: status.Reload | None = None

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

    async def apply(
        self,
        tcp: Sequence[Route] = (),
        udp: Sequence[Route] = (),
        *,
        fallback_tcp: str | Sequence[str] = (),
        fallback_udp: str | Sequence[str] = (),
        settings: Settings = _DEFAULTS,
        listeners: Mapping[str, ListenerRules] = _ONE_LISTENER,
        hooks: Sequence[HookUse] = (),
    ) -> None:
        """Serve by other routes, limits and timeouts from now on; the arguments are those of the class.

        Connections and sessions that are there keep what they were begun with. What is known of backends that
        stay is kept. New backends are resolved and checked first, as at the start. A listener that has no
        rules any more goes on by those it had, until it is stopped.

        Raises:
            ConfigError: nothing has changed.
            RuntimeError: the engine was stopped.
        """
        plan = _Plan(
            tcp, udp, fallback_tcp, fallback_udp, settings, listeners, hooks, successor_of=self._plan
        )
        services = {Transport.TCP: self._tcp, Transport.UDP: self._udp}
        try:
            for transport, service in services.items():
                if service is not None:
                    await plan.prepare(transport)
            if self._stopping:
                raise RuntimeError("the engine was stopped: make a new one")  # noqa: TRY301
        except BaseException:
            await plan.stop()
            raise
        former, self._plan = self._plan, plan
        if self._reactor is not None:
            self._hooks.use(plan.hooks)
        self._limits.apply(settings)
        for transport, service in services.items():
            if service is not None:
                service.apply(plan.routers[transport], settings)
        self._generation += 1
        self._last_reload = status.Reload(status.now(), ok=True)
        await former.stop()

    def reload_failed(self, errors: Sequence[str]) -> None:
        """Have `status` tell that a new configuration was no good; `apply` tells of those that were."""
        self._reloads_failed += 1
        self._last_reload = status.Reload(status.now(), ok=False, errors=tuple(errors))

    def stop_listening(self, transport: Transport | Literal["tcp", "udp"], address: str) -> None:
        """Give up one of the addresses that `start_tcp` or `start_udp` gave; its connections go on.

        Raises:
            ValueError: it is not listened on.
        """
        service = self._tcp if Transport(transport) is Transport.TCP else self._udp
        for listener in service.listeners if service is not None else ():
            if join_host_port(*listener.address[:2]) == address:
                service.stop_listening(listener)  # type: ignore[union-attr, arg-type]
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
        sockets = await bind(asyncio.get_running_loop(), transport, host, port)
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
        what = (reactor, self._plan.routers[transport], self.settings, self._limits, self._report)
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
        return self._limits.active

    @property
    def generation(self) -> int:
        """How many configurations have been in force: one more with every `apply`."""
        return self._generation

    def status(self) -> status.Status:
        """All that is known at this moment. To be called where the engine runs, in the thread of its loop."""
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
                *status.listeners(Transport.TCP, tcp.listeners if tcp is not None else ()),
                *status.listeners(Transport.UDP, udp.listeners if udp is not None else ()),
            ),
            routes=tuple(
                found for transport, those in pools.items() for found in status.routes(transport, those)
            ),
            tcp=status.tcp(
                self.counters,
                tcp.connections if tcp is not None else (),
                self._plan.faults[Transport.TCP],
            ),
            udp=status.udp(
                self.udp_counters,
                udp.sessions.values() if udp is not None else (),
                self._plan.faults[Transport.UDP],
            ),
            hooks=tuple(status.hooks(self._hooks)),
        )

    def __repr__(self) -> str:
        return f"<Refractium {self.active} active>"


class _Plan:
    """What one configuration comes to: routers, settings, and who keeps the backends' addresses and states.

    Args:
        tcp: as `Refractium` takes them, like the others.
        udp: the same.
        fallback_tcp: the same.
        fallback_udp: the same.
        settings: the same.
        listeners: the same.
        hooks: the same.
        successor_of: whose knowledge of backends is taken over.
    """

    def __init__(
        self,
        tcp: Sequence[Route],
        udp: Sequence[Route],
        fallback_tcp: str | Sequence[str],
        fallback_udp: str | Sequence[str],
        settings: Settings,
        listeners: Mapping[str, ListenerRules],
        hooks: Sequence[HookUse],
        successor_of: _Plan | None = None,
    ) -> None:
        _refuse_bad_networks(settings)
        self.settings = settings
        if problems := list(hook_problems(hooks)):
            raise ConfigError(problems)
        self.hooks: HookSet = HookSet(successor_of.hooks if successor_of is not None else None)
        for_all = tuple(map(used, hooks))
        self.pools: dict[Transport, Pools] = {
            transport: _pools(
                transport,
                routes,
                fallback,
                successor_of.pools[transport] if successor_of is not None else None,
                self.hooks,
                for_all,
            )
            for transport, routes, fallback in (
                (Transport.TCP, tcp, fallback_tcp),
                (Transport.UDP, udp, fallback_udp),
            )
        }
        _refuse_bad_rules(listeners, (*tcp, *udp))
        # They are counted from the start on.
        self.faults: dict[Transport, Counter[str]] = (
            successor_of.faults
            if successor_of is not None
            else {transport: Counter() for transport in Transport}
        )
        self.routers = {
            transport: {
                name: Router(pools, settings.peek_buffer_size, rules, self.faults[transport])
                for name, rules in listeners.items()
            }
            for transport, pools in self.pools.items()
        }
        self._resolver = Resolver([backend for pools in self.pools.values() for backend in pools.backends])
        self._is_resolving = False
        self._checkers = {
            transport: Checker(transport, pools.backends) for transport, pools in self.pools.items()
        }

    def refuse_unknown(self, listener: str) -> None:
        """Raise `ValueError` if there are no rules of a listener of this name."""
        if listener not in self.routers[Transport.TCP]:
            names = ", ".join(map(repr, self.routers[Transport.TCP]))
            raise ValueError(f"there is no listener {listener!r}: there are {names}")

    async def prepare(self, transport: Transport) -> None:
        """Look up names and check backends for the first time; each for a bounded time."""
        if not self._is_resolving:
            self._is_resolving = True
            await self._resolver.start(self.settings.connect_timeout_ms)
        await self._checkers[transport].start()

    async def stop(self) -> None:
        """Look nothing up and check nothing any more."""
        for checker in self._checkers.values():
            await checker.stop()
        await self._resolver.stop()


def _pools(
    transport: Transport,
    routes: Sequence[Route],
    fallback: str | Sequence[str],
    former: Pools | None,
    hooks: HookSet,
    for_all: Sequence[UsedHook],
) -> Pools:
    if wrong := [route for route in routes if route.transport is not transport]:
        raise ConfigError(Problem(f"{one} is not a route for {transport}", where=transport) for one in wrong)
    routes = [replace(route, health=resolved(route.health, transport)) for route in routes]
    targets = _addresses(fallback, f"fallback_{transport}")
    known = former.states if former is not None else None
    pools = Pools(routes, targets, known, hooks=hooks, for_all=for_all)
    if former is not None:
        _keep_addresses(pools, former)
    return pools


def _keep_addresses(pools: Pools, former: Pools) -> None:
    """Until a name is looked up again, and should that fail, the last good answer holds."""
    found = {backend.address: backend.socket_addresses for backend in former.backends}
    for backend in pools.backends:
        if backend.address.is_name:
            backend.socket_addresses = found.get(backend.address, ())


def _refuse_bad_rules(listeners: Mapping[str, ListenerRules], routes: Sequence[Route]) -> None:
    labels = {name for route in routes for name in (route.label, route.name)}
    if problems := [
        Problem(problem.message, where=f"listeners[{name!r}].{problem.where}")
        for name, rules in listeners.items()
        for problem in rules.problems(labels)
    ]:
        raise ConfigError(problems)


def _refuse_bad_networks(settings: Settings) -> None:
    problems = []
    for index, text in enumerate(settings.proxy_protocol_from):
        try:
            parse_network(text)
        except ValueError as error:
            problems.append(Problem(str(error), where=f"settings.proxy_protocol_from[{index}]"))
    if problems:
        raise ConfigError(problems)


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
