"""What a packet hook is: somebody who is told of all that passes, beside the data path and never on it."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from msgspec import Struct

from refractium.contract.protocol import MetadataValue, Transport, problems_of_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

HookAddress: TypeAlias = "tuple[str, int] | str"
"""IP address and port, or the path of a unix socket."""


class Direction(StrEnum):
    """Which way bytes go."""

    INBOUND = "inbound"
    """From the client to the backend."""
    OUTBOUND = "outbound"
    """From the backend to the client."""


class HookContext(Struct, frozen=True, array_like=True):
    """One connection or UDP session, as it was when its backend had been reached.

    Attributes:
        session: 64 bits; no two sessions of a run have the same.
        transport: how the client came.
        protocol: the name of the protocol, or ``fallback``.
        route: the label of the route: its id where it has one, else the protocol.
        client: IP address and port of the client; of the real one, where a trusted proxy has told it.
        backend: where the bytes go: address and port, or the path of a unix socket.
        metadata: what the first bytes told, such as sni, alpn and host.
        started: when the client came (ns since the epoch).
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
    """How a session came out.

    Attributes:
        seconds: from the client's coming to the end.
        inbound: bytes that the client sent, dropped ones included.
        outbound: bytes that the backend sent, dropped ones included.
        ended: how it ended: ``closed``, ``client_reset``, ``backend_reset``, ``idle``, ``drained`` ... (the
            names of `refractium.proxy.outcome.Ended`, in lower case).
    """

    seconds: float
    inbound: int
    outbound: int
    ended: str


class EventKind(IntEnum):
    """What an event tells."""

    OPEN = 0
    """The session has begun."""
    PACKET = 1
    """Bytes, or one datagram."""
    END = 2
    """One direction of a connection has ended in an orderly way; nothing more follows in it."""
    CLOSE = 3
    """The session has ended; it is the last of its events."""


class Event(NamedTuple):
    """One thing that happened to one session.

    Attributes:
        kind: what.
        time: when (ns since the epoch; it never goes back within a run).
        context: to which session.
        direction: of `EventKind.PACKET` and `EventKind.END`.
        data: of `EventKind.PACKET`.
        offset: how many bytes went before in this direction, whether or not they were dropped.
        stats: of `EventKind.CLOSE`.
    """

    kind: EventKind
    time: int
    context: HookContext
    direction: Direction = Direction.INBOUND
    data: bytes = b""
    offset: int = 0
    stats: SessionStats | None = None


class NoSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a hook that takes none."""


S = TypeVar("S", bound=Struct)

Isolation: TypeAlias = Literal["thread", "process"]
Overflow: TypeAlias = Literal["drop", "drop_session"]


class PacketHook(Generic[S]):
    """A hook. One instance is made for each distinct settings and serves all routes that have these.

    It runs in a thread of its own, or in a process, so it may block; what does not fit into its queue
    meanwhile is dropped and counted. Its methods are never called at the same time. Events of one session
    come in order. An exception is counted and logged, and after repeated ones the hook is told nothing more.

    Args:
        settings: those of the configuration.
    """

    name: str
    """What ``hooks`` says: lower-case letters, digits, ``_`` and ``-``, starting with a letter."""
    settings_type: type[Struct] = NoSettings
    """What ``[plugins.NAME]`` takes: a Struct that is frozen and forbids unknown fields. Made without
    arguments it must be valid, or the hook needs its table in the file."""
    isolation: Isolation = "thread"
    """Where it runs. A thread takes turns with the proxy; a hook that computes belongs into a process. That
    one imports the module of the hook, so the class must be found there by its name."""
    overflow: Overflow = "drop"
    """What is done without when the queue is full: ``drop``, the packets that do not fit;
    ``drop_session``, from then on every packet of their session, so that streams have an end, not holes."""
    queue_bytes: int = 16 * 1024 * 1024
    """What the queue holds at the most (bytes); every packet counts with some bytes more than it has."""
    summary: str = ""

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @classmethod
    def problems(cls, settings: S) -> Iterable[tuple[str, str]]:
        """What is wrong with settings whose types are right: pairs of a key and a message."""
        del settings
        return ()

    @classmethod
    def takes_stdout(cls, settings: S) -> bool:
        """Whether the hook writes to stdout, so that nothing else may."""
        del settings
        return False

    @classmethod
    def needs_one_process(cls, settings: S) -> str:
        """Why the hook cannot be there several times, once in each worker process; empty if it can."""
        return "several would write to stdout" if cls.takes_stdout(settings) else ""

    def start(self) -> None:
        """Called once, where the hook runs, before the first event. If it raises, the hook is not used."""

    def on_open(self, context: HookContext) -> None:
        """A session has begun."""

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        """Bytes have passed: a piece of a stream, or one datagram (which may be empty)."""

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        """A session has ended. Called exactly once for each that was opened, after its last packet."""

    def on_batch(self, events: Sequence[Event]) -> None:
        """Take several events at once.

        Override it to have times and offsets as well; the methods for single events are then not called.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Called once, where the hook runs, after the last event; it has about a second."""


class _FunctionHook(PacketHook[NoSettings]):
    """What `define_hook` makes of a plain function."""

    function: Callable[[HookContext, Direction, bytes], object]

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        type(self).function(context, direction, data)


def define_hook(
    name: str, *, summary: str = ""
) -> Callable[[Callable[[HookContext, Direction, bytes], object]], type[PacketHook[NoSettings]]]:
    r"""Make a packet hook of a plain function.

    ::

        @define_hook("shout")
        def shout(context: HookContext, direction: Direction, data: bytes) -> None:
            print(context.protocol, direction, len(data))

        Route(http, "127.0.0.1:8000", hooks=[shout])

    The function is its `PacketHook.on_packet`; it runs in a thread.

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


_ISOLATIONS: Final = ("thread", "process")
_OVERFLOWS: Final = ("drop", "drop_session")
_MIN_QUEUE: Final = 65_536


def problems_of_hook(hook: object) -> Iterator[str]:
    """What is wrong with an object that a plugin hands out as a packet hook; nothing if it is one."""
    if not (isinstance(hook, type) and issubclass(hook, PacketHook)):
        yield f"{hook!r} is not a class derived from PacketHook"
        return
    name = getattr(hook, "name", None)
    yield from problems_of_name(name)
    config: Any = getattr(hook.settings_type, "__struct_config__", None)
    if config is None or not (config.frozen and config.forbid_unknown_fields):
        yield (
            f"{name}: settings_type {hook.settings_type!r} is not a Struct that is frozen and forbids unknown"
            " fields"
        )
    if hook.isolation not in _ISOLATIONS:
        yield f"{name}: isolation {hook.isolation!r} is none of {', '.join(_ISOLATIONS)}"
    if hook.overflow not in _OVERFLOWS:
        yield f"{name}: overflow {hook.overflow!r} is none of {', '.join(_OVERFLOWS)}"
    if type(hook.queue_bytes) is not int or hook.queue_bytes < _MIN_QUEUE:
        yield f"{name}: queue_bytes {hook.queue_bytes!r} is not an int of at least {_MIN_QUEUE}"
