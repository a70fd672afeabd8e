"""Checks of single values of a configuration. Each function raises `ValueError` for a bad value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.addresses.address import Address, is_host_name, is_ip_address
from refractium.contract import MetadataKind
from refractium.routing.conditions import condition_pattern

if TYPE_CHECKING:
    from refractium.routing.conditions import ConditionPattern


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


def alpn_pattern(pattern: ConditionPattern) -> ConditionPattern:
    """Return a pattern for ALPN protocols. A text has 1 to 255 bytes (RFC 7301 section 3.1); case matters.

    Raises:
        ValueError: the text is empty or longer than 255 bytes, or RE2 does not accept the regex.
    """
    if isinstance(pattern, str) and not 1 <= len(pattern.encode()) <= 255:  # noqa: PLR2004 - one byte on the wire
        raise ValueError("an ALPN protocol is 1 to 255 bytes long: h2, http/1.1")
    return condition_pattern(MetadataKind.TEXTS, pattern)
