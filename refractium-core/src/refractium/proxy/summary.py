"""The summary of a finished connection or session for the access log."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from refractium.contract import MetadataValue, ProtocolMatch, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ended(StrEnum):
    """The way in which a connection or session ended, in the words of the access log."""

    CLOSED = "closed"
    CLIENT_RESET = "client reset"
    BACKEND_RESET = "backend reset"
    IDLE = "idle timeout"
    UNANSWERED = "unanswered"
    """A UDP session without an answer, which ended at its timeout or made room for another session."""
    DRAINED = "cut at the drain timeout"
    ABORTED = "cut by the stop"
    NO_ROUTE = "no route"
    DENIED = "denied to this client by the route"
    REJECTED = "rejected by the route"
    LOOP = "route leads back to this listener"
    UNREACHABLE = "no backend reachable"
    CLIENT_LEFT = "client left before it was identified"
    NO_HEADER = "no valid PROXY header"
    FAULT = "internal error"


class Summary(Struct, frozen=True):
    """A finished connection or UDP session, for the access log.

    Attributes:
        transport: the client's transport.
        client: the client's address and port.
        route: the route's label, ``fallback``, or None without a route.
        match: the protocol match of the first bytes; None if no protocol matched.
        backend: the backend's address as configured; None if no backend was reached.
        up: bytes from client to backend.
        down: bytes from backend to client.
        seconds: seconds from accept, or from the first datagram, to the end.
        ended: the way in which the connection or session ended.
    """

    transport: Transport
    client: str
    route: str | None
    match: ProtocolMatch | None
    backend: str | None
    up: int
    down: int
    seconds: float
    ended: Ended

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """The metadata of the first bytes, by key.

        Some protocols parse the bytes only when a caller reads this property.
        """
        return {} if self.match is None else metadata_of(self.match)


class Reporter(Protocol):
    """The receiver of summaries."""

    def is_wanted(self) -> bool:
        """Return whether the receiver needs summaries now. If not, the services make no summaries."""

    def write(self, summary: Summary) -> None:
        """Receive the summary of one finished connection or session."""


def metadata_of(match: ProtocolMatch | None) -> Mapping[str, MetadataValue]:
    """Return the metadata of a match, and leave out every value that is not a `MetadataValue`."""
    try:
        if match is None:
            return {}
        return {k: v for k, v in match.metadata.items() if v.__class__ is str or _is_metadata(v)}
    except Exception:  # noqa: BLE001 - a plugin's fault costs the metadata, not the connection
        return {}


def _is_metadata(value: object) -> bool:
    if isinstance(value, tuple):
        return all([isinstance(one, str) for one in value])  # noqa: C419 - a generator is slower
    return isinstance(value, _SCALARS)


_SCALARS: Final = (str, bool)  # `str | bool` would build a type at each call, which takes longer
