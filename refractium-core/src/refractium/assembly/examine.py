"""Examines where the first bytes of a client lead under a configuration, for ``refractium identify``.

The answer comes from the routers and dispatch tables of a `Plan`, which also serves clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from refractium.assembly.assembly import assemble, installed
from refractium.assembly.protocols import configured
from refractium.contract import (
    MAX_BYTES_LIMIT,
    NO,
    MetadataValue,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Transport,
)
from refractium.engine.plan import Plan
from refractium.errors import ConfigError
from refractium.guard.faults import text_of
from refractium.identify import Candidate, DispatchTable, Waiting
from refractium.problems import Problem, unknown_name
from refractium.proxy.forecast import Wait, forecast, instead_of
from refractium.routing.explain import Result, explain
from refractium.wire.text import brief

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from refractium.assembly.assembly import Assembly
    from refractium.assembly.sources import Overrides
    from refractium.config import Decoded
    from refractium.identify import Answer
    from refractium.plugins.installed import Plugins
    from refractium.proxy.forecast import Forecast
    from refractium.routing import Pool, Route, Router
    from refractium.routing.explain import Considered, Judged
    from refractium.settings import Settings


class GivenAnswer(Struct, frozen=True, kw_only=True):
    """The answer of one protocol.

    Attributes:
        protocol: the name of the protocol.
        strength: the `Strength` of the protocol, in lower case.
        answer: ``yes``, ``no``, ``need more`` or ``fault``.
        metadata: the metadata of a match.
        pending: the metadata keys of a match that further bytes may still add.
        bytes_needed: the number of bytes after which to ask the protocol again; None if it is unknown.
        recognised: whether the protocol needs more bytes, but has recognised its own traffic.
        error: the exception of the protocol; None without an exception.
        decides: whether the protocol decides the result, or would decide it if no more bytes came.
        why: why the protocol does not decide; empty if it decides, and for a plain ``no``.
    """

    protocol: str
    strength: str
    answer: str
    metadata: Mapping[str, MetadataValue] = {}
    pending: Sequence[str] = ()
    bytes_needed: int | None = None
    recognised: bool = False
    error: str | None = None
    decides: bool = False
    why: str = ""


class GivenCondition(Struct, frozen=True, kw_only=True):
    """A condition of a route: its key, the wanted values, the result and the value of the client."""

    key: str
    wanted: Sequence[str]
    result: Result
    actual: MetadataValue | None


class GivenRoute(Struct, frozen=True, kw_only=True):
    """A route, and why the client got or did not get this route (`refractium.routing.explain.Considered`)."""

    route: str
    protocol: str
    result: Result
    why: str
    conditions: Sequence[GivenCondition]


class Destination(Struct, frozen=True, kw_only=True):
    """Where a client goes.

    Attributes:
        outcome: the result of the identification, in the words of the metrics; None if Refractium refuses the
            client before.
        route: the label of the route, or ``fallback``; None without a route.
        forward_to: the backends of the route.
        refused: why the client reaches no backend; None if the client reaches a backend.
        why: why the client goes to the route for all other clients, or to no route.
        if_unreachable: the backends of the fallback, for the case that no backend of the route is reachable.
    """

    outcome: str | None
    route: str | None = None
    forward_to: Sequence[str] = ()
    refused: str | None = None
    why: str = ""
    if_unreachable: Sequence[str] = ()


class ProxyHeader(Struct, frozen=True, kw_only=True):
    """A PROXY header before the first bytes: its size, and the client's address and port, if it names one."""

    bytes: int
    client: str | None
    port: int | None


