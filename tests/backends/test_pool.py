"""The backends of a pool that a client is offered, and the state that a new set of routes keeps."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from refractium import Health, Member, Route, define_protocol
from refractium.addresses.address import Address
from refractium.backends.backend import Backend
from refractium.backends.checks import CHECKS
from refractium.backends.state import BackendState
from refractium.contract import NO, Balancer, Identification, Protocol
from refractium.guard.faults import Faults
from refractium.routing import Pool, Pools

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def pool(text: str, *, kind: str = "tcp", clock: Clock | None = None) -> Pool:
    """Return a pool of backends with one-letter names, such as ``a b (c)``: backups are in brackets."""
    health = Health(kind=CHECKS.get(kind, kind), fall=1, rise=1)
    return Pool(
        "test",
        [
            Backend(
                Address(name.strip("()"), 80),
                is_backup=name.startswith("("),
                state=BackendState(Address(name.strip("()"), 80), health, clock or Clock()),
            )
            for name in text.split()
        ],
    )


def set_down(pool: Pool, names: str) -> None:
    """Take the named backends down, and all other backends up."""
    for backend in pool.backends:
        if backend.address.host in names.split():
            backend.state.client_failed("refused")
        elif backend.state.is_checked:
            backend.state.check_passed()
        else:
            backend.state.client_reached()


def offered(pool: Pool) -> str:
    return " ".join(backend.address.host for backend in pool.candidates("192.0.2.1"))


@pytest.mark.parametrize(
    ("backends", "down", "expected"),
    [
        ("a b c", "", "a b c"),
        ("a b c", "b", "a c"),
        ("a b c", "a b", "c"),
        ("a b c", "a b c", ""),
        ("a (b)", "", "a b"),
        ("a (b)", "a", "b"),
        ("(a) b (c)", "", "b a c"),
        ("(a) b (c)", "b", "a c"),
        ("(a) b (c)", "b a", "c"),
        ("a (b)", "a b", ""),
        ("(a) (b)", "", "a b"),
        ("(a) (b)", "a", "b"),
    ],
)
def test_backends_that_are_down_are_not_offered_and_backups_come_last(
    backends: str, down: str, expected: str
) -> None:
    tested = pool(backends)
    set_down(tested, down)
    assert offered(tested) == expected


def test_backups_get_no_client_while_another_backend_is_up() -> None:
    tested = pool("a b (c)")
    firsts = [next(iter(tested.candidates("192.0.2.1"))).address.host for _ in range(6)]
    assert firsts == ["a", "b"] * 3


def test_a_recovered_backend_is_offered_again() -> None:
    tested = pool("a b")
    for _ in range(3):
        set_down(tested, "a b")
        assert offered(tested) == ""
        set_down(tested, "b")
        assert offered(tested) == "a"
        set_down(tested, "")
        assert sorted(offered(tested)) == sorted("a b")


def test_without_checks_one_client_tries_each_down_backend_once_per_interval() -> None:
    clock = Clock()
    tested = pool("a b c", kind="none", clock=clock)
    set_down(tested, "a b")
    assert [offered(tested) for _ in range(2)] == ["c", "c"]
    clock.now += 10.1
    assert [offered(tested) for _ in range(3)] == ["a c", "b c", "c"]
    clock.now += 10.1
    assert offered(tested) == "a c"


def test_no_client_is_sent_to_try_a_down_backup() -> None:
    clock = Clock()
    tested = pool("a (b) (c)", kind="none", clock=clock)
    set_down(tested, "b")
    clock.now += 10.1
    assert offered(tested) == "a c"
    set_down(tested, "a b")
    clock.now += 10.1
    assert offered(tested) == "a c"


def test_without_checks_all_backends_are_tried_when_all_are_down() -> None:
    tested = pool("a b (c)", kind="none")
    set_down(tested, "a b c")
    assert [offered(tested) for _ in range(2)] == ["a b c", "b a c"]


def test_every_address_of_a_backend_is_a_target() -> None:
    tested = pool("a b")
    tested.backends[0].socket_addresses = ((2, ("10.0.0.1", 80)), (2, ("10.0.0.2", 80)))  # type: ignore[assignment]
    assert [target[1] for _, target in tested.targets("")] == [("10.0.0.1", 80), ("10.0.0.2", 80)]


def test_a_state_does_not_keep_its_pool_alive() -> None:
    tested = pool("a")
    state = tested.backends[0].state
    seen = weakref.ref(tested)
    del tested
    gc.collect()
    assert seen() is None
    state.client_failed("x")


# Routers


def protocol(name: str) -> Protocol:
    @define_protocol(name, max_bytes=1)
    def identify(_: bytes) -> Identification:
        return NO

    return identify


def pools(*routes: Route, old: Pools | None = None) -> Pools:
    return Pools(routes, old.states if old else None)


CHECKED = Health(kind=CHECKS["tcp"])


def test_routes_with_the_same_address_and_health_settings_share_a_state() -> None:
    one = Route(protocol("one"), ["10.0.0.1:1", "10.0.0.2:1"], health=CHECKED)
    other = Route(protocol("other"), Member("10.0.0.1:1", weight=3), health=CHECKED)
    third = Route(protocol("third"), "10.0.0.1:1")
    a, _, b, c = (backend.state for backend in pools(one, other, third).backends)
    assert a is b
    assert a is not c


def test_a_new_router_keeps_states_in_use_and_forgets_the_others() -> None:
    old = pools(Route(protocol("one"), ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"], health=CHECKED))
    first, second, third = old.backends
    first.state.check_failed("x")
    second.state.active = 7
    longer = Health(kind=CHECKS["tcp"], fall=9)
    new = pools(
        Route(protocol("one"), [Member("10.0.0.2:1", weight=2), "10.0.0.1:1"], health=CHECKED),
        Route(protocol("two"), "10.0.0.3:1", health=longer),
        old=old,
    )
    a, b, c = new.backends
    assert (a.state, b.state) == (second.state, first.state)
    assert (a.active, b.state.is_up) == (7, False)
    assert c.state is not third.state
    assert third.state.key not in new.states
    assert [one.address.host for one in next(iter(new)).candidates("")] == ["10.0.0.2"]
    first.state.check_passed()
    first.state.check_passed()
    assert len(list(next(iter(new)).candidates(""))) == 2


def order_of(order: Callable[[Any, str], Any]) -> tuple[str, Faults]:
    """Return the order in which a pool with a balancer offers its backends, and the counted faults."""

    class Own(Balancer):
        name = "own"

        def order(self, backends: Any, client: str) -> Any:
            return order(backends, client)

    faults = Faults()
    route = Route(silence, ["192.0.2.1:1", "192.0.2.2:2", "192.0.2.3:3"], balance=Own)
    ((_, pool),) = Pools([route], faults=faults).routes
    return " ".join(str(target[1][1]) for _, target in pool.targets("192.0.2.9")), faults


@define_protocol("silence", max_bytes=1)
def silence(_: bytes) -> Identification:
    return NO


def raising(error: type[BaseException]) -> Callable[[Any, str], Any]:
    def order(_: Any, __: str) -> Any:
        raise error

    return order


def raising_late(backends: Any, _: str) -> Any:
    yield backends[2]
    raise SystemExit


@pytest.mark.parametrize(
    "order",
    [
        *map(raising, (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit)),
        raising_late,
        lambda *_: None,
        lambda backends, _: [backends[0], backends[0]],
        lambda *_: ["another"],
        lambda backends, _: itertools.repeat(backends[1]),
    ],
)
def test_after_a_fault_of_a_balancer_the_order_is_the_order_of_the_configuration(
    order: Callable[[Any, str], Any],
) -> None:
    assert order_of(order) == ("1 2 3", {"balancer own": 1})


def test_a_balancer_may_offer_some_of_the_backends() -> None:
    assert order_of(lambda backends, _: iter(backends[:0:-1])) == ("3 2", {})
