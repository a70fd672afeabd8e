"""Many bytes through the running program: all bytes or an honest reset, in bounded memory."""

from __future__ import annotations

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from support.backends import Backend, digest, duplex, sink, source
from support.clients import MIB, Received, connect, payload, receive, receive_all, reset, sending
from support.process import serving
from support.proxy import eventually

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from support.backends import Handler
    from support.process import Running

MAGIC: Final = b"\0BULK\0"
"""The first bytes by which the route of these tests is recognised."""
DOWN: Final = payload("down", 16 * MIB)
MEMORY: Final = 32 * MIB
"""Bytes that the program may use beyond its idle memory: two buffers of 64 KiB for every connection."""


@contextmanager
def in_front_of(handler: Handler, folder: Path) -> Iterator[Running]:
    """Run a proxy with a backend. At the end, the proxy must be idle and have its first number of
    descriptors."""
    with Backend(handler) as backend:
        (folder / "refractium.toml").write_text(
            '[server]\nbind = "127.0.0.1"\nport = 0\nmax_connections_per_ip = 1000\n'
            f'[[protocols]]\nname = "bulk"\npatterns = [{{ hex = "{MAGIC.hex()}" }}]\ntransport = "tcp"\n'
            f'forward_to = "{backend.address}"\n'
        )
        with serving(cwd=folder) as proxy:
            eventually(proxy.watches_files, "everything that starts late has started")
            eventually(proxy.is_idle, "nothing is left to do")
            descriptors, memory = proxy.descriptors(), proxy.memory()
            yield proxy
            eventually(
                lambda: proxy.descriptors() == descriptors, f"the proxy has {descriptors} descriptors again"
            )
            eventually(proxy.is_idle, "the proxy is idle")
            assert proxy.memory() - memory < MEMORY
            assert proxy.terminate() == 0
            assert " error " not in proxy.err


def up(seed: object, size: int) -> bytes:
    """Return the bytes that a client sends."""
    return MAGIC + payload(f"up {seed}", size)


@pytest.mark.slow
def test_sixteen_mebibytes_each_way_at_once(tmp_path: Path) -> None:
    received: list[Received] = []
    handle = duplex(DOWN)

    def exchange(proxy: Running, data: bytes) -> Received:
        with connect(proxy.address) as client, sending(client, data):
            return receive_all(client)

    sent = [up(seed, 16 * MIB) for seed in range(3)]
    with (
        in_front_of(lambda sock: received.append(handle(sock)), tmp_path) as proxy,
        ThreadPoolExecutor(3) as pool,
    ):
        for answer in pool.map(lambda data: exchange(proxy, data), sent):
            assert answer == (DOWN, "eof")
    assert sorted(received) == sorted((data, "eof") for data in sent)


def test_the_answer_comes_after_the_client_has_ended_its_side(tmp_path: Path) -> None:
    data = up(0, 16 * MIB)
    with in_front_of(sink, tmp_path) as proxy, connect(proxy.address) as client, sending(client, data):
        assert receive_all(client) == (digest(data), "eof")


def test_the_client_goes_on_after_the_backend_has_ended_its_side(tmp_path: Path) -> None:
    received: list[Received] = []
    handle, data = source(DOWN), up(0, 16 * MIB)
    with (
        in_front_of(lambda sock: received.append(handle(sock)), tmp_path) as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(MAGIC)
        assert receive_all(client) == (DOWN, "eof")
        client.sendall(data[len(MAGIC) :])
        client.shutdown(1)
        eventually(lambda: bool(received), "the backend has everything")
    assert received == [(data, "eof")]


@pytest.mark.slow
def test_slow_readers_make_the_backend_wait_and_memory_stays_bounded(tmp_path: Path) -> None:
    with in_front_of(source(DOWN), tmp_path) as proxy, ExitStack() as stack:
        idle = proxy.memory()
        clients = [stack.enter_context(connect(proxy.address, receive_buffer=4096)) for _ in range(30)]
        for client in clients:
            client.sendall(MAGIC)
        for client in clients:
            assert receive(client, 1) == DOWN[:1]
        eventually(proxy.is_idle, "the proxy is idle, with 480 MiB left at the backend")
        assert proxy.memory() - idle < MEMORY
        for client in clients[:3]:
            assert receive(client, len(DOWN) - 1) == DOWN[1:]
        for client in clients[3:]:
            reset(client)


def test_however_both_sides_end_no_loss_looks_like_an_orderly_end(tmp_path: Path) -> None:
    """Each side randomly ends in order or resets, before, while or after it sends."""
    at_backend: dict[int, Received] = {}
    sizes = {seed: random.Random(seed).choices(range(MIB), k=2) for seed in range(120)}  # noqa: S311

    def resets(side: str, seed: int) -> bool:
        return random.Random(f"{side} {seed}").random() < 0.4  # noqa: S311 - test data

    def take_part(sock: socket.socket, data: bytes, *, is_resetting: bool) -> Received:
        if not is_resetting:
            with sending(sock, data):
                return receive_all(sock)
        with contextlib.suppress(ConnectionError):
            sock.sendall(data[: len(data) // 2])
            receive(sock, len(data) // 3)
        reset(sock)
        return Received(b"", "reset")

    def serve(sock: socket.socket) -> None:
        first = receive(sock, len(MAGIC) + 4)
        seed = int.from_bytes(first[len(MAGIC) :])
        data = payload(f"down {seed}", sizes[seed][0])
        at_backend[seed] = take_part(sock, data, is_resetting=resets("backend", seed))

    def visit(proxy: Running, seed: int) -> Received:
        with connect(proxy.address) as client:
            client.sendall(MAGIC + seed.to_bytes(4))
            data = payload(f"up {seed}", sizes[seed][1])
            return take_part(client, data, is_resetting=resets("client", seed))

    with in_front_of(serve, tmp_path) as proxy, ThreadPoolExecutor(20) as pool:
        at_client = dict(zip(sizes, pool.map(lambda seed: visit(proxy, seed), sizes), strict=True))
        eventually(lambda: len(at_backend) == len(sizes), "all backends are done")
    for seed, (size_down, size_up) in sizes.items():
        for received, sent, other in (
            (at_client[seed], payload(f"down {seed}", size_down), "backend"),
            (at_backend[seed], payload(f"up {seed}", size_up), "client"),
        ):
            assert sent.startswith(received.data), f"seed {seed}: bytes that the {other} did not send"
            if received.end == "eof":
                assert received.data == sent, f"seed {seed}: an end before all bytes of the {other}"
                assert not resets(other, seed), f"seed {seed}: the reset of the {other} looks like an end"
            elif not (resets("client", seed) or resets("backend", seed)):
                raise AssertionError(f"seed {seed}: a reset although neither side reset")
