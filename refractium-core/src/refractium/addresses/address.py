"""Text forms of addresses: ``HOST:PORT``, ``[IPV6]:PORT``, ``unix:PATH``. This module resolves no names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

_MAX_PORT: Final = 65_535
_MAX_PORT_DIGITS: Final = 5
_MAX_NAME: Final = 253
"""Length (characters) of the longest host name, which fills the 255 bytes that the wire format allows (RFC
1035 section 2.3.4)."""
_MAX_UNIX_PATH: Final = 107
"""Length (bytes) of the longest path in ``sun_path`` on Linux, without the NUL at the end (unix(7))."""
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE | re.ASCII)
"""A label of a host name: letters, digits and hyphens (RFC 1123 section 2.1), and underscores, because some
names in use contain underscores."""
_SHOWN: Final = 40
_EVERY_IPV4: Final = IPv4Address(0)
_EVERY_IPV6: Final = IPv6Address(0)


@dataclass(frozen=True, slots=True)
class Address:
    """A destination of streams or datagrams.

    Attributes:
        host: IP address without brackets, or host name in lower case; empty for a unix socket.
        port: port from 1 to 65535; 0 for a unix socket.
        path: path of a unix socket, else None.
    """

    host: str
    port: int
    path: str | None = None

    @classmethod
    def of(cls, given: str | Peer) -> Address:
        """Return an address that a socket gave: an IP address and a port, or the path of a unix socket."""
        return cls("", 0, given) if isinstance(given, str) else cls(*given[:2])

    @classmethod
    def parse(cls, text: str, lowest_port: int = 1) -> Address:
        """Parse an address.

        Args:
            text: address such as ``10.0.0.1:443``, ``[::1]:443``, ``name.example:80`` or
                ``unix:/run/web.sock``.
            lowest_port: lowest port that is valid; 0 for an address to listen on.

        Raises:
            ValueError: the text is not an address; the message says why.
        """
        if text.startswith("unix:"):
            return cls("", 0, _unix_path(text.removeprefix("unix:")))
        host, colon, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            return cls(_ipv6(host[1:-1]), _port(port, lowest_port))
        if "//" in text:
            raise ValueError("write HOST:PORT, not a URL")
        if not colon or text.endswith("]"):
            raise ValueError("no port: write HOST:PORT")
        if ":" in host:
            raise ValueError("an IPv6 address needs brackets: [::1]:443")
        return cls(_host(host), _port(port, lowest_port))

    @property
    def is_unix(self) -> bool:
        """Whether the address is the path of a unix socket."""
        return self.path is not None

    @property
    def is_name(self) -> bool:
        """Whether the address has a host name, which must be resolved before use."""
        return self.path is None and not is_ip_address(self.host)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return join_host_port(self.host, self.port)


def is_host_name(text: str) -> bool:
    """Return whether `text` is a host name: labels of letters, digits, ``-`` and ``_``; a final dot is valid.

    ``10.0.0.1`` is not a host name: the last label of a name is never a number (RFC 1123 section 2.1).
    """
    labels = text.removesuffix(".").split(".")
    return (
        len(text) <= _MAX_NAME + text.endswith(".")
        and all(map(_LABEL.fullmatch, labels))
        and not labels[-1].isdecimal()
    )


def is_ip_address(text: str) -> bool:
    """Return whether a text is an IPv4 or IPv6 address."""
    return _ip(text) is not None


def is_own_address(address: Address, bind: str, port: int) -> bool:
    """Return whether a connection to `address` would reach the listener on `bind` and `port`.

    The function uses only the written addresses: it neither resolves names nor asks this machine for its
    addresses. So for a listener on all addresses (``0.0.0.0``, ``::``), it finds only loopback addresses and
    ``localhost``.

    Args:
        address: address of a backend or a fallback.
        bind: IP address or host name on which the listener listens.
        port: port of the listener. For 0 the kernel chooses a port, which no configured address can name.
    """
    if port == 0 or address.port != port or address.is_unix:
        return False
    mine, theirs = _reach(bind), {reached_by(ip) for ip in _reach(address.host)}
    if not mine or not theirs:
        return bind.lower() == address.host
    if _EVERY_IPV6 in mine:  # a listener on :: accepts IPv4 clients, too
        return any(ip.is_loopback for ip in theirs)
    if _EVERY_IPV4 in mine:
        return any(ip.is_loopback and ip.version == _EVERY_IPV4.version for ip in theirs)
    return not mine.isdisjoint(theirs)


def _reach(host: str) -> set[IPv4Address | IPv6Address]:
    """Return the addresses of a host that need no lookup: an IP address, or loopback for ``localhost``.

    ``localhost`` and all names that end in ``.localhost`` mean loopback (RFC 6761 section 6.3).
    """
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return {IPv4Address("127.0.0.1"), IPv6Address("::1")}
    ip = _ip(host)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        return {ip.ipv4_mapped}
    return set() if ip is None else {ip}


def reached_by(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the address that a connect to `ip` reaches: on Linux, the unspecified address means loopback.

    IPv4 addresses mapped into IPv6 are returned as IPv4.
    """
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    if ip == _EVERY_IPV4:
        return IPv4Address("127.0.0.1")
    return IPv6Address("::1") if ip == _EVERY_IPV6 else ip


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _ipv6(text: str) -> str:
    ip = _ip(text)
    if not isinstance(ip, IPv6Address):
        raise ValueError(f"{_show(text)} is not an IPv6 address")  # noqa: TRY004 - it is text
    return str(ip)


def _host(text: str) -> str:
    if not text:
        raise ValueError("no host: write HOST:PORT")
    if (ip := _ip(text)) is not None:
        return str(ip)
    if text.removesuffix(".").rpartition(".")[2].isdecimal():
        raise ValueError(f"{_show(text)} is not an IPv4 address")
    if not is_host_name(text):
        raise ValueError(f"{_show(text)} is not a host name")
    return text.lower()


def _port(text: str, lowest: int) -> int:
    if not text:
        raise ValueError("no port: write HOST:PORT")
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"port {_show(text)} is not a number")
    if len(text) > _MAX_PORT_DIGITS or not lowest <= int(text) <= _MAX_PORT:
        raise ValueError(f"port {text[:_SHOWN]} is not between {lowest} and {_MAX_PORT}")
    return int(text)


def _unix_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("a unix socket needs its whole path: unix:/run/web.sock")
    if "\0" in path:
        raise ValueError("a path cannot contain NUL")
    if len(path.encode("utf-8", "surrogateescape")) > _MAX_UNIX_PATH:
        raise ValueError(f"the path of a unix socket is at most {_MAX_UNIX_PATH} bytes long")
    return path


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def join_host_port(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


Peer: TypeAlias = "tuple[str, int] | tuple[str, int, int, int]"
