"""The orders of a balancer, as a pool of the proxy uses them, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.addresses.address import Address
from refractium.backends.backend import Backend
from refractium.contract import problems_of_balancer
from refractium.routing.pool import Pool
from refractium.testing.faults import FaultsOfTest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.contract import Balancer

_CLIENT = "192.0.2.1"
_NO_CLIENTS: Mapping[str, int] = {}


def run_balancer(
    balancer: type[Balancer],
    weights: Mapping[str, int],
    *,
    active: Mapping[str, int] = _NO_CLIENTS,
    clients: int | Sequence[str] = 1,
) -> list[tuple[str, ...]]:
    """Send clients to a pool with a balancer, and return the order of the backends for each client.

    ::

        assert run_balancer(Last, {"a": 1, "b": 1}) == [("b", "a")]

    Each client stays connected to the first backend of its order, so the next call of the balancer sees one
    more client there.

    Args:
        balancer: class of the balancer.
        weights: weight of each backend, by a name or an address.
        active: clients that a backend has already, by the name of the backend.
        clients: number of the clients, which then have one IP address; or the IP address of each client.

    Returns:
        The names of the backends in the order in which Refractium tries them, for each client.

    Raises:
        AssertionError: the balancer violates the contract, raises an exception, or returns an order that is
            not valid.
        ValueError: `active` has a name that `weights` lacks.
    """
    if problems := list(problems_of_balancer(balancer)):
        raise AssertionError("; ".join(problems))
    if unknown := active.keys() - weights.keys():
        raise ValueError(f"active names backends that are not in weights: {', '.join(sorted(unknown))}")
    names = {Backend(_address(name), weight=weight): name for name, weight in weights.items()}
    for backend, name in names.items():
        backend.state.active = active.get(name, 0)
    faults = FaultsOfTest()
    pool = Pool("test", tuple(names), balancer=balancer, faults=faults)
    addresses = [_CLIENT] * clients if isinstance(clients, int) else clients
    orders = []
    for number, client in enumerate(addresses, 1):
        ordered = tuple(pool.candidates(client))
        now = ", ".join(f"{name} {backend.active}/{backend.weight}" for backend, name in names.items())
        faults.raise_first(f"; for client {number} of {len(addresses)} ({client}); clients/weight: {now}")
        orders.append(tuple(names[backend] for backend in ordered))
        ordered[0].state.active += 1
    return orders


def _address(name: str) -> Address:
    try:
        return Address.parse(name)
    except ValueError:
        return Address(name, 80)
