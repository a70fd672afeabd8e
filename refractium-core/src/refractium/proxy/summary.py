"""The summary of a finished connection or session for the access log."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from msgspec import Struct

from refractium.contract import MetadataValue, ProtocolMatch, Transport
from refractium.contract.metadata import is_metadata_value
from refractium.contract.protocol import plain
from refractium.guard.faults import is_interrupt
from refractium.identify.everything import ANY, FALLBACK
from refractium.routing import Pool

if TYPE_CHECKING:
    from collections.abc import Mapping


class Ended(StrEnum):
    """The way in which a connection or session ended, in the words of the access log."""

    CLOSED = "closed"
    CLIENT_RESET = "client reset"
    BACKEND_RESET = "backend reset"
    IDLE = "idle timeout"
    HALF_CLOSED = "half-closed and silent"
    """A half-closed connection that ended after a silence: at its timeout, or to make room for another."""
    ANSWERED = "answered"
    """A UDP session that got all the answers that it waited for (`Protocol.udp_responses`)."""
    UNANSWERED = "unanswered"
    """A UDP session without an answer, which ended at its timeout or made room for another session."""
    DRAINED = "cut at the drain timeout"
    ABORTED = "cut by the stop"
    NO_ROUTE = "no route"
    TOO_LARGE = "first bytes too large to know the route"
    UNDECIDED = "first bytes end before the route is known"
    DENIED = "denied to this client by the route"
    REJECTED = "rejected by the route"
    LOOP = "route leads back to this listener"
    UNREACHABLE = "no backend reachable"
    CLIENT_LEFT = "client left before it was identified"
    NO_HEADER = "no valid PROXY header"
    FAULT = "internal error"


class Missed(Struct, frozen=True):
    """The protocol of a client that got no route of this protocol.

    Attributes:
        protocol: the name of the protocol.
        match: the match of the protocol; None for a client that stayed silent.
        pool: the pool of the client's route, if no backend of this pool was reachable; None if no route
            asks for the client.
    """

    protocol: str
    match: ProtocolMatch | None
    pool: Pool | None = None


class Summary(Struct, frozen=True):
    """A connection or UDP session, for the access log: finished, or still open.

    Attributes:
        transport: the client's transport.
        client: the client's address and port.
        route: the route's label, ``fallback``, or None without a route.
        match: the protocol match of the first bytes; None if no protocol matched.
        backend: the backend's address as configured; None if no backend was reached.
        up: bytes from client to backend.
        down: bytes from backend to client.
        seconds: seconds from accept, or from the first datagram, to the end, or until now.
        ended: the way in which the connection or session ended; None while it is open.
        pool: the pool of the route; None without a route.
        missed: the protocol whose routes the client did not get; None if the client got its route, or if no
            protocol matched.
    """

    transport: Transport
    client: str
    route: str | None
    match: ProtocolMatch | None
    backend: str | None
    up: int
    down: int
    seconds: float
    ended: Ended | None
    pool: Pool | None = None
    missed: Missed | None = None

    @property
    def protocol(self) -> str | None:
        """The name of the client's protocol; None if no protocol matched and no route took the client."""
        if self.missed is not None:
            return self.missed.protocol
        return None if self.pool is None or self.pool.protocol in {ANY, FALLBACK} else self.pool.protocol

    @property
    def metadata(self) -> Mapping[str, MetadataValue]:
        """The metadata of the first bytes, by key.

        Some protocols parse the bytes only when a caller reads this property.
        """
        if self.missed is not None:
            return metadata_of(self.missed.match, self.missed.pool)
        return {} if self.match is None else metadata_of(self.match, self.pool)


class Reporter(Protocol):
    """The receiver of summaries."""

    def is_wanted(self) -> bool:
        """Return whether the receiver needs summaries now. If not, the services make no summaries."""

    def write(self, summary: Summary) -> None:
        """Receive the summary of one finished connection or session."""


@runtime_checkable
class OpenReporter(Reporter, Protocol):
    """A receiver that also gets a summary of each connection and session that is open for a second."""

    def write_open(self, summary: Summary) -> None:
        """Receive the summary of one open connection or session; `write` receives its end later."""


def open_reporter(report: Reporter) -> OpenReporter | None:
    """Return the receiver if it also gets summaries of open connections; else None."""
    return report if isinstance(report, OpenReporter) else None


def metadata_of(match: ProtocolMatch | None, pool: Pool | None = None) -> Mapping[str, MetadataValue]:
    """Return the metadata of a match.

    The result leaves out every key that the protocols of the pool do not declare, and every value that is not
    of the declared kind. The pool counts the fault.
    """
    told: dict[str, MetadataValue] = {}
    if match is None:
        return told
    declared, texts = (None, None) if pool is None else (pool.declared, pool.declared_texts)
    try:
        found = match.metadata
        told = {
            k if type(k) is str else str.__str__(k): v if type(v) is str else plain(v)
            for k, v in found.items()
            if (
                (texts is None or k in texts)  # enough for strings, which most values are
                if type(v) is str
                else (declared is None or isinstance(v, declared.get(k, ()))) and is_metadata_value(v)
            )
        }
        if len(told) != len(found):
            raise TypeError(  # noqa: TRY301 - counted as a fault
                "the metadata has a wrong type, or a key that is not declared: "
                + ", ".join(f"{k} is {type(v).__name__}" for k, v in found.items() if k not in told)
            )
    except BaseException as error:
        # A fault of a plugin costs the metadata, not the connection.
        if pool is not None:
            pool.note_bad_metadata(error)
        elif is_interrupt(error):
            raise
    return told
