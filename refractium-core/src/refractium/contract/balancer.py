"""What a balancer is: the order in which the backends of a pool are tried, for each client anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol, TypeVar

from refractium.contract.protocol import problems_of_name

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence


class Balanced(Protocol):
    """What a balancer may know of a backend. It is hashable, and the same object for as long as it serves."""

    @property
    def address(self) -> Hashable:
        """As configured; `str` of it is how it is written."""

    @property
    def weight(self) -> int:
        """Its share compared with the others', from 1 to 1000."""

    @property
    def active(self) -> int:
        """Connections and UDP sessions that it has now, those under way to it included."""


BalancedT = TypeVar("BalancedT", bound=Balanced)
"""For the annotations of `Balancer.order`: the backends that come out are those that went in."""


class Balancer(ABC):
    """Orders the backends of one pool. Each pool makes an instance of its own, without arguments.

    It is asked on the data path, once for each client, so it must be quick and must not wait for anything.
    """

    name: str
    """What `balance` says: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    summary: str = ""

    @abstractmethod
    def order(self, backends: Sequence[BalancedT], client: str) -> Iterable[BalancedT]:
        """The order in which to try backends for one client.

        Args:
            backends: those that are up, at least one, in the order of the configuration. It is the very same
                object for as long as none has come or gone.
            client: the client's IP address.

        Returns:
            Each backend at most once. The first is the choice; the next is asked for only when that one
            cannot be reached.
        """


def problems_of_balancer(balancer: object) -> Iterator[str]:
    """What is wrong with an object that a plugin hands out as a kind of balancer; nothing if it is one."""
    if not (isinstance(balancer, type) and issubclass(balancer, Balancer)):
        yield f"{balancer!r} is not a class derived from Balancer"
        return
    name = getattr(balancer, "name", None)
    yield from problems_of_name(name)
    try:
        balancer()
    except Exception as error:  # noqa: BLE001 - a plugin's
        yield f"{name}: cannot be made without arguments: {error!r}"
