"""The contract of balancers. For each client, a balancer decides the order in which to try the backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, TypeVar

from refractium.contract.protocol import is_asynchronous, problems_of_name
from refractium.contract.words import shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence


class Balanced(Protocol):
    """A backend as a balancer sees it: a hashable object, the same object in every call for a backend."""

    @property
    def address(self) -> Hashable:
        """The address as configured. `str` returns the text of the address in the configuration."""

    @property
    def weight(self) -> int:
        """The backend's share of the clients, relative to the weights of the other backends: 1 to 1000."""

    @property
    def active(self) -> int:
        """Count of the backend's present connections and UDP sessions, including connections being opened."""


BalancedT = TypeVar("BalancedT", bound=Balanced)
"""The type of backends in `Balancer.order`, which returns backends of the same type as its argument."""


class Balancer(ABC):
    """The base class of balancers. A balancer orders the backends of one pool.

    Each pool creates its own balancer, without arguments. The proxy calls the balancer on the data path, once
    for each client, so the balancer must be quick and must not wait.
    """

    name: str
    """Value of the setting `balance`: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    summary: str = ""
    """One-line description."""

    @abstractmethod
    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        """Return the order in which to try the backends for one client.

        Args:
            backends: the backends that are up, at least one, in the order of the configuration. Until the set
                of these backends changes, every call receives the same object.
            client: the client's IP address.

        Returns:
            The backends in the order in which to try them: at least one backend, each at most once. The proxy
            tries the next backend only after it could not reach the previous backend.
        """


def problems_of_balancer(balancer: object) -> Iterator[str]:
    """Yield each violation of the contract in an object that a plugin returns as a balancer."""
    if not (isinstance(balancer, type) and issubclass(balancer, Balancer)):
        yield f"{shown(balancer)} is not a class derived from Balancer"
        return
    name = getattr(balancer, "name", None)
    if invalid := list(problems_of_name(name)):
        yield from invalid
        return
    if is_asynchronous(balancer.order):
        yield f"{name}: order is async, but must return the backends at once: write def, not async def"
    try:
        balancer()
    except Exception as error:  # noqa: BLE001 - the loader reports any other exception
        yield f"{name}: cannot be made without arguments: {type(error).__name__}: {error}"
