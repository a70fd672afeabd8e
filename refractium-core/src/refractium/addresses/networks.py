"""Text forms of networks, and lists of networks that allow or deny clients."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

T = TypeVar("T")

Network: TypeAlias = IPv4Network | IPv6Network
"""A network, or an address as a network of one address."""
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""The network of IPv4 addresses mapped into IPv6 (RFC 4291 section 2.5.5.2)."""
_COLONS_OF_MAPPED: Final = 3


def plain_ip(host: str) -> str:
    """Return an IP address that a socket gave; turn an IPv4 address mapped into IPv6 into an IPv4 address.

    A mapped address, ``::ffff:192.0.2.1``, has three colons. An IPv4-translated address,
    ``::ffff:0:192.0.2.1`` (RFC 2765 section 2.1), has the same beginning and four colons, and stays an IPv6
    address.
    """
    if host.startswith("::ffff:") and host.count(":") == _COLONS_OF_MAPPED and "." in host:
        return host[7:]
    return host


def parse_network(text: str) -> Network:
    """Parse a network, such as ``10.0.0.0/8``, or an address, which becomes a network of one address.

    Raises:
        ValueError: the text is not a valid network or address, or is an IPv4 network mapped into IPv6; the
            message says why.
    """
    try:
        network = ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            network = ip_network(text, strict=False)
            raise ValueError(f"the address is not the start of its network: write {network}") from None
        raise ValueError("not an address or a network: write 10.0.0.0/8 or ::1") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError("IPv4 clients are known by their IPv4 addresses: write the IPv4 form")
    return network


class Networks:
    """A set of networks. The time to find an IP address does not depend on the number of networks.

    Args:
        texts: networks and addresses, in the forms of `parse_network`.

    Raises:
        ValueError: `parse_network` refuses a text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # The network bits of each network, by IP version and by the number of host bits.
        self._prefixes: dict[int, defaultdict[int, set[int]]] = {4: defaultdict(set), 6: defaultdict(set)}
        for network in map(parse_network, texts):
            shift = network.max_prefixlen - network.prefixlen
            self._prefixes[network.version][shift].add(int(network.network_address) >> shift)
        self._narrow_first = {version: sorted(those.items()) for version, those in self._prefixes.items()}

    def __bool__(self) -> bool:
        return any(self._prefixes.values())

    def __contains__(self, ip: str) -> bool:
        """Return whether an IP address is in one of the networks.

        Args:
            ip: IP address without brackets. An IPv4 address must be in IPv4 form, not mapped into IPv6.

        Raises:
            ValueError: the text is not an IP address.
        """
        address = ip_address(ip)
        number = int(address)
        return any(number >> shift in those for shift, those in self._prefixes[address.version].items())

    def narrowest(self, ip: str) -> Hashable:
        """Return a value for the narrowest of the networks that contain an IP address; None if none does.

        Two networks are disjoint, or one contains the other. So two IP addresses with the same narrowest
        network lie in exactly the same networks.

        Args:
            ip: IP address in the form of `__contains__`.

        Raises:
            ValueError: the text is not an IP address.
        """
        address = ip_address(ip)
        number = int(address)
        for shift, those in self._narrow_first[address.version]:
            prefix = number >> shift
            if prefix in those:
                return address.version, shift, prefix
        return None


def models_of(networks: Iterable[Network]) -> Iterator[str]:
    """Yield IP addresses such that every client lies in exactly the same networks as one of the addresses.

    Each address lies in a part of a network that no narrower network contains. An IPv4 address mapped into
    IPv6 is no client of its own, because Refractium knows such a client by its IPv4 address.
    """
    known = {_MAPPED, *networks}
    for everything in (IPv4Network("0.0.0.0/0"), IPv6Network("::/0")):
        own = {everything, *(one for one in known if one.version == everything.version)}
        around: list[_Span] = []  # each span lies inside the span before it
        for network in sorted(own, key=lambda one: (int(one.network_address), one.prefixlen)):
            span = _Span(network)
            while around and around[-1].last < span.first:
                yield from around.pop().model()
            if around and around[-1].free == span.first:
                around[-1].free = span.last + 1
            around.append(span)
        while around:
            yield from around.pop().model()


class _Span:
    """The addresses of a network; `free` is the first address that no narrower network contains."""

    __slots__ = ("_network", "first", "free", "last")

    def __init__(self, network: Network) -> None:
        self._network = network
        self.first = self.free = int(network.network_address)
        self.last = int(network.broadcast_address)

    def model(self) -> Iterator[str]:
        if self.free <= self.last and self._network != _MAPPED:
            yield str(self._network.network_address + (self.free - self.first))


class NetworkIndex(Generic[T]):
    """Values by network. The time to find the values for an IP address does not depend on their number.

    Args:
        values: networks and addresses, in the forms of `parse_network`, each with its value.
    """

    def __init__(self, values: Iterable[tuple[str, T]]) -> None:
        self._values: dict[int, defaultdict[int, defaultdict[int, list[T]]]] = {
            version: defaultdict(lambda: defaultdict(list)) for version in (4, 6)
        }
        for text, value in values:
            network = parse_network(text)
            shift = network.max_prefixlen - network.prefixlen
            self._values[network.version][shift][int(network.network_address) >> shift].append(value)

    def find(self, ip: str) -> Iterator[T]:
        """Yield the values of all networks that contain an IP address, in the form of `Networks`."""
        address = ip_address(ip)
        number = int(address)
        for shift, those in self._values[address.version].items():
            yield from those.get(number >> shift, ())


class AccessRules:
    """Rules that accept or refuse clients: a client must be allowed, and must not be denied.

    Args:
        allow: addresses and networks to accept, in the forms of `parse_network`. No entry means all clients.
        deny: addresses and networks to refuse, in the forms of `parse_network`.

    Raises:
        ValueError: `parse_network` refuses a text.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allowed = Networks(allow)
        self._denied = Networks(deny)

    def admits(self, ip: str) -> bool:
        """Return whether the rules accept a client with this IP address."""
        return (not self._allowed or ip in self._allowed) and ip not in self._denied


def network_problems(lists: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Yield the mistakes in lists of addresses and networks. `lists` contains each list by its key path."""
    for key, texts in lists.items():
        for at, text in enumerate(texts):
            try:
                parse_network(text)
            except ValueError as error:
                yield Problem(str(error), where=f"{key}[{at}]")


def access_of(allow: Sequence[str], deny: Sequence[str]) -> AccessRules | None:
    """Return the access rules, or None if both lists are empty, because then no client needs a check."""
    return AccessRules(allow, deny) if allow or deny else None