class Report(Struct, frozen=True, kw_only=True):
    """The protocol of first bytes, and the way of a client that has sent these bytes.

    Attributes:
        transport: the transport of the client.
        bytes: number of bytes.
        protocol: the name of the protocol; None if no protocol matches.
        metadata: the metadata of the match.
        needs_more: whether further bytes may change the result.
        bytes_needed: number of bytes, without a PROXY header, that decide; if `needs_more`, the decision
            needs at least this number of bytes. None if it is unknown.
        listener: the name of the listener; None if no listener has a route for the transport.
        listeners: the names of all listeners with a route for the transport.
        client: the IP address to which conditions and access rules apply; None if it is unknown.
        depends_on_client: whether conditions or access rules ask for the address of clients.
        proxy_header: the PROXY header before the first bytes; None without a header.
        result: where the client goes; None if this is not decided yet, or if there is no configuration.
        timeout_ms: the time (ms) after which `result_at_timeout` applies; None if `result` is known.
        timeout: the name of the setting of this time: ``peek_timeout_ms``, which begins at the accept, or
            ``peek_grace_ms``, which begins at the match of a weaker protocol.
        result_at_timeout: where the client goes if no more bytes come; None if `result` is known.
        peek_timeout_ms: the peek timeout of the listener (ms); None without a listener.
        answers: the answers of all protocols. First, the protocols that the listener asks, in this order.
        routes: all routes of the transport, in the order of the configuration.
    """

    transport: Transport
    bytes: int
    protocol: str | None
    metadata: Mapping[str, MetadataValue]
    needs_more: bool
    bytes_needed: int | None
    listener: str | None = None
    listeners: Sequence[str] = ()
    client: str | None = None
    depends_on_client: bool = False
    proxy_header: ProxyHeader | None = None
    result: Destination | None = None
    timeout_ms: int | None = None
    timeout: str | None = None
    result_at_timeout: Destination | None = None
    peek_timeout_ms: int | None = None
    answers: Sequence[GivenAnswer] = ()
    routes: Sequence[GivenRoute] = ()


class Examiner:
    """A configuration, ready to tell where clients go.

    Args:
        decoded: the configuration file.
        overrides: the flags.

    Attributes:
        assembly: the configuration; None if there are no routes.

    Raises:
        ConfigError: Refractium cannot serve the configuration.
    """

    def __init__(self, decoded: Decoded, overrides: Overrides) -> None:
        plugins = installed(overrides, decoded)
        server = decoded.config.server
        self.assembly: Assembly | None = None
        if decoded.routes or decoded.problems or server.fallbacks or overrides.forwards:
            self.assembly = assemble(decoded, overrides, plugins)
            self._plan = Plan(self.assembly.spec)
        self._protocols = list(_protocols(decoded, plugins, self.assembly))

    def listeners(self, transport: Transport) -> list[str]:
        """Return the names of the listeners with a route for a transport, the first listener first."""
        if self.assembly is None:
            return []
        return [one.name for served, one in self.assembly.wanted(tuple(Transport)) if served is transport]

    def refuse_unknown(self, listener: str, transport: Transport) -> None:
        """Raise `ConfigError` if no listener with a route for the transport has this name."""
        if listener not in (names := self.listeners(transport)):
            reason = unknown_name(listener, names) if names else f"no listener has a route for {transport}"
            raise ConfigError([Problem(reason, where="--listener")])

    def examine(
        self,
        transport: Transport,
        data: bytes,
        client: str | None = None,
        listener: str | None = None,
        *,
        has_ended: bool = False,
    ) -> Report:
        """Return the report about a client.

        Args:
            transport: the transport of the client.
            data: the first bytes of a connection, or a datagram. A connection without bytes is silent.
            client: the IP address of the client; None if it is unknown.
            listener: the name of the listener; None for the first listener of the transport.
            has_ended: whether the client has ended its stream.
        """
        names = self.listeners(transport)
        name = listener or next(iter(names), None)
        if name is None:
            return self._without_routes(transport, data, has_ended=has_ended)
        router, settings = self._plan.routers[transport][name], self._plan.settings
        way = forecast(router, settings, transport, data, client, has_ended=has_ended)
        is_silent = transport is Transport.TCP and not way.data
        asks = not is_silent and way.final.outcome is not None
        answers = list(way.router.table.explain(way.data)) if asks else []
        names_asked = {one.protocol.name for one in answers}
        others = _table([one for one in self._protocols if one.name not in names_asked], transport)
        unasked = [] if is_silent else list(others.explain(way.data))
        routes = self._plan.pools[transport].routes
        of_listener = {route.name for route, pool in routes if pool in router.pools}
        protocol, metadata = _named(answers) or _named(unasked) or (None, {})
        final = _destination(way, _why(protocol, names_asked, of_listener, is_silent=is_silent))
        considered = explain(
            routes, router, answers, way.client, way.final.pool, is_silent=is_silent, others=unasked
        )
        wait = way.now if isinstance(way.now, Wait) else None
        timeout, timeout_ms = _timeout(wait, router, settings)
        return Report(
            transport=transport,
            bytes=len(data),
            protocol=protocol,
            metadata=metadata,
            needs_more=wait is not None,
            bytes_needed=_decided_at(way) if wait is None and asks else None if wait is None else wait.needed,
            listener=name,
            listeners=names,
            client=way.client,
            depends_on_client=router.depends_on_client or router.access is not None,
            proxy_header=_header(way),
            result=final if wait is None else None,
            timeout_ms=timeout_ms,
            timeout=timeout,
            peek_timeout_ms=router.peek_timeout_ms or settings.peek_timeout_ms,
            result_at_timeout=None if wait is None else final,
            answers=[
                *_answers(answers),
                *(
                    replace(one, decides=False, why=_why_unasked(one.protocol, of_listener, way))
                    for one in _answers(unasked)
                ),
            ],
            routes=[_route(one) for one in considered] if way.final.outcome is not None else (),
        )

    def _without_routes(self, transport: Transport, data: bytes, *, has_ended: bool) -> Report:
        table = _table(self._protocols, transport)
        is_datagram = transport is Transport.UDP
        answers = list(table.explain(data)) if data or is_datagram else []
        waiting = table.decide(data, final=has_ended or is_datagram) if answers else NO
        at = table.decided_at(data) if data and not is_datagram else None
        protocol, metadata = _named(answers) or (None, {})
        return Report(
            transport=transport,
            bytes=len(data),
            protocol=protocol,
            metadata=metadata,
            needs_more=isinstance(waiting, Waiting),
            bytes_needed=waiting.at if isinstance(waiting, Waiting) else at,
            answers=list(_answers(answers)),
        )


