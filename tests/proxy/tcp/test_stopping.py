"""Drain: open connections may finish, slow ones are cut, and a second stop ends the wait."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from refractium import Refractium, Route
from support.backends import Backend, FullUnixQueue, digest, echo, hanging, sink, source
from support.clients import MIB, PATIENCE, connect, payload, receive, receive_all
from support.lateness import fair_seconds_since, seconds_since
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from pathlib import Path

    from support.proxy import LoopKind

pytestmark = pytest.mark.usefixtures("data_path")

both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
CUT = "stopped with 1 connections"


def await_closed(proxy: ProxyThread) -> None:
    """Wait until no listener is left."""
    service = proxy.service
    eventually(lambda: not service.listeners, "all listeners are closed")
    # The sockets are closed one turn of the loop later.
    proxy.call(asyncio.sleep(0.01))
    with socket.socket(socket.AF_INET6 if ":" in proxy.address[0] else socket.AF_INET) as sock:
        assert sock.connect_ex(proxy.address) != 0


@both_loops
def test_transfers_finish_while_no_new_client_is_accepted(loop: LoopKind) -> None:
    data = payload("down", 16 * MIB)
    with (
        Backend(source(data)) as backend,
        ProxyThread(fallback=backend.address, loop=loop) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        start = receive(client, 1000)
        stopped = proxy.begin(proxy.engine.stop(8000))
        await_closed(proxy)
        assert start + receive_all(client).data == data
        client.close()
        assert stopped() == 0


@both_loops
@pytest.mark.backend_resets
def test_connections_that_outlive_the_drain_timeout_are_reset_on_both_sides_and_counted(
    loop: LoopKind,
) -> None:
    with (
        Backend(receive_all) as backend,
        ProxyThread(fallback=backend.address, expected=[CUT], loop=loop) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        eventually(lambda: backend.accepted == 1, "the connections are joined")
        begun = time.monotonic()
        assert proxy.call(proxy.engine.stop(300)) == 1
        assert seconds_since(begun) > 0.28
        assert fair_seconds_since(begun) < 5
        assert receive_all(client).end == "reset"
        assert backend.result() == (b"?", "reset")
        assert proxy.next_end().ended == "cut at the drain timeout"


def test_a_second_stop_ends_the_first_at_once() -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, expected=[CUT]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        first = proxy.begin(proxy.engine.stop(8000))
        await_closed(proxy)
        begun = time.monotonic()
        assert proxy.call(proxy.engine.stop(0)) == 1
        assert first() == 0
        assert fair_seconds_since(begun) < 4
        assert receive_all(client).end == "reset"
        assert proxy.next_end().ended == "cut by the stop"


def test_a_client_still_being_identified_is_served_to_its_end() -> None:
    with (
        Backend(sink) as backend,
        ProxyThread(Route(starting_with(b"magic"), backend.address)) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"mag")
        proxy.await_active(1)
        stopped = proxy.begin(proxy.engine.stop(8000))
        await_closed(proxy)
        client.sendall(b"ic!")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (digest(b"magic!"), "eof")
        client.close()
        assert stopped() == 0


def test_clients_that_had_connected_before_the_stop_are_served() -> None:
    with Backend(sink) as backend, ProxyThread(fallback=backend.address) as proxy:
        held, stopping = threading.Event(), threading.Event()

        async def stop_after_they_connected() -> int:
            held.set()
            stopping.wait(PATIENCE)
            return await proxy.engine.stop(8000)

        stopped = proxy.begin(stop_after_they_connected())
        assert held.wait(PATIENCE)
        clients = [proxy.connect() for _ in range(300)]
        stopping.set()
        for client in clients:
            with client:
                client.sendall(b"?")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == (digest(b"?"), "eof")
        assert stopped() == 0


@pytest.mark.parametrize("kind", ["silent", "hanging", "full", "half-closed", "reset pending"])
def test_an_immediate_stop_releases_everything_in_any_state(kind: str, tmp_path: Path) -> None:
    def stall(sock: socket.socket) -> None:
        sock.recv(1)
        if kind == "reset pending":
            sock.sendall(bytes(MIB // 4))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            return
        while sock.recv(MIB):
            pass
        over.wait(PATIENCE)

    over = threading.Event()
    with Backend(stall) as backend, hanging() as dead, FullUnixQueue(tmp_path / "full") as full:
        fallback = {"hanging": dead, "full": full.address}.get(kind, backend.address)
        with (
            ProxyThread(fallback=fallback, settings=quick(), expected=[CUT]) as proxy,
            proxy.connect(receive_buffer=4096) as client,
        ):
            if kind != "silent":
                client.sendall(b"?")
            if kind == "half-closed":
                client.shutdown(socket.SHUT_WR)
            if kind == "reset pending":
                backend.result()
            proxy.await_active(1)
            proxy.await_idle()
            assert proxy.call(proxy.engine.stop(0)) == 1
            assert receive_all(client).end == "reset"
            over.set()


def test_an_engine_can_serve_only_once() -> None:
    with ProxyThread() as proxy:
        proxy.call(proxy.engine.stop(0))
        with pytest.raises(RuntimeError, match="make a new one"):
            proxy.call(proxy.engine.start_tcp("127.0.0.1", 0))
        assert proxy.call(proxy.engine.stop(0)) == 0


async def listening_twice(engine: Refractium) -> None:
    """Wait until two listeners serve. A stop before that is the subject of another test."""
    while len(engine.status_now().listeners) < 2:  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0.01)


def test_run_tcp_serves_until_stop_and_lets_connections_finish() -> None:
    async def scenario() -> None:
        engine = Refractium(fallback_tcp=backend.address)
        port = (await engine.start_tcp("127.0.0.1", 0))[0].rpartition(":")[2]
        running = asyncio.create_task(engine.run_tcp("127.0.0.1", 0))
        await listening_twice(engine)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(b"?")
        assert await reader.readexactly(1) == b"?"
        stopping = asyncio.create_task(engine.stop(8000))
        await asyncio.sleep(0)
        writer.write(b"!")
        assert await reader.readexactly(1) == b"!"
        assert not running.done()
        writer.close()
        await writer.wait_closed()
        assert await stopping == 0
        await running

    with Backend(echo) as backend:
        asyncio.run(scenario())


def test_cancelling_run_tcp_cuts_connections(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        engine = Refractium(fallback_tcp=backend.address)
        address = await engine.start_tcp("127.0.0.1", 0)
        running = asyncio.create_task(engine.run_tcp("127.0.0.1", 0))
        await listening_twice(engine)
        port = int(address[0].rpartition(":")[2])
        with connect(("127.0.0.1", port)) as client:
            client.sendall(b"?")
            assert await asyncio.to_thread(client.recv, 1) == b"?"
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert receive_all(client).end == "reset"
        assert engine.active == 0

    with Backend(echo) as backend:
        asyncio.run(scenario())
    assert CUT in caplog.text


def test_the_context_manager_stops() -> None:
    async def scenario() -> str:
        async with Refractium() as engine:
            (address,) = await engine.start_tcp("127.0.0.1", 0)
        return address

    host, _, port = asyncio.run(scenario()).rpartition(":")
    with socket.socket() as sock:
        assert sock.connect_ex((host, int(port))) != 0
