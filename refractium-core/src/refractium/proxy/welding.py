"""The objects that all welds of an engine share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from refractium.sockets.pipes import Pipes

if TYPE_CHECKING:
    from refractium.proxy.summary import Ended
    from refractium.sockets.descriptors import Descriptors
    from refractium.sockets.reactor import Reactor

BUFFER: Final = 65_536
"""Maximum number of bytes that one read returns, and that a flow holds outside of a pipe."""


class WeldOwner(Protocol):
    """An object that has made a weld, such as a connection."""

    def weld_ended(self, how: Ended) -> None:
        """Act once on the end of the weld, which has released both sockets."""

    def half_closed(self) -> None:
        """Act on the end of one side. The weld may call this method again for the same end."""


class Welding:
    """The objects that all welds share.

    Args:
        reactor: the source of events.
        descriptors: the lender of descriptors for pipes.
        backend_buffer: the first value of the attribute `backend_buffer`.

    Attributes:
        backend_buffer: maximum number of bytes of bulk that the kernel receives from a backend before the
            flow reads these bytes; with 0 the kernel chooses this maximum.
    """

    def __init__(self, reactor: Reactor, descriptors: Descriptors, backend_buffer: int = 0) -> None:
        self.reactor = reactor
        # All flows share one buffer: a flow sends or copies its bytes before another flow reads.
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        self.pipes = Pipes(reactor.loop, descriptors)
        self.backend_buffer = backend_buffer
