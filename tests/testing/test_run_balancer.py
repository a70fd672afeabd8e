"""`run_balancer` gives the orders that a pool of the proxy would use."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from refractium.contract import Balanced, BalancedT, Balancer
from refractium.routing import BALANCERS
from refractium.testing import run_balancer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Fill(Balancer):
    name = "fill"

    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        del client
        return sorted(backends, key=lambda backend: backend.active >= backend.weight)


def test_each_client_stays_with_the_first_backend_of_its_order() -> None:
    orders = run_balancer(Fill, {"a": 2, "b": 1}, clients=4)
    assert orders == [("a", "b"), ("a", "b"), ("b", "a"), ("a", "b")]


def test_backends_have_clients_already() -> None:
    assert run_balancer(Fill, {"a": 1, "b": 1, "c": 1}, active={"a": 1}) == [("b", "c", "a")]
    with pytest.raises(ValueError, match="not in weights: d, e"):
        run_balancer(Fill, {"a": 1}, active={"e": 1, "d": 0})


def test_the_balancer_sees_addresses_and_clients() -> None:
    seen = []

    class Noting(Balancer):
        name = "noting"

        def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
            seen.append((client, [str(backend.address) for backend in backends]))
            return backends

    weights = {"10.0.0.1:80": 1, "unix:/run/web.sock": 1}
    assert run_balancer(Noting, weights, clients=["192.0.2.7", "::1"]) == [tuple(weights)] * 2
    assert seen == [("192.0.2.7", list(weights)), ("::1", list(weights))]


def test_built_in_balancers_run_too() -> None:
    firsts = Counter(
        order[0] for order in run_balancer(BALANCERS["round_robin"], {"a": 3, "b": 1}, clients=8)
    )
    assert firsts == {"a": 6, "b": 2}
    by_hash = run_balancer(BALANCERS["source_hash"], {"a": 1, "b": 1}, clients=["192.0.2.1"] * 3)
    assert len(set(by_hash)) == 1


def raising(backends: Sequence[Balanced]) -> Iterable[Balanced]:
    raise LookupError(f"no rule for {len(backends)} backends")


@pytest.mark.parametrize(
    ("order", "error"),
    [
        (raising, "LookupError: no rule for 2 backends"),
        (lambda _: [], "the order is empty"),
        (lambda backends: [*backends, *backends], "the order repeats a backend: a:80, b:80, a:80"),
        (lambda _: ["a"], 'the order contains an object that is not one of the backends: "a"'),
        (lambda _: None, "TypeError"),
        (itertools.cycle, "the order repeats a backend: a:80, b:80, a:80"),
    ],
)
def test_a_fault_of_the_balancer_fails_the_test(order: Callable[..., Any], error: str) -> None:
    class Broken(Balancer):
        name = "broken"

        def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
            found: Iterable[BalancedT] = backends if client == "192.0.2.1" else order(backends)
            return found

    with pytest.raises(AssertionError, match=rf"^balancer broken failed: .*{error}") as raised:
        run_balancer(Broken, {"a": 1, "b": 2}, clients=["192.0.2.1", "192.0.2.2"])
    assert "for client 2 of 2 (192.0.2.2); clients/weight: a 1/1, b 0/2" in str(raised.value)


def test_a_class_that_is_not_a_balancer_is_refused() -> None:
    with pytest.raises(AssertionError, match="is not a class derived from Balancer"):
        run_balancer(int, {"a": 1})  # type: ignore[arg-type]
