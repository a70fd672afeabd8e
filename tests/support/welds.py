"""Welds without a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from refractium.proxy.weld import Weld
from refractium.proxy.welding import Welding
from refractium.sockets.descriptors import Descriptors
from refractium.sockets.reactor import Reactor
from support.clients import PATIENCE, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium.proxy.summary import Ended


class Owner:
    """The owner of a weld, with a queue for the end of the weld."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()

    def weld_ended(self, how: Ended) -> None:
        self.ended.put_nowait(how)

    def half_closed(self) -> None:
        """Ignore the end of one side."""


@contextlib.contextmanager
def welded(
    source: str | None = None,
) -> Iterator[tuple[Weld, socket.socket, socket.socket, Callable[[], str]]]:
    """Yield a weld, its two peers, and a function that runs it to its end and returns how it ended.

    Args:
        source: the local address of the client; None for the default of the kernel.
    """
    with (
        tcp_pair(source) as (client, far_client),
        tcp_pair() as (backend, far_backend),
        asyncio.Runner() as runner,
    ):
        reactor = Reactor(runner.get_loop())
        owner = Owner()
        welding = Welding(reactor, Descriptors(lambda: 0))
        weld = Weld(welding, client, backend, owner)

        async def how_it_ends() -> str:
            return await asyncio.wait_for(owner.ended.get(), PATIENCE)

        yield weld, far_client, far_backend, lambda: runner.run(how_it_ends())
        welding.pipes.close()
        reactor.close()


@contextlib.contextmanager
def tcp_pair(source: str | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a non-blocking socket, as the proxy uses them, and the socket of its peer."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connect(server.getsockname(), source=source) as far,
    ):
        near, _ = server.accept()
        near.setblocking(False)  # noqa: FBT003 - positional by its nature
        with near:
            yield near, far
