"""The contract of packet hooks. A packet hook receives a copy of all bytes that the proxy forwards."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from msgspec import Struct

from refractium.contract.metadata import MetadataValue
from refractium.contract.protocol import (
    NoSettings,
    Transport,
    problems_of_name,
    problems_of_settings,
)
from refractium.contract.words import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class Direction(StrEnum):
    """Direction of bytes."""

    INBOUND = "inbound"
    """From the client to the backend."""
    OUTBOUND = "outbound"
    """From the backend to the client."""


class HookContext(Struct, frozen=True, array_like=True):
    """One connection or UDP session, with the facts known after the proxy has reached the backend.

    Attributes:
        session: number of the session: 64 bits, unique within a run of the program.
        transport: transport that the client uses.
        protocol: name of the protocol, or ``fallback``.
        route: label of the route: the route's id, or the name of its protocol if the route has no id.
        client: IP address and port of the client. If a trusted proxy sent a PROXY header, the field contains
            the address and port from the header.
        backend: address and port of the backend, or the path of its unix socket.
        metadata: facts that the protocol read from the first bytes, such as sni, alpn and host.
        started: time of the client's arrival (ns since the epoch).
    """

    session: int
    transport: Transport
    protocol: str
    route: str
    client: tuple[str, int]
    backend: tuple[str, int] | str
    metadata: dict[str, MetadataValue]
    started: int


class SessionStats(Struct, frozen=True, array_like=True):
    """The result of a session.

    Attributes:
        seconds: time from the client's arrival to the end of the session (s).
        inbound: bytes that the client sent, including bytes that the hook did not receive.
        outbound: bytes that the backend sent, including bytes that the hook did not receive.
        ended: the way in which the session ended: ``closed``, ``client_reset``, ``backend_reset``, ``idle``,
            ``answered``, ``drained`` ..., the same words as in the metrics.
    """

    seconds: float
    inbound: int
    outbound: int
    ended: str


class EventKind(IntEnum):
    """Kind of an event."""

    OPEN = 0
    """The session has begun."""
    PACKET = 1
    """A piece of a stream, or one datagram, has passed."""
    END = 2
    """One direction of a connection has ended in an orderly way. No more bytes follow in this direction."""
    CLOSE = 3
    """The session has ended. This is the last event of the session."""


class Event(NamedTuple):
    """One event of one session.

    Attributes:
        kind: kind of the event.
        time: time of the event (ns since the epoch). Within a run of the program, times never decrease.
        context: the session.
        direction: direction of the bytes, for `EventKind.PACKET` and `EventKind.END`.
        data: the bytes, for `EventKind.PACKET`.
        offset: count of the earlier bytes in this direction, including bytes that the hook did not receive.
        stats: result of the session, for `EventKind.CLOSE`.
    """

    kind: EventKind
    time: int
    context: HookContext
    direction: Direction = Direction.INBOUND
    data: bytes = b""
    offset: int = 0
    stats: SessionStats | None = None


S = TypeVar("S", bound=Struct)

Isolation: TypeAlias = Literal["thread", "process"]
Overflow: TypeAlias = Literal["drop", "drop_session"]


class PacketHook(Generic[S]):
    """The base class of packet hooks.

    Refractium creates one instance for each different settings value. This instance serves all routes with
    these settings.

    A hook runs in its own thread or in its own process, so the hook may block. While the hook blocks,
    Refractium drops and counts packets that do not fit into the hook's queue. The methods of an instance
    never run at the same time. The hook receives the events of one session in order. Refractium counts and
    logs each exception, and detaches the hook after repeated exceptions.

    Args:
        settings: the settings from the configuration.
    """

    name: str
    """Name in the setting ``hooks``: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    settings_type: type[Struct] = NoSettings
    """Struct of the table ``[plugins.ID]``. This Struct must be frozen and forbid unknown fields. If a
    field has no default, or the defaults are not valid, the configuration file must contain the table."""
    isolation: Isolation = "thread"
    """Place where the hook runs. A hook in a thread shares the Python interpreter with the proxy, so a hook
    that computes much should run in a process. The process imports the hook's module, and must find the class
    there by the class's name."""
    overflow: Overflow = "drop"
    """Packets to drop when the queue is full. ``drop`` drops packets that do not fit. ``drop_session`` also
    drops the rest of the session, so that a stream ends early instead of having gaps."""
    queue_bytes: int = 16 * 1024 * 1024
    """Size of the queue (bytes), at least 65,536. Each event occupies its data and about 256 bytes more."""
    summary: str = ""
    """One-line description, for listings of hooks."""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @classmethod
    def problems(cls, settings: S) -> Iterable[tuple[str, str]]:
        """Return the mistakes in settings whose types are valid, each as a pair of key and message."""
        del settings
        return ()

    @classmethod
    def takes_stdout(cls, settings: S) -> bool:
        """Return whether the hook writes to stdout.

        If so, Refractium prints its own output to stderr.
        """
        del settings
        return False

    @classmethod
    def needs_one_process(cls, settings: S) -> str:
        """Return the reason why the hook cannot run in several worker processes, or an empty string.

        With several workers, Refractium refuses a hook for which this method returns a reason. If
        systemd restarts Refractium, the new Refractium process waits until the old Refractium process, which
        runs such a hook, has ended. By default, the method returns a reason if the hook writes to stdout.
        """
        return "several workers would write to stdout" if cls.takes_stdout(settings) else ""

    def start(self) -> None:
        """Prepare the hook, in its own thread or process.

        Refractium calls this method once, before the first event. If the method raises an exception,
        Refractium detaches the hook.
        """

    def on_open(self, context: HookContext) -> None:
        """Process the beginning of a session."""

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        """Process forwarded bytes: a piece of a stream, or one datagram, which may be empty."""

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        """Process the end of a session. Refractium calls this method once for each call of `on_open`."""

    def on_batch(self, events: Sequence[Event]) -> None:
        """Process several events at once, with their times and offsets.

        If a hook overrides this method, Refractium does not call `on_open`, `on_packet` or `on_close`.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Finish the work of the hook, in its own thread or process.

        Refractium calls this method once, after the last event. The method may take about one second.
        """


