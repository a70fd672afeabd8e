"""Single values of a configuration: what is valid, and in which one form it is kept."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

from refractium.addresses.address import Address, is_host_name


def protocol_name(text: str) -> str:
    """The name of a protocol, as the plugin contract has it (`refractium.contract.Protocol.name`).

    Raises:
        ValueError: it cannot be one.
    """
    if not _NAME.fullmatch(text):
        raise ValueError("a protocol's name is lower-case letters, digits, _ and -, starting with a letter")
    return text


def route_id(text: str) -> str:
    """The id of a route, made of the same letters.

    Raises:
        ValueError: it cannot be one.
    """
    if not _NAME.fullmatch(text):
        raise ValueError("an id is lower-case letters, digits, _ and -, starting with a letter")
    return text


_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def bind_address(text: str) -> str:
    """What can be listened on.

    Raises:
        ValueError: neither an IP address nor a host name.
    """
    try:
        ip_address(text)
    except ValueError:
        if text.startswith("["):
            raise ValueError("write an IPv6 address without brackets here: ::1") from None
        if ":" in text:
            raise ValueError("not an IP address or host name; the port has a key of its own") from None
        if not is_host_name(text):
            raise ValueError("not an IP address or host name") from None
    return text


def control_path(text: str) -> str:
    """A unix socket's path.

    Raises:
        ValueError: it cannot be one.
    """
    Address.parse(f"unix:{text}")
    return text


def metrics_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port, which may be 0.

    Raises:
        ValueError: it is not ``HOST:PORT``.
    """
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:  # noqa: PLR2004 - 16 bits
        raise ValueError("write HOST:PORT, such as 127.0.0.1:9100")
    if (host.startswith("[") and host.endswith("]")) != (":" in host):
        raise ValueError("brackets belong to an IPv6 address: [::1]:9100")
    return bind_address(host.removeprefix("[").removesuffix("]")), int(port)


def server_name(text: str) -> str:
    """A TLS server name in lower case, without the dot that may end it (RFC 6066 section 3).

    Raises:
        ValueError: neither a host name nor ``*.`` and one.
    """
    if not text.isascii():
        raise ValueError("a server name is ASCII on the wire: write its xn-- form")
    name = text.lower().removesuffix(".")
    if "*" in name.removeprefix("*."):
        raise ValueError("a wildcard is the whole first label: *.example.org")
    if not is_host_name(name.removeprefix("*.")):
        raise ValueError("not a host name: server names are like example.org or *.example.org")
    return name


def request_host(text: str) -> str:
    """A host as requests name it: like `server_name`, or an IP address, IPv6 in brackets (RFC 3986 s3.2.2).

    Raises:
        ValueError: neither of them.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ip = ip_address(bare)
    except ValueError:
        if ":" in text:
            raise ValueError("a host is written without a port, an IPv6 address in brackets: [::1]") from None
        return server_name(text)
    if (ip.version == 6) != (bare is not text):  # noqa: PLR2004 - it is called that
        raise ValueError("brackets belong to an IPv6 address: [::1]")
    return text.lower()


def alpn_id(text: str) -> str:
    """An application protocol: 1 to 255 bytes (RFC 7301 section 3.1), compared byte by byte.

    Raises:
        ValueError: its length is another.
    """
    if not 1 <= len(text.encode()) <= 255:  # noqa: PLR2004 - see above
        raise ValueError("an ALPN protocol is 1 to 255 bytes long: h2, http/1.1")
    return text
