"""Sums over workers, and the counts that remain of dead workers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict, replace

from refractium.contract import Transport
from refractium.observe.collect import tcp, udp
from refractium.observe.status import (
    BackendStatus,
    HookStatus,
    HookTally,
    RouteStatus,
    RouteTraffic,
    Status,
)
from refractium.proxy.counters import TcpCounters, UdpCounters
from refractium.workers.totals import Counts, total, with_active, without_open

if TYPE_CHECKING:
    from collections.abc import Mapping

TCP = tcp(TcpCounters(), (), {})
UDP = udp(UdpCounters(), (), {})


def with_tcp(**changed: Any) -> Counts:
    return Counts(replace(TCP, **changed), UDP, ())


def with_hooks(*hooks: HookStatus) -> Counts:
    return Counts(TCP, UDP, hooks)


def hook(name: str, seen: int, delivered: int, *, state: str = "running", reason: str = "") -> HookStatus:
    tally = HookTally(seen, seen * 10, delivered, delivered * 10, 0, 0)
    return HookStatus(name, state, reason, failures=seen, inbound=tally, outbound=tally)


def test_the_sum_of_no_workers_equals_the_counts_of_an_unused_engine() -> None:
    assert total([]) == Counts(TCP, UDP, ())


def test_every_count_of_connections_is_added_up() -> None:
    routes = RouteTraffic("web", 1, {"closed": 2}, 30, 40), RouteTraffic("-", 0, {"no_route": 1}, 0, 0)
    first = replace(
        TCP,
        accepted=10,
        refused={"max_connections": 2},
        finished=5,
        active=3,
        loops=1,
        outcomes=dict.fromkeys(TCP.outcomes, 2),
        identification_seconds=0.5,
        identification_buckets=tuple((bound, 4) for bound, _ in TCP.identification_buckets),
        faults={"http": 1},
        routes=routes,
    )
    second = replace(
        first, refused={"max_connections": 1, "denied": 4}, routes=(replace(routes[0], ended={"idle": 1}),)
    )
    found = total([Counts(first, UDP, ()), Counts(second, UDP, ())]).tcp
    assert asdict(found) == {
        "accepted": 20,
        "refused": {"max_connections": 3, "denied": 4},
        "finished": 10,
        "active": 6,
        "loops": 2,
        "outcomes": dict.fromkeys(TCP.outcomes, 4),
        "identification_seconds": 1.0,
        "identification_buckets": tuple((bound, 8) for bound, _ in TCP.identification_buckets),
        "faults": {"http": 2},
        "routes": (
            RouteTraffic("web", 2, {"closed": 2, "idle": 1}, 60, 80),
            RouteTraffic("-", 0, {"no_route": 1}, 0, 0),
        ),
    }


def test_every_count_of_sessions_is_added_up() -> None:
    one = replace(
        UDP, sessions=4, refused={"denied": 1}, finished=1, active=3, unrouted=5, dropped=6, faults={"dns": 7}
    )
    found = total([Counts(TCP, one, ()), Counts(TCP, one, ())]).udp
    counts: Mapping[str, Any] = asdict(found)
    assert {key: value for key, value in counts.items() if key not in {"outcomes", "routes"}} == {
        "sessions": 8,
        "refused": {"denied": 2},
        "finished": 2,
        "active": 6,
        "unrouted": 10,
        "dropped": 12,
        "faults": {"dns": 14},
    }


def test_connections_open_at_the_death_of_a_worker_count_as_lost_and_the_sums_agree() -> None:
    routes = RouteTraffic("web", 2, {"closed": 3}, 1, 2), RouteTraffic("ssh", 0, {"idle": 1}, 3, 4)
    left = without_open(with_tcp(accepted=7, refused={"denied": 1}, finished=4, active=2, routes=routes)).tcp
    assert left.accepted == sum(left.refused.values()) + left.finished + left.active
    assert (left.finished, left.active) == (6, 0)
    assert left.routes == (RouteTraffic("web", 0, {"closed": 3, "lost": 2}, 1, 2), routes[1])


def test_hooks_of_all_workers_are_summed_and_packets_queued_for_a_dead_worker_are_dropped() -> None:
    left = without_open(with_hooks(hook("pcap", 5, 3)))
    running, stopped = total([with_hooks(hook("pcap", 1, 1)), with_hooks(hook("pcap", 2, 2)), left]).hooks
    assert (running.state, running.failures, running.inbound) == ("running", 3, HookTally(3, 30, 3, 30, 0, 0))
    assert (stopped.state, stopped.inbound) == ("stopped", HookTally(5, 50, 3, 30, 2, 20))


def test_a_hook_with_different_settings_is_listed_once_for_each() -> None:
    both = with_hooks(hook("pcap", 1, 1), hook("pcap", 10, 10))
    assert [one.inbound.seen for one in total([both, both]).hooks] == [2, 20]


def test_a_hook_detached_in_one_worker_is_shown_as_detached() -> None:
    detached = hook("pcap", 1, 1, state="detached", reason="it has failed")
    (found,) = total([with_hooks(hook("pcap", 1, 1)), with_hooks(detached)]).hooks
    assert (found.state, found.reason) == ("detached", "it has failed")


def test_the_connections_of_a_backend_are_summed_over_all_workers() -> None:
    now = datetime.now(UTC)

    def routes(active: int, state: str) -> tuple[RouteStatus, ...]:
        backend = BackendStatus("192.0.2.1:80", state, now, "", active, 1, backup=False)
        return (
            RouteStatus("web", Transport.TCP, {}, (backend,)),
            RouteStatus("api", Transport.TCP, {}, (backend,)),
            RouteStatus("dns", Transport.UDP, {}, (replace(backend, active=7 * active),)),
        )

    def status(active: int) -> Status:
        return Status("", 1, now, now, 1, 0, None, (), routes(active, "up"), TCP, UDP, ())

    found = list(with_active(routes(0, "down"), [status(1), status(2)]))
    assert [[(one.active, one.state) for one in route.backends] for route in found] == [
        [(3, "down")],
        [(3, "down")],
        [(21, "down")],
    ]
