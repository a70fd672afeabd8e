"""The order of backends that each balancer gives."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.addresses.address import Address
from refractium.backends.backend import Backend
from refractium.contract import Balancer, problems_of_balancer
from refractium.guard.faults import Faults
from refractium.routing import BALANCERS
from refractium.routing.balancers import First, LeastConnections, RandomTwo, RoundRobin, SourceHash, made

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

IPS = [f"192.0.2.{n}" for n in range(256)] + [f"2001:db8::{n:x}" for n in range(256)]


def backends(*weights: int) -> tuple[Backend, ...]:
    return tuple(
        Backend(Address(f"10.0.0.{number}", 80), weight=weight) for number, weight in enumerate(weights)
    )


def choices(balancer: Balancer, among: Sequence[Backend], clients: Sequence[str] | int) -> list[int]:
    """Return the number of the backend that each client gets."""
    ips = IPS[:1] * clients if isinstance(clients, int) else clients
    return [among.index(next(iter(balancer.order(among, ip)))) for ip in ips]


def weights(largest: int) -> SearchStrategy[list[int]]:
    return st.lists(st.integers(1, largest), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", BALANCERS.values(), ids=BALANCERS)
@given(weights(1000), st.lists(st.sampled_from(IPS), min_size=1, max_size=9))
def test_every_balancer_names_each_backend_once_for_every_client(
    kind: type[Balancer], given_weights: list[int], clients: list[str]
) -> None:
    among, balancer = backends(*given_weights), kind()
    for ip in clients:
        assert sorted(balancer.order(among, ip), key=among.index) == list(among)


@pytest.mark.parametrize("kind", BALANCERS.values(), ids=BALANCERS)
def test_every_built_in_balancer_fulfils_the_contract(kind: type[Balancer]) -> None:
    assert list(problems_of_balancer(kind)) == []
    assert kind.summary


# Round robin


def test_equal_weights_take_turns_and_the_next_in_turn_is_tried_next() -> None:
    among, balancer = backends(1, 1, 1), RoundRobin()
    orders = [[among.index(one) for one in balancer.order(among, "")] for _ in range(4)]
    assert orders == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_weights_are_spread_over_the_round() -> None:
    assert choices(RoundRobin(), backends(5, 1, 1), 7) == [0, 0, 1, 0, 2, 0, 0]


@given(weights(40))
def test_weights_are_exact_over_each_round(given_weights: list[int]) -> None:
    among, balancer = backends(*given_weights), RoundRobin()
    for _ in range(2):
        found = Counter(choices(balancer, among, sum(given_weights)))
        # Equal weights need rounds in which each backend has one turn.
        least = min(given_weights) if len(set(given_weights)) == 1 else 1
        assert [found[number] // least for number in range(len(among))] == [w // least for w in given_weights]


def test_the_remaining_backends_go_on_sharing_by_weight() -> None:
    among, balancer = backends(3, 2, 1), RoundRobin()
    choices(balancer, among, 4)
    left = among[:2]
    assert Counter(choices(balancer, left, 500)) in ({0: 300, 1: 200}, {0: 301, 1: 199}, {0: 299, 1: 201})


def test_a_backend_that_leaves_or_returns_does_not_delay_another() -> None:
    three, balancer = backends(1, 1, 1), RoundRobin()
    assert choices(balancer, three, 3) == [0, 1, 2]
    assert choices(balancer, three[:2], 4) == [0, 1, 0, 1]
    assert choices(balancer, three, 3) == [2, 0, 1]


# Least connections


def test_backends_come_in_order_of_their_connections() -> None:
    among = backends(1, 1, 1)
    for backend, active in zip(among, (5, 2, 3), strict=True):
        backend.state.active = active
    assert [among.index(one) for one in LeastConnections().order(among, "")] == [1, 2, 0]


@given(weights(10), st.integers(1, 100))
def test_connections_that_stay_are_spread_by_weight(given_weights: list[int], rounds: int) -> None:
    among, balancer = backends(*given_weights), LeastConnections()
    for _ in range(rounds * sum(given_weights)):
        chosen = next(iter(balancer.order(among, "")))
        chosen.state.active += 1
    assert [backend.active for backend in among] == [rounds * weight for weight in given_weights]


def test_idle_backends_take_turns() -> None:
    assert choices(LeastConnections(), backends(1, 1, 1), 6) == [0, 1, 2, 0, 1, 2]
    assert Counter(choices(LeastConnections(), backends(3, 1), 400)) == {0: 300, 1: 100}


def test_of_two_random_backends_the_busier_is_never_chosen() -> None:
    among = backends(1, 1, 1)
    among[1].state.active = 1
    assert set(choices(RandomTwo(), among, 300)) == {0, 2}


def test_two_random_choices_keep_connections_nearly_even() -> None:
    among, balancer = backends(2, 1, 1), RandomTwo()
    for _ in range(4000):
        next(iter(balancer.order(among, ""))).state.active += 1
    for backend, share in zip(among, (2000, 1000, 1000), strict=True):
        assert abs(backend.active - share) < 50


# Source hash


def test_the_same_client_has_the_same_backend_in_every_process() -> None:
    among = backends(1, 1, 1)
    # The expected values are fixed: a change of the hash would move clients of every installation.
    assert choices(SourceHash(), among, ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]) == [
        1,
        2,
        0,
        0,
    ]
    assert choices(SourceHash(), among, IPS) == choices(SourceHash(), among, IPS)


def test_only_the_clients_of_a_dead_backend_move() -> None:
    among = backends(1, 2, 1, 3)
    before = choices(SourceHash(), among, IPS)
    for dead in range(len(among)):
        left = tuple(backend for backend in among if backend is not among[dead])
        after = [among.index(left[number]) for number in choices(SourceHash(), left, IPS)]
        moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert {old for old, _ in moved} == {dead}
        assert len(moved) == before.count(dead)
        assert len({new for _, new in moved}) == len(left)


def test_the_order_of_backends_in_the_file_does_not_matter() -> None:
    among = backends(1, 2, 1)
    turned = among[::-1]
    assert [among[number] for number in choices(SourceHash(), among, IPS)] == [
        turned[number] for number in choices(SourceHash(), turned, IPS)
    ]


def test_clients_are_spread_by_weight() -> None:
    ips = [f"10.{a}.{b}.1" for a in range(64) for b in range(64)]
    found = Counter(choices(SourceHash(), backends(1, 2, 5), ips))
    for number, weight in enumerate((1, 2, 5)):
        assert found[number] / len(ips) == pytest.approx(weight / 8, abs=0.03)


def test_the_balancer_first_keeps_the_order_of_the_file() -> None:
    assert choices(First(), backends(1, 9, 1), 10) == [0] * 10


# The contract


class Unmade(Balancer):
    name = "unmade"

    def __init__(self, something: int) -> None:
        self.something = something

    def order(self, backends: Sequence[object], client: str) -> Sequence[object]:  # type: ignore[override]
        del client
        return backends


@pytest.mark.parametrize(
    ("thing", "problem"),
    [
        (RoundRobin(), "is not a class derived from Balancer"),
        (dict, "is not a class derived from Balancer"),
        (Unmade, "cannot be made without arguments"),
        (Balancer, "name None: "),
        (type("Named", (RoundRobin,), {"name": "A B"}), 'name "A B": '),
    ],
)
def test_a_class_that_is_not_a_balancer_is_refused_with_the_reason(thing: object, problem: str) -> None:
    assert problem in "; ".join(problems_of_balancer(thing))


def test_turns_are_shared_evenly_at_every_moment() -> None:
    turns = choices(RoundRobin(), backends(1, 1, 1, 1), 40)
    assert all((one + 1) % 4 == other for one, other in pairwise(turns))


class Twin:
    """An object that is equal to a backend, but is not the backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __hash__(self) -> int:
        return hash(self._backend)

    def __eq__(self, other: object) -> bool:
        return True


def test_an_object_that_is_only_equal_to_a_backend_is_a_fault() -> None:
    class Twins(Balancer):
        name = "twins"

        def order(self, backends: Sequence[Backend], client: str) -> Any:  # type: ignore[override]
            del client
            return [Twin(one) for one in backends]

    among, faults = backends(1, 1), Faults()
    assert list(made(Twins, faults).order(among, IPS[0])) == list(among)
    assert faults == {"balancer twins": 1}
