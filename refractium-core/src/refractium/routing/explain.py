"""Explains which routes of a listener were possible for a client, and at which condition each route failed.

Each condition is judged by a `ConditionTable` with only this condition, so the explanation cannot differ from
the choice of the router.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from refractium.addresses.networks import Networks
from refractium.contract import NEED_MORE, NO, ProtocolMatch
from refractium.problems import key_path
from refractium.routing.conditions import ConditionTable, written
from refractium.routing.route import SHORT_FORMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from refractium.contract import Identification, MetadataValue, Protocol
    from refractium.identify import Answer
    from refractium.routing.pool import Pool
    from refractium.routing.route import Route
    from refractium.routing.router import Router


class Result(StrEnum):
    """The result of a condition, or of a whole route, for a client."""

    CHOSEN = "chosen"
    """The router chooses this route."""
    LOST = "lost"
    """All conditions of the route hold, but something else decides."""
    HOLDS = "holds"
    """The condition holds."""
    FAILS = "fails"
    """The condition does not hold."""
    WAITS = "waits"
    """Further bytes can decide the condition."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One condition of a route, and whether the condition holds for a client.

    Attributes:
        key: the key path of the condition in the configuration file, or ``protocol`` or ``listener``.
        wanted: the values that meet the condition, as text.
        result: `Result.HOLDS`, `Result.FAILS` or `Result.WAITS`.
        actual: the value of the client; None if the client has no such value.
    """

    key: str
    wanted: tuple[str, ...]
    result: Result
    actual: MetadataValue | None = None


@dataclass(frozen=True, slots=True)
class Considered:
    """A route, and why a client got or did not get this route.

    Attributes:
        route: the route.
        result: `Result.CHOSEN`, `Result.LOST`, or `Result.FAILS` or `Result.WAITS` as the first condition
            that does not hold.
        conditions: the conditions in the order in which they are judged. The conditions on metadata are
            missing if the protocol does not match.
        why: the reason in words; empty if the conditions show the reason.
    """

    route: Route
    result: Result
    conditions: tuple[Judged, ...]
    why: str = ""


_Routes: TypeAlias = "Sequence[tuple[Route, Pool]]"


def explain(
    routes: _Routes,
    router: Router,
    answers: Sequence[Answer[Pool]],
    client: str | None,
    chosen: Pool | None,
    *,
    is_silent: bool,
    others: Sequence[Answer[str]] = (),
) -> Iterator[Considered]:
    """Yield all routes of a transport, in the order of the configuration.

    Args:
        routes: the routes, each with its pool.
        router: the router of the listener, for all clients.
        answers: the answers of the protocols to the first bytes, from `DispatchTable.explain`.
        client: the client's IP address; None if it is unknown. Then every condition on the address holds.
        chosen: the pool that the router has chosen; None without a pool.
        is_silent: whether the client has sent nothing.
        others: the answers of protocols that the listener does not ask.
    """
    said = {id(one.protocol): one.said for one in answers} | {id(one.protocol): one.said for one in others}
    winner = next((route for route, pool in routes if pool is chosen), None)
    first = next((one.protocol for one in answers if one.final is not NO), None)
    for route, pool in routes:
        judged = [_of_listener(pool, router)]
        match: ProtocolMatch | None = None
        if not route.takes_the_rest:
            match, of_protocol = _of_silence(route) if is_silent else _of_protocol(route, said)
            judged.append(of_protocol)
            if match is not None:
                judged += _of_metadata(route, match)
        if route.clients:
            holds = client is None or client in Networks(route.clients)
            judged.append(Judged("client", route.clients, _held(holds=holds), client))
        if pool.access is not None:
            admits = client is None or pool.admits(client)
            wanted = (*(f"allow {one}" for one in route.allow), *(f"deny {one}" for one in route.deny))
            judged.append(Judged("allow, deny", wanted, _held(holds=admits), client))
        if pool is chosen:
            yield Considered(route, Result.CHOSEN, tuple(judged))
            continue
        missing = next((one.result for one in judged if one.result is not Result.HOLDS), None)
        if missing is not None:
            yield Considered(route, missing, tuple(judged))
            continue
        yield Considered(route, Result.LOST, tuple(judged), _why_lost(route, winner, match, client, first))


def _held(*, holds: bool) -> Result:
    return Result.HOLDS if holds else Result.FAILS


def _of_listener(pool: Pool, router: Router) -> Judged:
    return Judged("listener", (), _held(holds=pool in router.pools))


def _of_silence(route: Route) -> tuple[ProtocolMatch | None, Judged]:
    return None, Judged("on_timeout", ("true",), _held(holds=route.takes_silent), route.takes_silent)


def _of_protocol(
    route: Route, said: Mapping[int, Identification | BaseException]
) -> tuple[ProtocolMatch | None, Judged]:
    """Return the match of one of the protocols of a route, if there is one, and the judgement."""
    answers = [said[id(one)] for one in route.protocols if id(one) in said]
    match = next((one for one in answers if isinstance(one, ProtocolMatch)), None)
    if match is not None:
        return match, Judged("protocol", (route.name,), Result.HOLDS, "yes")
    if any(one is not NO and not isinstance(one, BaseException) for one in answers):
        return None, Judged("protocol", (route.name,), Result.WAITS, "need more")
    fault = any(isinstance(one, BaseException) for one in answers)
    return None, Judged("protocol", (route.name,), Result.FAILS, "fault" if fault else "no")


def _of_metadata(route: Route, match: ProtocolMatch) -> Iterator[Judged]:
    for key, patterns in route.conditions.items():
        table = ConditionTable({key: route.kinds[key]}, [({key: patterns}, route)], [route])
        found = table.select(match)
        result = Result.WAITS if found is NEED_MORE else _held(holds=found is route)
        where = key if key in SHORT_FORMS else key_path("match", key)
        yield Judged(where, tuple(map(written, patterns)), result, match.metadata.get(key))


def _why_lost(
    route: Route,
    winner: Route | None,
    match: ProtocolMatch | None,
    client: str | None,
    first: Protocol | None,
) -> str:
    """Return why a client did not get a route whose conditions all hold.

    Args:
        route: the route.
        winner: the route of the client; None if Refractium refuses the client.
        match: the match of the protocol of `route`; None if the route asks for no match.
        client: the client's IP address; None if it is unknown.
        first: the first protocol that decides; None without such a protocol.
    """
    if first is not None and (winner is None or (match is not None and winner.name != route.name)):
        return f"protocol {first.name} is asked earlier, and decides"
    if winner is None:
        return "Refractium refuses the client"
    if route.takes_the_rest and not winner.takes_the_rest:
        return f"takes only the clients that no other route takes, and {winner.label} takes this client"
    return f"{winner.label} {_advantage(winner, route, match, client)}"


def _advantage(winner: Route, route: Route, match: ProtocolMatch | None, client: str | None) -> str:
    """Return why a route of the same protocol, or for the same silent clients, outranks another route."""
    if match is not None:
        conditions = [(one.conditions, one) for one in (route, winner)]
        kinds = {**route.kinds, **winner.kinds}
        if ConditionTable(kinds, conditions, [route, winner]).select(match) is winner:
            return "has more specific conditions"
    elif winner.on_timeout and not route.on_timeout:
        return "has on_timeout = true"
    if winner.clients and not route.clients:
        return "has the condition client"
    if client is not None and route.access is not None and not route.access.admits(client):
        return "admits the client"
    return "ranks equal, and stands earlier in the configuration"
