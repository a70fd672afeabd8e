"""Welds without a proxy around them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from refractium.proxy.weld import Weld, Welding
from refractium.sockets.descriptors import Descriptors
from refractium.sockets.reactor import Reactor
from support.clients import PATIENCE, connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def welded(
    source: str | None = None,
) -> Iterator[tuple[Weld, socket.socket, socket.socket, Callable[[], str]]]:
    """A weld without a proxy, its two peers, and what runs it to its end and tells how that was.

    Args:
        source: the address that the client comes from, instead of the usual one.
    """
    with (
        tcp_pair(source) as (client, far_client),
        tcp_pair() as (backend, far_backend),
        asyncio.Runner() as runner,
    ):
        reactor = Reactor(runner.get_loop())
        ended: asyncio.Queue[str] = asyncio.Queue()
        welding = Welding(reactor, Descriptors(lambda: 0))
        weld = Weld(welding, client, backend, ended.put_nowait)

        async def how_it_ends() -> str:
            return await asyncio.wait_for(ended.get(), PATIENCE)

        yield weld, far_client, far_backend, lambda: runner.run(how_it_ends())
        welding.pipes.close()
        reactor.close()


@contextlib.contextmanager
def tcp_pair(source: str | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A non-blocking socket as the proxy has them, and its peer's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        connect(server.getsockname(), source=source) as far,
    ):
        near, _ = server.accept()
        near.setblocking(False)  # noqa: FBT003 - positional by its nature
        with near:
            yield near, far
