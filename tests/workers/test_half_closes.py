"""Half-closed connections with several workers: to make room, a worker ends only its own connections."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from support.backends import Backend
from support.clients import connect, receive, reset
from support.proxy import eventually
from support.supervised import Build, Supervised, make_room_soon

LIMIT = 16


def answer_and_stay(sock: socket.socket) -> None:
    """Answer the first byte, and wait for a reset after the end of the client."""
    sock.recv(1)
    sock.sendall(b"!")
    assert sock.recv(1) == b""
    eventually(lambda: bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)), "the connection is reset")


def test_clients_that_have_gone_make_room_in_every_worker() -> None:
    with Backend(answer_and_stay) as backend, ExitStack() as stack:
        build = Build(tcp=backend.address, settings={"max_connections_per_ip": LIMIT})
        proxy = stack.enter_context(Supervised(build, begin=make_room_soon))
        for _ in range(LIMIT):
            with connect(proxy.address) as client:
                client.sendall(b"?")
                assert receive(client, 1) == b"!"
        held: list[socket.socket] = []

        def one_more() -> bool:
            # A worker without such a connection refuses the client; the next port may lead to another worker.
            client = stack.enter_context(connect(proxy.address))
            try:
                client.sendall(b"?")
                if receive(client, 1) != b"!":
                    return False
            except ConnectionError:
                return False
            held.append(client)
            return len(held) == LIMIT

        eventually(one_more, "all places have new clients")
        status = proxy.status()
        assert status.tcp.active == LIMIT
        assert sum(route.ended.get("half_closed", 0) for route in status.tcp.routes) == LIMIT
        for client in held:
            reset(client)
