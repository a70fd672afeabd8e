"""The local address to which a client sent a datagram. It is also the source of the answer (ip(7))."""

from __future__ import annotations

import socket
from typing import Final, TypeAlias

CONTROL_BYTES: Final = socket.CMSG_SPACE(20)
"""Bytes of ancillary data for the larger of in_pktinfo (12 bytes) and in6_pktinfo (20 bytes)."""


Control: TypeAlias = "tuple[tuple[int, int, bytes], ...]"
"""Ancillary data that makes an answer leave from the address to which the client sent its datagram."""


IP_PKTINFO: Final = 8
"""A constant of linux/in.h, for which Python's socket module has no name before 3.14."""


def asked(control: Control) -> str | None:
    """Return the address from which the answer leaves, or None without ancillary data."""
    for _, kind, data in control:
        if kind == IP_PKTINFO:
            return socket.inet_ntop(socket.AF_INET, data[4:8])
        return socket.inet_ntop(socket.AF_INET6, data[:16])
    return None


def as_source(kind: int, data: bytes) -> bytes:
    """Return the ancillary data for an answer, made from the ancillary data of the client's datagram.

    A struct in_pktinfo contains an interface, a local address and a destination. In an answer, the local
    address is the source address. The interface is 0, so that the kernel's routing chooses an interface.
    """
    if kind == IP_PKTINFO:
        return bytes(4) + data[4:8] + bytes(4)
    return data[:16] + bytes(4)