def _protocols(decoded: Decoded, plugins: Plugins, assembly: Assembly | None) -> Iterator[Protocol]:
    """Yield all installed protocols, and the protocols that the file defines by patterns."""
    routes: Sequence[Route] = () if assembly is None else (*assembly.tcp, *assembly.udp)
    routed = [one for route in routes if not route.takes_the_rest for one in route.protocols]
    names = {(one.name, one.transport) for one in routed}
    settings = decoded.config.plugins.settings
    for one in configured(plugins, settings, []).protocols:
        if (one.name, one.transport) not in names:
            yield one
    yield from {id(one): one for one in routed}.values()  # the class of a protocol may define `__eq__`


def _table(protocols: Iterable[Protocol], transport: Transport) -> DispatchTable[str]:
    candidates = [Candidate(one, partial(_name_of, one)) for one in protocols if one.transport is transport]
    return DispatchTable(candidates, MAX_BYTES_LIMIT)


def _name_of(protocol: Protocol, _match: ProtocolMatch) -> str:
    return protocol.name


def _named(
    answers: Sequence[Answer[Pool]] | Sequence[Answer[str]],
) -> tuple[str, Mapping[str, MetadataValue]] | None:
    """Return the name and metadata of the protocol that decides or, without it, of the first that matches."""
    deciding = next((one for one in answers if one.final is not NO), None)
    found = deciding or next((one for one in answers if isinstance(one.said, ProtocolMatch)), None)
    return None if found is None else (found.protocol.name, _metadata_of(found.said))


def _why(protocol: str | None, asked: Container[str], routed: Container[str], *, is_silent: bool) -> str:
    """Return why a client goes to the route for all other clients, or to no route.

    Args:
        protocol: the name of the client's protocol; None if it is unknown.
        asked: the names of the protocols of which the listener has routes that are open to the client.
        routed: the names of the protocols of all routes of the listener.
        is_silent: whether the client has sent nothing.
    """
    if is_silent:
        return "no route takes silent clients"
    if protocol is None:
        return "no protocol matches"
    if protocol in asked:
        return f"no route for {protocol} has conditions that this client meets"
    if protocol in routed:
        return f"no route for {protocol} is open to the address of this client"
    return f"no route of this listener asks for {protocol}"