class _FunctionHook(PacketHook[NoSettings]):
    """The base class of hooks that `define_hook` makes from functions."""

    function: Callable[[HookContext, Direction, bytes], object]

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        type(self).function(context, direction, data)


def define_hook(
    name: str, *, summary: str = ""
) -> Callable[[Callable[[HookContext, Direction, bytes], object]], type[PacketHook[NoSettings]]]:
    r"""Return a decorator that makes a packet hook from a function.

    ::

        @define_hook("shout")
        def shout(context: HookContext, direction: Direction, data: bytes) -> None:
            print(context.protocol, direction, len(data))

        Route(http, "127.0.0.1:8000", hooks=[shout])

    The function becomes `PacketHook.on_packet`. The hook runs in a thread.

    Raises:
        ValueError: the name is not valid.
    """

    def decorate(
        function: Callable[[HookContext, Direction, bytes], object],
    ) -> type[PacketHook[NoSettings]]:
        hook = type(
            function.__name__,
            (_FunctionHook,),
            {
                "name": name,
                "summary": summary or (function.__doc__ or "").strip().partition("\n")[0],
                "function": staticmethod(function),
                "__module__": function.__module__,
                "__doc__": function.__doc__,
            },
        )
        if problems := list(problems_of_hook(hook)):
            raise ValueError("; ".join(problems))
        return hook

    return decorate


_ISOLATIONS: Final = get_args(Isolation)
_OVERFLOWS: Final = get_args(Overflow)
_MIN_QUEUE: Final = 65_536


def problems_of_hook(hook: object) -> Iterator[str]:
    """Yield each violation of the contract in an object that a plugin returns as a packet hook."""
    if not (isinstance(hook, type) and issubclass(hook, PacketHook)):
        yield f"{shown(hook)} is not a class derived from PacketHook"
        return
    name = getattr(hook, "name", None)
    if invalid := list(problems_of_name(name)):
        yield from invalid
        return
    yield from problems_of_settings(f"{name}: settings_type", hook.settings_type)
    if hook.isolation not in _ISOLATIONS:
        yield f"{name}: isolation is {shown(hook.isolation)}, not one of {', '.join(_ISOLATIONS)}"
    if hook.overflow not in _OVERFLOWS:
        yield f"{name}: overflow is {shown(hook.overflow)}, not one of {', '.join(_OVERFLOWS)}"
    if type(hook.queue_bytes) is not int or hook.queue_bytes < _MIN_QUEUE:
        yield f"{name}: queue_bytes is {shown(hook.queue_bytes)}, not an int of at least {_MIN_QUEUE}"
