"""The paths of bytes: the choice of a path, the bytes that a turn moves, and no mixing of connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, cast

import pytest

from refractium.proxy import weld as weld_module
from refractium.proxy.weld import Weld
from refractium.proxy.welding import Welding
from refractium.sockets.descriptors import Descriptors
from refractium.sockets.pipes import Pipes
from refractium.sockets.reactor import Reactor
from support.backends import Backend, duplex
from support.clients import MIB, PATIENCE, Received, payload, receive, receive_all, reset, sending
from support.proxy import ProxyThread
from support.welds import Owner, welded


def test_one_turn_moves_no_more_than_its_share() -> None:
    class Endless:
        """A socket that always has more bytes and always takes all bytes."""

        family = socket.AF_INET

        def recv_into(self, view: memoryview) -> int:
            return len(view)

        def send(self, data: bytes, _flags: int) -> int:
            return len(data)

        def setsockopt(self, _level: int, _option: int, _value: bytes) -> None:
            """Accept any option."""

    loop = asyncio.new_event_loop()
    reactor = Reactor(loop)
    endless = cast("socket.socket", Endless())
    weld = Weld(Welding(reactor, Descriptors(lambda: 0)), endless, endless, Owner())
    weld.up.may_splice = False
    weld.up.run()
    weld.up.run()
    assert weld.up.count == 2 * MIB
    assert list(reactor._again) == [weld.up.run]
    reactor.close()
    loop.close()


def test_one_turn_of_a_pipe_moves_no_more_than_its_share() -> None:
    with welded() as (weld, _, _, _):
        moved = []

        def splice(_source: int, _sink: int, count: int, *, flags: int) -> int:
            assert flags
            moved.append(count)
            return count

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weld_module, "splice", splice)
            weld.up.pipe = weld.shared.pipes.borrow()
            weld.up.run()
        assert (weld.up.count, len(moved)) == (2 * MIB, 4)
        weld.up.release()
        weld.shared.pipes.close()


def test_bytes_behind_an_urgent_byte_arrive_before_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the source was reset, splice raises already at the mark of an urgent byte (tcp_splice_read)."""

    def at_the_mark(*_: object, **__: object) -> int:
        raise ConnectionResetError

    with welded() as (weld, far_client, far_backend, run):
        monkeypatch.setattr(weld_module, "splice", at_the_mark)
        weld.up.pipe = weld.shared.pipes.borrow()
        far_client.sendall(b"tail")
        far_client.shutdown(socket.SHUT_WR)
        weld.begin(b"", 0, client_ended=False)
        assert run() == "client reset"
        assert receive_all(far_backend) == (b"tail", "reset")
        weld.shared.pipes.close()


@pytest.mark.parametrize("path", ["splice", "copy"])
def test_a_bulk_transfer_goes_through_a_pipe_if_there_is_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {"splice": 0}

    def counting(*args: Any, **keywords: Any) -> int:
        counted["splice"] += 1
        return os.splice(*args, **keywords)

    monkeypatch.setattr(weld_module, "splice", counting)
    # One full read is enough, because the number of full reads in a turn depends on the speed of the other
    # end.
    monkeypatch.setattr(weld_module, "_READS_BEFORE_SPLICE", 0)
    if path == "copy":
        monkeypatch.setattr(Pipes, "borrow", lambda _: None)
    down, up = payload("down", 24 * MIB), payload("up", 24 * MIB)
    with (
        Backend(duplex(down)) as backend,
        ProxyThread(fallback=backend.address) as proxy,
        proxy.connect() as client,
    ):
        with sending(client, up):
            assert receive_all(client) == (down, "eof")
        assert backend.result() == Received(up, "eof")
        proxy.await_drained()
        assert proxy.counters.bytes_up == len(up)
        assert proxy.counters.bytes_down == len(down)
    assert bool(counted["splice"]) == (path == "splice")


@pytest.mark.parametrize(
    ("path", "source", "is_unpaced"),
    [
        ("splice", "127.0.0.1", True),
        ("splice", "127.0.0.2", False),  # the owner of this address is unknown
        ("copy", "127.0.0.1", False),
    ],
)
def test_bytes_through_a_pipe_to_this_machine_are_not_paced(
    path: str, source: str, *, is_unpaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weld_module, "_READS_BEFORE_SPLICE", 0)
    data = payload("bulk", 4 * MIB)

    def take() -> Received:
        with far_client:
            return receive_all(far_client)

    with (
        welded(source) as (weld, far_client, far_backend, run),
        weld.up.sock.dup() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        weld.down.may_splice = path == "splice"
        usual = congestion_control(client)
        weld.begin(b"", 0, client_ended=False)
        with sending(far_backend, data):
            taken = pool.submit(take)
            assert run() == "closed"
        assert taken.result(PATIENCE) == (data, "eof")
        assert congestion_control(client) == (b"reno" if is_unpaced else usual)


def congestion_control(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_a_pipe_with_bytes_of_a_dead_connection_is_not_used_again() -> None:
    """Run 10,000 connections with different payloads, many of which are reset while their bytes are in the
    pipe."""
    random = Random(7)  # noqa: S311 - test data
    size = 4 * MIB

    def serve(sock: socket.socket) -> None:
        seed = receive(sock, 8)
        if len(seed) == 8:
            with contextlib.suppress(OSError):
                sock.sendall(payload(seed, size if seed[0] % 16 == 0 else 1000))

    def visit(number: int) -> bool:
        seed = number.to_bytes(8, "little")
        expected = payload(seed, size if seed[0] % 16 == 0 else 1000)
        with proxy.connect(receive_buffer=65_536) as client:
            client.sendall(seed)
            wanted = random.randrange(len(expected)) if number % 3 else len(expected)
            got = receive(client, wanted)
            if number % 3:
                reset(client)
            return got == expected[:wanted]

    with (
        Backend(serve) as backend,
        ProxyThread(fallback=backend.address) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        assert all(pool.map(visit, range(10_000)))
