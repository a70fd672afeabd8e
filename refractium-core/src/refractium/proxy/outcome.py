"""What is told of connections and sessions that have ended."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from msgspec import Struct

from refractium.contract import MetadataValue, ProtocolMatch, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ended(StrEnum):
    """How a connection ended, as the access log says it."""

    CLOSED = "closed"
    CLIENT_RESET = "client reset"
    BACKEND_RESET = "backend reset"
    IDLE = "idle timeout"
    UNANSWERED = "unanswered"
    """A UDP session that no backend had answered: after its timeout, or to make room for another."""
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
        transport: how it came.
        client: the client's address.
        route: the protocol's name, ``fallback`` or nothing.
        match: what its first bytes told, if they were recognised.
        backend: the backend's address as configured, if one was reached.
        up: bytes from client to backend.
        down: bytes from backend to client.
        seconds: from accept to the end.
        ended: how.
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
        """What its first bytes told, by key; some protocols look at them only now."""
        return {} if self.match is None else metadata_of(self.match)

    def as_dict(self) -> dict[str, Any]:
        """The attributes, with the metadata for the match."""
        told: dict[str, Any] = {
            name: getattr(self, name) for name in self.__struct_fields__ if name != "match"
        }
        return {**told, "metadata": self.metadata}


class Reporter(Protocol):
    """Whom the summaries go to."""

    def is_wanted(self) -> bool:
        """Whether anybody reads them now; they are not made otherwise."""

    def write(self, summary: Summary) -> None:
        """Take one."""


def metadata_of(match: ProtocolMatch | None) -> Mapping[str, MetadataValue]:
    """What the first bytes told, as far as a plugin has kept to `MetadataValue`."""
    try:
        if match is None:
            return {}
        return {k: v for k, v in match.metadata.items() if v.__class__ is str or _is_metadata(v)}
    except Exception:  # noqa: BLE001 - a plugin's fault costs its words in the log, not the connection
        return {}


def _is_metadata(value: object) -> bool:
    if isinstance(value, tuple):
        return all([isinstance(one, str) for one in value])  # noqa: C419 - quicker than a generator
    return isinstance(value, _SCALARS)


_SCALARS: Final = (str, bool)  # a union would be made anew each time, which takes longer than to look
