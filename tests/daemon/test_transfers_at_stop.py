"""A stop during fifty transfers of 10 MiB, half of them uploads and half of them downloads."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from refractium.observe.control import ask, decode, file_name
from support.backends import Backend
from support.clients import MIB, connect, receive, receive_all
from support.process import RUNTIME, Running, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

SIZE: Final = 10 * MIB
PIECE: Final = MIB // 16
"""Bytes sent at once. Each piece is made when it is due: all fifty transfers together would take half a
gibibyte."""
NAMES: Final = [f"{way}{number:02}" for number in range(25) for way in ("up", "dn")]
ENDLESS: Final = "ever"
LONG: Final = 60.0
"""Seconds after which a transfer hangs: half a gibibyte takes a while on a busy machine."""
CUT: Final = " warning stopped with {} connections or sessions still open: they were cut"


class Transfers:
    """Both ends of the transfers through a proxy. Each transfer pauses midway until all may go on.

    Args:
        pause_at: number of bytes after which a transfer pauses.

    Attributes:
        running: a semaphore that each receiver releases after its first bytes.
        may_go_on: an event that lets all transfers continue.
        over: an event that ends a transfer that would never end.
    """

    def __init__(self, pause_at: int) -> None:
        self._pause_at = pause_at
        self.running = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.over = threading.Event()

    def serve(self, sock: socket.socket) -> None:
        """Run the end of the backend. Answer an upload with its size and digest."""
        sock.settimeout(LONG)
        name = receive(sock, len(ENDLESS)).decode()
        if name == ENDLESS:
            while not self.over.wait(0.01):
                sock.sendall(bytes(1000))
        elif name.startswith("up"):
            sock.sendall(self._receive(sock).encode())
        else:
            self._send(sock, name)

    def run(self, address: tuple[str, int], name: str) -> str:
        """Run the end of the client. Return size and digest of the bytes that the receiver had when the
        sender ended."""
        with connect(address) as sock:
            sock.settimeout(LONG)
            sock.sendall(name.encode())
            if name.startswith("up"):
                self._send(sock, name)
                sock.shutdown(socket.SHUT_WR)
                answer = receive_all(sock)
                assert answer.end == "eof"
                return answer.data.decode()
            return self._receive(sock)

    def _send(self, sock: socket.socket, name: str) -> None:
        for number, piece in enumerate(pieces(name)):
            if number * PIECE == self._pause_at:
                assert self.may_go_on.wait(LONG)
            sock.sendall(piece)

    def _receive(self, sock: socket.socket) -> str:
        size, digest = 0, hashlib.sha256()
        while part := sock.recv(MIB):
            if not size:
                self.running.release()
            size += len(part)
            digest.update(part)
        return f"{size} {digest.hexdigest()}"


def pieces(name: str) -> Iterator[bytes]:
    """Yield the pieces of one transfer, which occur in no other transfer."""
    made = random.Random(name)  # noqa: S311 - test data
    for _ in range(SIZE // PIECE):
        yield made.randbytes(PIECE)


def whole(name: str) -> str:
    """Return size and digest of a complete transfer."""
    digest = hashlib.sha256()
    for piece in pieces(name):
        digest.update(piece)
    return f"{SIZE} {digest.hexdigest()}"


@contextmanager
def transferring(
    transfers: Transfers, folder: Path, drain_timeout_ms: int
) -> Iterator[tuple[Running, dict[str, Future[str]]]]:
    """Run a proxy with all fifty transfers under way; yield it and the results to come, by name."""
    with (
        Backend(transfers.serve) as backend,
        ThreadPoolExecutor(len(NAMES)) as clients,
    ):
        (folder / "refractium.toml").write_text(
            f'fallback_tcp = "{backend.address}"\n[server]\nbind = "127.0.0.1"\nport = 0\n'
            f"max_connections_per_ip = 1000\ndrain_timeout_ms = {drain_timeout_ms}\n"
        )
        with serving("tcp", cwd=folder) as proxy:
            try:
                results = {name: clients.submit(transfers.run, proxy.address, name) for name in NAMES}
                for _ in NAMES:
                    assert transfers.running.acquire(timeout=LONG)
                assert not any(result.done() for result in results.values())
                yield proxy, results
            finally:
                transfers.may_go_on.set()
                transfers.over.set()


def refuses(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionError:  # a reset, if the connection was in the queue when the listener closed
        return True
    return False


def ended(proxy: Running, how: str) -> int:
    """Return the number of connections that ended in this way, by the access log."""
    return sum(line.endswith(f"s {how}") for line in proxy.err.splitlines())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_all_transfers_complete_while_no_new_client_is_admitted(tmp_path: Path) -> None:
    transfers = Transfers(pause_at=MIB)
    with transferring(transfers, tmp_path, drain_timeout_ms=60_000) as (proxy, results):
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM: 50 connections may finish$")
        eventually(lambda: refuses(proxy.address), "new connections are refused")
        transfers.may_go_on.set()
        while wait(results.values(), 0.02).not_done:
            assert refuses(proxy.address)
        assert {name: result.result() for name, result in results.items()} == {
            name: whole(name) for name in NAMES
        }
        assert proxy.wait() == 0
        assert ended(proxy, "closed") == 50
        assert "cut" not in proxy.err


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_transfer_that_never_ends_is_cut_at_the_drain_timeout_and_the_others_complete(
    tmp_path: Path,
) -> None:
    # Few bytes are left to send after the signal, because the machine may be slow and the drain timeout is
    # fixed.
    transfers = Transfers(pause_at=SIZE - PIECE)
    with (
        transferring(transfers, tmp_path, drain_timeout_ms=10_000) as (proxy, results),
        connect(proxy.address) as endless,
    ):
        endless.sendall(ENDLESS.encode())
        receive(endless, 1000)
        control = Path(RUNTIME.name, file_name(proxy.port))
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM: 51 connections may finish$")
        eventually(lambda: refuses(proxy.address), "new connections are refused")
        draining = decode(ask([control]))
        transfers.may_go_on.set()
        assert receive_all(endless).end == "reset"
        assert {name: result.result() for name, result in results.items()} == {
            name: whole(name) for name in NAMES
        }
        assert proxy.wait() == 0
        assert (draining.listeners, draining.tcp.active) == ((), 51)
        assert (ended(proxy, "closed"), ended(proxy, "cut at the drain timeout")) == (50, 1)
        assert CUT.format(1) in proxy.err


@pytest.mark.timeout(240)
def test_a_second_signal_cuts_all_transfers_at_once(tmp_path: Path) -> None:
    transfers = Transfers(pause_at=MIB)
    with transferring(transfers, tmp_path, drain_timeout_ms=600_000) as (proxy, results):
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM: 50 connections may finish$")
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM again: ending at once$")
        assert proxy.wait() == 0
        transfers.may_go_on.set()
        assert {type(result.exception()) for result in results.values()} <= {
            ConnectionResetError,
            BrokenPipeError,
        }
        assert ended(proxy, "cut by the stop") == 50
        assert CUT.format(50) in proxy.err
