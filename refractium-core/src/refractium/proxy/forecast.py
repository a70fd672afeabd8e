"""Forecasts where the first bytes of a client lead, without a connection, for people who ask why.

`forecast` asks the same router, dispatch table and access rules as `Connection` and `UdpService`, in the same
order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from refractium.addresses.networks import Networks, plain_ip
from refractium.contract import NEED_MORE, NO, Transport, Verdict
from refractium.identify import Undecided, Waiting
from refractium.proxy.counters import DENIED, REJECTED, Outcome, why_refused
from refractium.proxy.summary import Ended
from refractium.wire.proxy_protocol import parse

if TYPE_CHECKING:
    from refractium.contract import ProtocolMatch
    from refractium.identify import Decision
    from refractium.routing import Pool, Router
    from refractium.settings import Settings
    from refractium.wire.proxy_protocol import HostPort


@dataclass(frozen=True, slots=True)
class Goal:
    """The pool to which a client goes, or the reason for which Refractium refuses the client.

    Attributes:
        outcome: the result of the identification; None if Refractium refuses the client before.
        pool: the chosen pool; None without a pool.
        match: the match of the protocol that has decided; None without such a match.
        undecided: the refusal of a client whose protocol is known; None for all other clients.
        refusal: the reason for which the client reaches no backend; None if the client reaches a backend.
    """

    outcome: Outcome | None
    pool: Pool | None = None
    match: ProtocolMatch | None = None
    undecided: Undecided | None = None
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """The state of a connection while its first bytes allow no decision.

    Attributes:
        needed: number of bytes from the start of the stream, after the PROXY header. Fewer bytes allow no
            decision. None while the PROXY header is not complete.
        is_matched: see `Waiting`.
    """

    needed: int | None
    is_matched: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """The way of a client.

    Attributes:
        client: the IP address to which access rules and conditions apply; None if it is unknown.
        named: the address and port in the PROXY header; None without such an address.
        header_size: number of bytes of the PROXY header; 0 without a header.
        data: the bytes that the dispatch table gets: the first bytes without the PROXY header.
        router: the router for the client.
        now: the goal, if the bytes decide; else what the connection waits for.
        final: the goal if no more bytes arrive.
    """

    client: str | None
    named: HostPort | None
    header_size: int
    data: bytes
    router: Router
    now: Goal | Wait
    final: Goal


_Step: TypeAlias = "tuple[Goal | Wait, Goal]"


def forecast(
    router: Router,
    settings: Settings,
    transport: Transport,
    data: bytes,
    client: str | None,
    *,
    has_ended: bool = False,
) -> Forecast:
    """Return the way of a client with some first bytes.

    Args:
        router: the router of the listener.
        settings: the settings of the instance.
        transport: the transport of the client.
        data: the first bytes of the connection, or the datagram. A connection without bytes is silent.
        client: the IP address of the client's socket. With None, every condition and access rule on the
            address holds, and a client whose bytes start with a PROXY header is a trusted proxy, if
            `settings` trusts any proxy.
        has_ended: whether the client has ended its stream.
    """
    ip = None if client is None else plain_ip(client)
    header_size, named = 0, None
    if transport is Transport.TCP and _is_trusted(settings, ip, data):
        parsed = parse(data)
        no_header = Goal(None, refusal=Ended.NO_HEADER)
        if not data and has_ended:
            no_header = _LEFT
        if parsed is NEED_MORE and not has_ended:
            return Forecast(ip, None, 0, data, router, Wait(None), no_header)
        if isinstance(parsed, Verdict) or parsed[0].transport is Transport.UDP:
            return Forecast(ip, None, 0, data, router, no_header, no_header)
        header, header_size = parsed
        data, named = data[header_size:], header.source
        if named is not None:
            ip = named[0]
    if ip is not None:
        if not router.admits(ip):
            denied = Goal(None, refusal=why_refused(DENIED))
            return Forecast(ip, named, header_size, data, router, denied, denied)
        router = router.for_client(ip)
    if transport is Transport.UDP:
        goal = _follow(router, router.table.decide(data, final=True), ip, transport)
        return Forecast(ip, named, header_size, data, router, goal, goal)
    now, final = _of_silence(router, ip, has_ended=has_ended) if not data else _of_bytes(router, data, ip)
    return Forecast(ip, named, header_size, data, router, final if has_ended else now, final)


_LEFT = Goal(Outcome.LEFT, refusal=Ended.CLIENT_LEFT)


def _is_trusted(settings: Settings, ip: str | None, data: bytes) -> bool:
    trusted = settings.proxy_protocol_from
    if ip is not None:
        return bool(trusted) and ip in Networks(trusted)
    return bool(trusted) and not isinstance(parse(data), Verdict)


def _of_silence(router: Router, ip: str | None, *, has_ended: bool) -> _Step:
    """Return the goals of a client that has sent nothing, now and at the peek timeout."""
    if has_ended:
        return _LEFT, _LEFT
    if router.sole is not None:
        goal = _follow(router, NO, ip, Transport.TCP)
        return goal, goal
    if router.silent is not None:
        return Wait(1), _reach(Outcome.SILENT, router.silent, None, ip, Transport.TCP)
    return Wait(1), _follow(router, NO, ip, Transport.TCP)


def _of_bytes(router: Router, data: bytes, ip: str | None) -> _Step:
    decision = router.table.decide(data, final=True)
    assert not isinstance(decision, Waiting)  # noqa: S101 - the question was final
    final = _follow(router, decision, ip, Transport.TCP)
    waiting = router.table.decide(data)
    if not isinstance(waiting, Waiting):
        return final, final
    if router.sole is not None:
        goal = _follow(router, NO, ip, Transport.TCP)
        return goal, goal
    return Wait(waiting.at, waiting.is_matched), final


def _follow(router: Router, decision: Decision[Pool] | Waiting, ip: str | None, transport: Transport) -> Goal:
    if isinstance(decision, tuple):
        return _reach(Outcome.IDENTIFIED, *decision, ip, transport)
    if transport is Transport.TCP and router.sole is not None:
        return _reach(Outcome.SILENT, router.sole, None, ip, transport)
    if isinstance(decision, Undecided):
        outcome = Outcome.TOO_LARGE if decision.is_too_large else Outcome.UNDECIDED
        return Goal(outcome, match=decision.match, undecided=decision, refusal=decision.reason)
    if router.fallback is None:
        return Goal(Outcome.NO_ROUTE, refusal=Ended.NO_ROUTE)
    return _reach(Outcome.FALLBACK, router.fallback, None, ip, transport)


def _reach(
    outcome: Outcome, pool: Pool, match: ProtocolMatch | None, ip: str | None, transport: Transport
) -> Goal:
    refusal: str | None = None
    if ip is not None and not pool.admits(ip):
        refusal = Ended.DENIED
    elif pool.action is not None:
        refusal = Ended.REJECTED if transport is Transport.TCP else why_refused(REJECTED)
    return Goal(outcome, pool, match, refusal=refusal)


def instead_of(goal: Goal, router: Router) -> Pool | None:
    """Return the pool for the client of a goal if no backend of its pool can be reached, or None."""
    fallback = router.fallback
    if goal.refusal is not None or fallback is goal.pool:
        return None
    return fallback if fallback is not None and fallback.action is None else None
