"""The epoll: events reach their owners, and a fault in a handler ends only its own owner."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest
import uvloop

from refractium.sockets.reactor import EDGE, IN, OUT, Reactor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Owner:
    """An owner of one socket that records its events."""

    def __init__(self, sock: socket.socket, then: Callable[[], object] = lambda: None) -> None:
        self.sock = sock
        self.masks: list[int] = []
        self.crashed = False
        self.resumed = 0
        self._then = then

    def on_event(self, mask: int) -> None:
        self.masks.append(mask)
        self._then()

    def resume(self) -> None:
        self.resumed += 1
        self._then()

    def crash(self) -> None:
        self.crashed = True


@pytest.fixture(params=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


@pytest.fixture
def reactor(runner: asyncio.Runner) -> Iterator[Reactor]:
    reactor = Reactor(runner.get_loop())
    yield reactor
    reactor.close()


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Return a function that makes connected, non-blocking sockets."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        one, other = socket.socketpair()
        one.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
        other.setblocking(False)  # noqa: FBT003
        made.extend((one, other))
        return one, other

    yield make
    for sock in made:
        sock.close()


Pair = "Callable[[], tuple[socket.socket, socket.socket]]"


def turn(runner: asyncio.Runner, times: int = 3) -> None:
    async def turns() -> None:
        for _ in range(times):
            await asyncio.sleep(0.001)

    runner.run(turns())


def test_a_later_event_of_the_batch_reaches_no_retired_socket_and_no_successor_of_its_number(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    (a, to_a), (b, to_b) = pair(), pair()
    numbers = {a.fileno(), b.fileno()}
    newcomers: list[Owner] = []

    def replace(other: socket.socket) -> None:
        reactor.retire(other)
        newcomer = Owner(pair()[0])
        newcomers.append(newcomer)
        assert newcomer.sock.fileno() not in numbers
        reactor.watch(newcomer.sock, IN | EDGE, newcomer.on_event)

    owners = Owner(a, lambda: replace(b)), Owner(b, lambda: replace(a))
    for owner in owners:
        reactor.watch(owner.sock, IN | EDGE, owner.on_event)
    to_a.send(b"?")
    to_b.send(b"?")
    turn(runner)
    assert sum(len(owner.masks) for owner in owners) == 1
    assert not any(owner.crashed for owner in owners)
    assert len(newcomers) == 1
    assert newcomers[0].masks == []
    assert sorted([a.fileno() == -1, b.fileno() == -1]) == [False, True]


def test_a_fault_in_a_handler_ends_its_owner_and_the_other_events_are_served(
    runner: asyncio.Runner,
    reactor: Reactor,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [pair() for _ in range(10)]
    owners = [
        Owner(sock, (lambda: 1 / 0) if number == 3 else (lambda: None))
        for number, (sock, _) in enumerate(pairs)
    ]
    for owner in owners:
        reactor.watch(owner.sock, IN | EDGE, owner.on_event)
    for _, peer in pairs:
        peer.send(b"?")
    turn(runner)
    assert [owner.crashed for owner in owners] == [number == 3 for number in range(10)]
    assert all(owner.masks for owner in owners)
    assert "ZeroDivisionError" in caplog.text


def test_a_fault_while_an_owner_is_ended_costs_no_other_owner_its_event(
    runner: asyncio.Runner,
    reactor: Reactor,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hopeless(Owner):
        def crash(self) -> None:
            raise RuntimeError("still broken")

    pairs = [pair() for _ in range(3)]
    owners = [Owner(pairs[0][0]), Hopeless(pairs[1][0], lambda: 1 / 0), Owner(pairs[2][0])]
    for owner in owners:
        reactor.watch(owner.sock, IN | EDGE, owner.on_event)
    for _, peer in pairs:
        peer.send(b"?")
    turn(runner)
    assert all(owner.masks for owner in owners)
    assert "still broken" in caplog.text


def test_a_fault_in_a_resumed_owner_ends_only_that_owner(
    runner: asyncio.Runner,
    reactor: Reactor,
    pair: Callable[[], tuple[socket.socket, socket.socket]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Owner(pair()[0], lambda: 1 / 0), Owner(pair()[0])
    reactor.again(bad.resume)
    reactor.again(good.resume)
    turn(runner)
    assert (bad.crashed, good.crashed) == (True, False)
    assert good.resumed == 1
    assert "ZeroDivisionError" in caplog.text


def test_again_called_several_times_resumes_an_owner_once_a_turn(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    owner = Owner(pair()[0])
    for _ in range(5):
        reactor.again(owner.resume)
    turn(runner)
    assert owner.resumed == 1


def test_endless_events_delay_neither_timers_nor_resumed_owners(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    (sock, peer), (bulk, _) = pair(), pair()
    peer.send(b"?")
    busy = Owner(sock, lambda: reactor.modify(sock, IN | EDGE))  # each event causes the next
    goes_on = Owner(bulk, lambda: reactor.again(goes_on.resume))
    reactor.watch(sock, IN | EDGE, busy.on_event)
    turn(runner, 5)  # runs timers, which could never fire if a turn did not end
    events = len(busy.masks)
    reactor.again(goes_on.resume)
    turn(runner, 5)
    assert goes_on.resumed > 1
    assert len(busy.masks) > events + 1  # and resumed owners do not delay events
    reactor.unwatch(sock)


def test_a_resumed_owner_waits_only_for_the_end_of_its_batch(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    (sock, peer), (bulk, _) = pair(), pair()
    peer.send(b"?")
    events_before: list[int] = []
    goes_on = Owner(bulk, lambda: events_before.append(len(busy.masks)))

    def bring_the_next() -> None:
        reactor.modify(sock, IN | EDGE)
        if len(busy.masks) == 1:
            reactor.again(goes_on.resume)

    busy = Owner(sock, bring_the_next)
    reactor.watch(sock, IN | EDGE, busy.on_event)
    turn(runner)
    assert events_before == [1]
    assert len(busy.masks) > 1
    reactor.unwatch(sock)


def test_watching_a_socket_again_replaces_its_handler_and_returns_true(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    sock, peer = pair()
    first, second = Owner(sock), Owner(sock)
    assert not reactor.watch(sock, IN | EDGE, first.on_event)
    assert reactor.watch(sock, IN | EDGE, second.on_event)
    peer.send(b"?")
    turn(runner)
    assert (len(first.masks), len(second.masks)) == (0, 1)


def test_modify_reports_present_readiness_as_a_new_event(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    sock, _ = pair()
    owner = Owner(sock)
    reactor.watch(sock, IN | EDGE, owner.on_event)
    turn(runner)
    assert owner.masks == []
    reactor.modify(sock, IN | OUT | EDGE)
    turn(runner)
    assert owner.masks == [OUT]


def test_a_socket_that_cannot_be_registered_has_no_handler(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    sock, _ = pair()
    sock.close()
    with pytest.raises((OSError, ValueError)):
        reactor.watch(sock, IN | EDGE, Owner(sock).on_event)
    reactor.retire(sock)
    turn(runner)
    assert reactor._handlers == {}


def test_more_events_than_a_batch_all_arrive(
    runner: asyncio.Runner, reactor: Reactor, pair: Callable[[], tuple[socket.socket, socket.socket]]
) -> None:
    owners = []
    for _ in range(300):
        sock, peer = pair()
        owners.append(Owner(sock))
        reactor.watch(sock, IN | EDGE, owners[-1].on_event)
        peer.send(b"?")
    turn(runner, 10)
    assert all(len(owner.masks) == 1 for owner in owners)