def _why_unasked(protocol: str, routed: Container[str], way: Forecast) -> str:
    if way.final.outcome is None:
        return "not asked: Refractium refuses the client before"
    if protocol in routed:
        return "not asked: no route is open to the address of this client"
    return "not asked: no route of this listener"


def _timeout(wait: Wait | None, router: Router, settings: Settings) -> tuple[str | None, int | None]:
    """Return the setting and the time (ms) after which a client that waits gets its route."""
    if wait is None:
        return None, None
    if wait.is_matched:
        return "peek_grace_ms", settings.peek_grace_ms
    return "peek_timeout_ms", router.peek_timeout_ms or settings.peek_timeout_ms


def _decided_at(way: Forecast) -> int | None:
    """Return the number of first bytes that decide; None if it is unknown."""
    if way.router.sole is not None:
        return 0
    return way.router.table.decided_at(way.data) if way.data else None


def _header(way: Forecast) -> ProxyHeader | None:
    client, port = way.named or (None, None)
    return ProxyHeader(bytes=way.header_size, client=client, port=port) if way.header_size else None


def _destination(way: Forecast, why: str) -> Destination:
    goal = way.final
    is_sure = goal.outcome is None or goal.undecided is not None
    instead = instead_of(goal, way.router)
    return Destination(
        outcome=goal.outcome,
        route=None if goal.pool is None else goal.pool.label,
        forward_to=_backends(goal.pool),
        refused=goal.refusal,
        why=why if goal.pool is way.router.fallback and not is_sure else "",
        if_unreachable=_backends(instead),
    )


def _backends(pool: Pool | None) -> list[str]:
    if pool is None:
        return []
    return [f"{one.address}{' (backup)' if one.is_backup else ''}" for one in pool.backends]


def _answers(answers: Sequence[Answer[Pool]] | Sequence[Answer[str]]) -> Iterator[GivenAnswer]:
    deciding: str | None = None
    for one in answers:
        said = one.said
        match = said if isinstance(said, ProtocolMatch) else None
        need = said if isinstance(said, NeedMore) else None
        fault = said if isinstance(said, BaseException) else None
        at = match.pending_at if match is not None and match.pending else need.at if need is not None else 0
        decides = deciding is None and one.final is not NO
        yield GivenAnswer(
            protocol=one.protocol.name,
            strength=one.protocol.strength.name.lower(),
            answer=_ANSWERS.get(type(said), "no" if fault is None else "fault"),
            metadata=_metadata_of(said),
            pending=() if match is None else sorted(match.pending),
            bytes_needed=at or None,
            recognised=need is not None and need.recognised,
            error=None if fault is None else brief(text_of(fault)),
            decides=decides,
            why="" if decides else _why_not(one, deciding),
        )
        if decides:
            deciding = one.protocol.name


_ANSWERS: Final[Mapping[type, str]] = {ProtocolMatch: "yes", NeedMore: "need more"}


def _why_not(answer: Answer[Pool] | Answer[str], deciding: str | None) -> str:
    """Return why a protocol does not decide; empty if its answer is a plain `NO`.

    Args:
        answer: the answer of the protocol.
        deciding: the name of an earlier protocol that decides; None without such a protocol.
    """
    if answer.said is NO:
        return "" if answer.is_asked else "not asked: its first byte is another"
    if isinstance(answer.said, BaseException):
        return "a fault counts as no"
    if deciding is not None:
        return f"{deciding} is asked earlier"
    if isinstance(answer.said, ProtocolMatch):
        return "the client does not meet the conditions of its routes"
    too_long = f"counts as no: it reads at most {answer.protocol.max_bytes} bytes"
    return too_long if answer.now is NO else "counts as no if no more bytes come"


def _route(one: Considered) -> GivenRoute:
    return GivenRoute(
        route=one.route.label,
        protocol=one.route.name,
        result=one.result,
        why=one.why,
        conditions=[_condition(condition) for condition in one.conditions],
    )


def _condition(one: Judged) -> GivenCondition:
    return GivenCondition(key=one.key, wanted=one.wanted, result=one.result, actual=one.actual)


def _metadata_of(said: object) -> Mapping[str, MetadataValue]:
    return said.metadata if isinstance(said, ProtocolMatch) else {}
