"""Checks of single values of a configuration. Each function raises `ValueError` for a bad value."""

from __future__ import annotations

from ipaddress import ip_address

from refractium.addresses.address import Address, is_host_name, is_ip_address


def bind_address(text: str) -> str:
    """Return `text` if it is a valid address to listen on.

    Raises:
        ValueError: the text is neither an IP address nor a host name.
    """
    if is_ip_address(text):
        return text
    if text.startswith("["):
        raise ValueError("write an IPv6 address without brackets here: ::1")
    if ":" in text:
        raise ValueError("not an IP address or host name; the port has a key of its own")
    if not is_host_name(text):
        raise ValueError("not an IP address or host name")
    return text


def control_path(text: str) -> str:
    """Return `text` if it can be the path of a unix socket.

    Raises:
        ValueError: the text cannot be the path of a unix socket.
    """
    Address.parse(f"unix:{text}")
    return text


def metrics_address(text: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port, which may be 0.

    Raises:
        ValueError: the text is not ``HOST:PORT``.
    """
    address = Address.parse(text, lowest_port=0)
    if address.is_unix:
        raise ValueError("metrics are not served at a unix socket: write HOST:PORT")
    return address.host, address.port


def server_name(text: str) -> str:
    """Return a TLS server name in lower case, without a final dot (RFC 6066 section 3).

    Raises:
        ValueError: the text is neither a host name nor ``*.`` and a host name.
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
    """Return a host in the form that requests contain, in lower case.

    A host is a name that `server_name` accepts, or an IP address; an IPv6 address stands in brackets
    (RFC 3986 section 3.2.2).

    Raises:
        ValueError: the text is neither a name that `server_name` accepts nor an IP address.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ip = ip_address(bare)
    except ValueError:
        if ":" in text:
            raise ValueError("a host is written without a port, an IPv6 address in brackets: [::1]") from None
        return server_name(text)
    if (ip.version == 6) != (bare is not text):  # noqa: PLR2004 - the version number of IPv6
        raise ValueError("brackets belong to an IPv6 address: [::1]")
    return text.lower()


def alpn_id(text: str) -> str:
    """Return `text` if it can be an ALPN protocol: 1 to 255 bytes (RFC 7301 section 3.1). Case matters.

    Raises:
        ValueError: the protocol is empty or longer than 255 bytes.
    """
    if not 1 <= len(text.encode()) <= 255:  # noqa: PLR2004 - the length is one byte on the wire
        raise ValueError("an ALPN protocol is 1 to 255 bytes long: h2, http/1.1")
    return text
