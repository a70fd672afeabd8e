"""The sockets of a run: which are open, and which a changed configuration opens and closes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import TYPE_CHECKING, TypeAlias

from refractium.contract import Transport
from refractium.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium.config import ServerConfig
    from refractium.engine import Refractium

Key: TypeAlias = tuple[Transport, str, int]
"""As it is configured: port 0 stays 0, and stays the port that it was given."""

_TRIES = 10


class Listening:
    """Every transport on one port, even where that port was to be any free one.

    Args:
        engine: what serves.
    """

    def __init__(self, engine: Refractium) -> None:
        self._engine = engine
        self._open: dict[Key, tuple[str, ...]] = {}
        self._handed_down: set[Transport] = set()

    async def take(self, sockets: Sequence[socket.socket]) -> None:
        """Listen on sockets that were handed down; a transport that has some is bound nowhere else."""
        for sock in sockets:
            transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
            self._handed_down.add(transport)
            say(f"Listening on {transport}://{await self._engine.start_on(sock)}")

    async def change(self, server: ServerConfig, transports: Sequence[Transport]) -> list[Key]:
        """Open what is to be listened on and is not yet, and tell of each socket on stdout.

        What is open stays open, but for an address that is in the way of a new one with the same port.

        Returns:
            What was opened; `undo` takes it.

        Raises:
            ListenError: nothing has changed.
        """
        transports = [transport for transport in transports if transport not in self._handed_down]
        keys = [(transport, server.bind, server.port) for transport in transports]
        keys = [key for key in keys if key not in self._open]
        # A port that is free for one transport may be taken for the other; then there is another one.
        for tries_left in reversed(range(1 if server.port else _TRIES)):
            try:
                await self._begin_all(keys)
                break
            except ListenError:
                if not tries_left:
                    raise
        for key in keys:
            for address in self._open[key]:
                say(f"Listening on {key[0]}://{address}")
        return keys

    def undo(self, opened: Sequence[Key]) -> None:
        """Close what `change` has opened."""
        for key in opened:
            self._end(key)

    def close_others(self, server: ServerConfig, transports: Sequence[Transport]) -> None:
        """Close what is not to be listened on any more; its connections go on."""
        wanted = {(transport, server.bind, server.port) for transport in transports}
        for key in [key for key in self._open if key not in wanted]:
            self._end(key)

    async def _begin_all(self, keys: Sequence[Key]) -> None:
        opened: list[Key] = []
        for key in keys:
            try:
                await self._begin(key)
            except ListenError:
                self.undo(opened)
                await asyncio.sleep(0)  # in which they are closed
                raise
            opened.append(key)

    async def _begin(self, key: Key) -> None:
        transport, _, port = key
        in_the_way = [one for one in self._open if one[0] is transport and one[2] == port]
        try:
            await self._start(key)
        except ListenError:
            if not in_the_way:
                raise
            for one in in_the_way:
                self._end(one)
            await asyncio.sleep(0)  # in which they are closed
            try:
                await self._start(key)
            except ListenError:
                for one in in_the_way:
                    await self._start(one)
                raise

    async def _start(self, key: Key) -> None:
        transport, host, port = key
        start = self._engine.start_tcp if transport is Transport.TCP else self._engine.start_udp
        beside = [found for (_, *place), found in self._open.items() if place == [host, port]]
        port_beside = int(beside[0][0].rpartition(":")[2]) if beside else 0
        self._open[key] = await start(host, port or port_beside)

    def _end(self, key: Key) -> None:
        for address in self._open.pop(key):
            self._engine.stop_listening(key[0], address)


def say(line: str) -> None:
    """Print a line that scripts may wait for; it does not matter if nobody reads."""
    with contextlib.suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
