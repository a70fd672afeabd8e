"""Networks as they are written, and lists of them that say who may come in."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias

from refractium.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Network: TypeAlias = IPv4Network | IPv6Network
"""A network, or an address as the network of itself alone."""
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
"""Where IPv6 has the IPv4 addresses (RFC 4291 section 2.5.5.2)."""
_COLONS_OF_MAPPED: Final = 3


def is_ip_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def plain_ip(host: str) -> str:
    """Return an address as a socket shows it; an IPv4 address mapped into IPv6 without the part around it.

    Such an address, ``::ffff:192.0.2.1``, has three colons. An IPv4-translated one, ``::ffff:0:192.0.2.1``
    (RFC 2765 section 2.1), begins alike, has four and stays an IPv6 address.
    """
    if host.startswith("::ffff:") and host.count(":") == _COLONS_OF_MAPPED and "." in host:
        return host[7:]
    return host


def parse_network(text: str) -> Network:
    """Read a network, ``10.0.0.0/8``, or an address, which is the network of itself alone.

    Raises:
        ValueError: it is neither; the message says what is wrong.
    """
    try:
        network = ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            raise ValueError(f"the network is {ip_network(text, strict=False)}") from None
        raise ValueError("not an address or a network: write 10.0.0.0/8 or ::1") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError("IPv4 clients are known by their IPv4 addresses: write those")
    return network


class Networks:
    """A list of networks in which an IP address is found in a time that does not depend on the length.

    Args:
        texts: networks and addresses, as `parse_network` reads them.

    Raises:
        ValueError: one of the texts is neither.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # By IP version and the number of bits that do not count: the other bits of each network.
        self._prefixes: dict[int, defaultdict[int, set[int]]] = {4: defaultdict(set), 6: defaultdict(set)}
        for network in map(parse_network, texts):
            shift = network.max_prefixlen - network.prefixlen
            self._prefixes[network.version][shift].add(int(network.network_address) >> shift)

    def __bool__(self) -> bool:
        return any(self._prefixes.values())

    def __contains__(self, ip: str) -> bool:
        """Return whether an IP address is in one of the networks.

        Args:
            ip: without brackets; an IPv4 address in its own form, not mapped into IPv6.

        Raises:
            ValueError: it is not an IP address.
        """
        address = ip_address(ip)
        number = int(address)
        return any(number >> shift in those for shift, those in self._prefixes[address.version].items())


class Access:
    """Who may come in: who is allowed, or everybody if nobody is named, but for those who are denied.

    Args:
        allow: addresses and networks, as `parse_network` reads them.
        deny: the same.

    Raises:
        ValueError: one is none.
    """

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        self._allowed = Networks(allow)
        self._denied = Networks(deny)

    def admits(self, ip: str) -> bool:
        """Whether a client with this IP address may come in."""
        return (not self._allowed or ip in self._allowed) and ip not in self._denied


def network_problems(allow: Sequence[str], deny: Sequence[str]) -> Iterator[Problem]:
    """What is wrong with lists of who may come in."""
    for key, texts in (("allow", allow), ("deny", deny)):
        for at, text in enumerate(texts):
            try:
                parse_network(text)
            except ValueError as error:
                yield Problem(str(error), where=f"{key}[{at}]")


def access_of(allow: Sequence[str], deny: Sequence[str]) -> Access | None:
    """Who may come in; None for everybody, so that nobody needs to be asked."""
    return Access(allow, deny) if allow or deny else None
