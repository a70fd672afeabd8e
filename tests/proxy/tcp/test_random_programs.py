"""Random actions of both ends: no byte is lost, added or mixed up, and no connection hangs."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import pytest

from refractium.proxy import weld
from support.backends import Backend
from support.clients import PATIENCE, Received, payload, receive_all, reset
from support.proxy import ProxyThread

if TYPE_CHECKING:
    from pathlib import Path

    from support.proxy import LoopKind

pytestmark = pytest.mark.usefixtures("data_path")

PROGRAMS: Final = 150
SEED: Final = int(os.environ.get("RANDOM_PROGRAMS_SEED", "20251122"))
"""The seed of all programs, always the same unless RANDOM_PROGRAMS_SEED asks for other programs."""

Ending = Literal["shut", "close", "reset"]


@dataclass(frozen=True)
class Program:
    """The behaviour of one end: it sends chunks (bytes) with pauses (ms) between them, reads meanwhile, and
    ends."""

    name: str
    chunks: tuple[int, ...]
    pauses: tuple[int, ...]
    ending: Ending
    buffer: int

    @property
    def data(self) -> bytes:
        return payload(self.name, sum(self.chunks))

    @classmethod
    def random(cls, rng: random.Random, name: str, *, at_least: int) -> Program:
        count = rng.randint(at_least, 4)
        return cls(
            name=name,
            chunks=tuple(rng.choice((1, 100, 5_000, 65_536, 300_000)) for _ in range(count)),
            pauses=tuple(rng.choice((0, 0, 1, 3)) for _ in range(count)),
            ending=rng.choice(("shut", "shut", "shut", "close", "reset")),
            buffer=rng.choice((0, 0, 4096)),
        )

    def run(self, sock: socket.socket) -> Received:
        """Run the program, and return the bytes received meanwhile."""
        received: list[Received] = []
        reader = threading.Thread(target=lambda: received.append(self._read(sock)))
        reader.start()
        with contextlib.suppress(OSError):
            sent = 0
            for size, pause in zip(self.chunks, self.pauses, strict=True):
                sock.sendall(self.data[sent : sent + size])
                sent += size
                time.sleep(pause / 1000)
            if self.ending == "shut":
                sock.shutdown(socket.SHUT_WR)
            elif self.ending == "close":
                sock.shutdown(socket.SHUT_RDWR)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.shutdown(socket.SHUT_RD)
        reader.join(PATIENCE)
        assert not reader.is_alive(), f"{self} hangs"
        if self.ending == "shut":
            sock.close()
        else:
            # This acts like a close with unread bytes. After SHUT_RDWR nobody would open a full receive
            # window. For a minute (FIN-WAIT-2) the proxy could then neither send the rest nor learn that
            # nobody reads it.
            reset(sock)
        return received[0]

    def _read(self, sock: socket.socket) -> Received:
        try:
            return receive_all(sock)
        except TimeoutError:
            return Received(b"", "eof")


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_each_end_receives_the_bytes_that_the_other_sent(
    family: str, loop: LoopKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A client that has closed with a full receive buffer neither takes bytes nor resets.
    monkeypatch.setattr(weld, "_RESET_PATIENCE", 2.0)
    programs: queue.SimpleQueue[Program] = queue.SimpleQueue()

    def backend_end(sock: socket.socket) -> Received:
        return programs.get().run(sock)

    print(f"seed {SEED}")  # noqa: T201 - shown if the test fails
    with (
        Backend(backend_end, path=tmp_path / "backend" if family == "unix" else None) as backend,
        # A unix backend that leaves at once makes the very first send fail.
        ProxyThread(fallback=backend.address, expected=["Broken pipe", "reset by peer"], loop=loop) as proxy,
    ):
        for number in range(PROGRAMS):
            rng = random.Random(f"{SEED} {number}")  # noqa: S311 - chooses test data
            mine = Program.random(rng, f"client {number}", at_least=1)
            theirs = Program.random(rng, f"backend {number}", at_least=0)
            programs.put(theirs)
            client = proxy.connect(receive_buffer=mine.buffer)
            at_client = mine.run(client)
            summary = proxy.next_end()
            at_backend = backend.result()
            shown = f"program {number}: {mine} {theirs} {summary}"
            assert theirs.data.startswith(at_client.data), shown
            assert mine.data.startswith(at_backend.data), shown
            if mine.ending == theirs.ending == "shut":
                assert at_client == (theirs.data, "eof"), shown
                assert at_backend == (mine.data, "eof"), shown
                assert summary.ended == "closed", shown
