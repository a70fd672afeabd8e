"""What a supervisor and its workers tell each other."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from refractium.contract import Transport
from refractium.observe.status import Status

StateKey: TypeAlias = tuple[str, ...]
"""`refractium.routing.BackendState.key`."""


class Belief(Struct, frozen=True):
    """What is believed of one backend.

    Attributes:
        transport: how clients reach it.
        key: which one it is.
        status: ``up``, ``down`` or ``unknown``.
        since: when that began (s since the epoch).
        reason: why it is down.
    """

    transport: Transport
    key: StateKey
    status: str
    since: float
    reason: str


class KnownName(Struct, frozen=True):
    """What the supervisor knows of the host name of a backend: see `refractium.sockets.names.Name`.

    Attributes:
        host: the name.
        found: its addresses, each with the number of its family.
        asked: when it was asked for first (s, monotonic clock, which all processes of a machine share).
        looked_up: when its last lookup ended (the same).
    """

    host: str
    found: tuple[tuple[int, tuple[str | int, ...]], ...]
    asked: float
    looked_up: float


# What a worker is told


class Configure(Struct, frozen=True, tag=True):
    """Serve by this from now on. Answered by `Done`.

    Attributes:
        number: of the call.
        path: where modules are found.
        begin: what is called once in a process, pickled.
        build: what gives the arguments of an engine, pickled.
        beliefs: what is believed of the backends.
    """

    number: int
    path: list[str]
    begin: bytes
    build: bytes
    beliefs: list[Belief]


class Listen(Struct, frozen=True, tag=True):
    """Serve on the socket that comes along. Answered by `Done`.

    Attributes:
        number: of the call.
        listener: by whose rules.
    """

    number: int
    listener: str


class StopListening(Struct, frozen=True, tag=True):
    """Give up an address. Answered by `Done`, when its socket is closed.

    Attributes:
        number: of the call.
        transport: of the listener.
        address: of the listener, ``HOST:PORT``.
    """

    number: int
    transport: Transport
    address: str


class Believe(Struct, frozen=True, tag=True):
    """Something about a backend has changed."""

    belief: Belief


class Know(Struct, frozen=True, tag=True):
    """What is known of the host names of all backends."""

    names: list[KnownName]


class Ask(Struct, frozen=True, tag=True):
    """Tell the status; answered by `Told`. It is asked again and again, to see whether the worker is well."""

    number: int


class Stop(Struct, frozen=True, tag=True):
    """Stop as an engine does. Answered by `Done`, at the end."""

    number: int
    drain_timeout_ms: int | None


Order: TypeAlias = Configure | Listen | StopListening | Believe | Know | Ask | Stop


# What a worker tells


class Done(Struct, frozen=True, tag=True):
    """An order has been carried out, or could not be.

    Attributes:
        number: of the call.
        error: why not.
        cut: of a stop: how many connections and sessions were cut.
    """

    number: int
    error: str = ""
    cut: int = 0


class Told(Struct, frozen=True, tag=True):
    """The status; None before there is anything to tell."""

    number: int
    status: Status | None


class ClientFailed(Struct, frozen=True, tag=True):
    """A client could not reach a backend."""

    transport: Transport
    key: StateKey
    reason: str


class ClientReached(Struct, frozen=True, tag=True):
    """A client has reached a backend after others could not."""

    transport: Transport
    key: StateKey


Report: TypeAlias = Done | Told | ClientFailed | ClientReached
