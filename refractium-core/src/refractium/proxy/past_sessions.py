"""A memory of UDP sessions that ended by silence, so that their clients can continue later.

The first datagram of a WireGuard, QUIC or OpenVPN client identifies the protocol, but later datagrams do not.
A client that was silent for longer than its session lasts continues with such a later datagram.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import socket

    from refractium.addresses.address import Peer
    from refractium.contract import SocketAddress

RETENTION: Final = 600.0
"""Seconds for which a session is remembered.

A WireGuard peer forgets its keys after 540 s (WireGuard whitepaper, section 6) and then begins anew. A NAT
should keep the mapping of a silent UDP client for 300 s or longer (RFC 4787 section 4.3).
"""


class PastSession(NamedTuple):
    """The route and the addresses of a session that has ended.

    Attributes:
        route: the label of the session's pool.
        target: the address of the backend; None if the session had lost its backend.
        source: the address of this machine from which the session reached the backend; None without backend.
    """

    route: str
    target: SocketAddress | None
    source: Peer | None


class PastSessions:
    """A bounded memory of past sessions, by the key of the session. The oldest session is forgotten first.

    Args:
        most: the largest number of remembered sessions.

    Attributes:
        most: the largest number of remembered sessions. A lower value takes effect at the next `add`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._by_key: OrderedDict[tuple[object, ...], tuple[float, PastSession]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: tuple[object, ...], past: PastSession, now: float) -> None:
        """Remember a session that ended at the monotonic time `now` (s), and forget sessions that are due."""
        self._by_key.pop(key, None)
        self._by_key[key] = now, past
        while len(self._by_key) > self.most or _is_over(next(iter(self._by_key.values()))[0], now):
            self._by_key.popitem(last=False)

    def get(self, key: tuple[object, ...], now: float) -> PastSession | None:
        """Return the past session of a key; None if no session ended within the last `RETENTION` seconds."""
        ended, past = self._by_key.get(key, _NONE)
        return None if past is None or _is_over(ended, now) else past

    def discard(self, key: tuple[object, ...]) -> None:
        """Forget the session of a key, if the session is remembered."""
        self._by_key.pop(key, None)

    def forget(self, sock: socket.socket) -> None:
        """Forget all sessions of a listener, whose socket is the first item of their keys."""
        for key in [key for key in self._by_key if key[0] is sock]:
            del self._by_key[key]


_NONE: Final = 0.0, None


def _is_over(ended: float, now: float) -> bool:
    return now - ended > RETENTION
