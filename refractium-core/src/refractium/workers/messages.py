"""The messages that a supervisor and its workers exchange."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from refractium.contract import Transport
from refractium.observe.status import Status

StateKey: TypeAlias = tuple[str, ...]
"""The key of a backend's state: `refractium.backends.state.BackendState.key`."""


class Belief(Struct, frozen=True):
    """The state of one backend, as the supervisor has decided it.

    Attributes:
        transport: the transport of the backend's clients.
        key: the key of the backend's state.
        availability: ``up``, ``down`` or ``unknown``.
        since: the time of the last change of availability (s since the epoch).
        reason: the reason why the backend is down.
    """

    transport: Transport
    key: StateKey
    availability: str
    since: float
    reason: str


class KnownName(Struct, frozen=True):
    """A backend's host name, with its known addresses (`refractium.sockets.names.HostName`).

    Attributes:
        host: the host name.
        found: the addresses of the host, each with the number of its address family.
        asked: the time of the first request for the name (s, monotonic clock, which all processes of a
            machine share).
        looked_up: the time at which the last lookup ended (s, monotonic clock).
    """

    host: str
    found: tuple[tuple[int, tuple[str | int, ...]], ...]
    asked: float
    looked_up: float


# Messages from the supervisor to a worker


class Configure(Struct, frozen=True, tag=True):
    """An order to use another configuration from now on. The worker answers with `Done`.

    Attributes:
        number: the number of this order, which the answer repeats.
        path: the folders in which Python finds modules (`sys.path`).
        begin: the pickled function that the worker calls only once, before it creates its engine.
        build: the pickled function that returns the spec of the engine.
        beliefs: the states of all backends.
    """

    number: int
    path: list[str]
    begin: bytes
    build: bytes
    beliefs: list[Belief]


class Listen(Struct, frozen=True, tag=True):
    """An order to serve on the socket that is sent with the order. The worker answers with `Done`.

    Attributes:
        number: the number of this order, which the answer repeats.
        listener: the name of the listener rules that apply.
        is_shared: whether other programs may use the socket as well.
    """

    number: int
    listener: str
    is_shared: bool = False


class StopListening(Struct, frozen=True, tag=True):
    """An order to close a listener. The worker answers with `Done` when the socket is closed.

    Attributes:
        number: the number of this order, which the answer repeats.
        transport: the transport of the listener.
        address: the address of the listener, ``HOST:PORT``.
    """

    number: int
    transport: Transport
    address: str


class Believe(Struct, frozen=True, tag=True):
    """A change of one backend's state."""

    belief: Belief


class Know(Struct, frozen=True, tag=True):
    """The known addresses of the host names of all backends."""

    names: list[KnownName]


class Ask(Struct, frozen=True, tag=True):
    """A request for the status, and a heartbeat. The worker answers with `Told`."""

    number: int


class StopAccepting(Struct, frozen=True, tag=True):
    """An order to accept no further clients (`Refractium.stop_accepting`). The worker answers with `Done`."""

    number: int


class Stop(Struct, frozen=True, tag=True):
    """An order to stop the engine (`Refractium.stop`). The worker answers with `Done` after the stop."""

    number: int
    drain_timeout_ms: int | None


Order: TypeAlias = Configure | Listen | StopListening | Believe | Know | Ask | StopAccepting | Stop


# Messages from a worker to the supervisor


class Done(Struct, frozen=True, tag=True):
    """The answer that an order has been carried out or has failed.

    Attributes:
        number: the number of the order.
        error: the reason for the failure; empty if the order has been carried out.
        cut: the number of connections and sessions that a `Stop` has cut.
    """

    number: int
    error: str = ""
    cut: int = 0


class Told(Struct, frozen=True, tag=True):
    """The message with a worker's status, which is None before the worker has an engine."""

    number: int
    status: Status | None


class ClientFailed(Struct, frozen=True, tag=True):
    """The message that a client could not reach a backend."""

    transport: Transport
    key: StateKey
    reason: str


class ClientReached(Struct, frozen=True, tag=True):
    """The message that a client has reached a backend that earlier clients could not reach."""

    transport: Transport
    key: StateKey


WorkerMessage: TypeAlias = Done | Told | ClientFailed | ClientReached
