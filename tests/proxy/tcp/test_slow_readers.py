"""The kernel memory held by a client that does not read the bytes it has asked for."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import ExitStack, closing
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from support.backends import Backend
from support.clients import MIB, connect, receive
from support.programs import require_program
from support.proxy import ProxyThread, quick

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

CLIENTS: Final = 6


def endless(sock: socket.socket) -> None:
    """Send until the peer leaves."""
    receive(sock, 1)
    data = bytes(MIB)
    while True:
        sock.sendall(data)


def held(port: int, backend: int) -> int:
    """Return the kernel memory (bytes) of the proxy's sockets to its clients and to its backend."""
    command = [require_program("ss"), "-tmnH", f"( sport = :{port} or dport = :{backend} )"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return sum(int(received) + int(sent) for received, sent in re.findall(r"skmem:\(r(\d+),.*?,w(\d+)", text))


def readings(port: int, backend: int) -> Iterator[int]:
    while True:
        yield held(port, backend)
        time.sleep(0.2)


def held_when_nothing_moves(proxy: ProxyThread, backend: Backend, *, read: int) -> int:
    """Return the kernel memory (bytes) per client, when clients stop after having read so many bytes."""
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(connect(proxy.address))) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(b"?")
        for client in clients:
            assert len(receive(client, read)) == read
        ports = proxy.port, int(backend.address.rpartition(":")[2])
        return next(now for before, now in pairwise(readings(*ports)) if now == before > 0) // CLIENTS


def test_a_client_that_reads_nothing_holds_little_memory() -> None:
    with Backend(endless) as backend, ProxyThread(fallback=backend.address) as proxy:
        assert held_when_nothing_moves(proxy, backend, read=0) < 2 * MIB


def test_the_bound_holds_for_a_client_that_read_fast_at_first() -> None:
    settings = quick(backend_buffer_size=MIB // 4)
    with Backend(endless) as backend, ProxyThread(fallback=backend.address, settings=settings) as proxy:
        assert held_when_nothing_moves(proxy, backend, read=8 * MIB) < 3 * MIB
