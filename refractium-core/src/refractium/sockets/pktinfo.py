"""Which address a datagram was sent to, and how an answer leaves from there (IP_PKTINFO, ip(7))."""

from __future__ import annotations

import socket
from typing import Final, TypeAlias

CONTROL_BYTES: Final = socket.CMSG_SPACE(20)
"""Room for the larger of in_pktinfo (12 bytes) and in6_pktinfo (20 bytes)."""


Control: TypeAlias = "tuple[tuple[int, int, bytes], ...]"
"""Ancillary data that makes an answer leave from the address that was asked."""


IP_PKTINFO: Final = 8
"""From linux/in.h; Python's socket module has no name for it before 3.14."""


def asked(control: Control) -> str | None:
    """The address that `as_source` was told of, if it was."""
    for _, kind, data in control:
        if kind == IP_PKTINFO:
            return socket.inet_ntop(socket.AF_INET, data[4:8])
        return socket.inet_ntop(socket.AF_INET6, data[:16])
    return None


def as_source(kind: int, data: bytes) -> bytes:
    """Ancillary data of a datagram that came, turned into that of its answer.

    in_pktinfo is interface, local address, destination: sent back, its local address is the source. The
    interface is left open (0), so that routing decides.
    """
    if kind == IP_PKTINFO:
        return bytes(4) + data[4:8] + bytes(4)
    return data[:16] + bytes(4)
