"""A hundred random sessions through a real proxy: the capture equals the sent bytes."""

from __future__ import annotations

import random
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from hooks_pcap.following import assert_sound, follow
from hooks_pcap.mirroring import await_captured, configuration, mirroring, queued_bytes
from support.backends import Backend
from support.clients import MIB, connect, payload, receive, receive_all
from support.ipv6 import LOOPBACKS
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.process import Running

SESSIONS: Final = 100
LARGE: Final = 104 * MIB
"""Bytes of each of the two large sessions, one upload and one download."""
TURNS: Final = 26
"""Number of pieces of a large session. A byte answers each piece, so that the disk of a slow machine keeps
up."""
_NUMBER: Final = 4


class Session(NamedTuple):
    """The bytes that both sides of a session send.

    Attributes:
        number: the first bytes of the client.
        host: the address at which the client reaches the proxy.
        up: the bytes that the client sends after its number.
        down: the bytes that the server sends.
        client_ends_first: whether the client ends first, and not the server.
    """

    number: int
    host: str
    up: int
    down: int
    client_ends_first: bool = True

    @property
    def bracketed_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def is_large(self) -> bool:
        return LARGE in (self.up, self.down)

    def sent(self) -> tuple[bytes, bytes]:
        """Return the bytes that the client sends after its number, and the bytes that the server sends."""
        return payload(f"up {self.number}", self.up), payload(f"down {self.number}", self.down)


def sessions_of_chance(seed: str) -> list[Session]:
    """Draw random sessions in the order of their numbers; the large sessions come first."""
    chance = random.Random(seed)  # noqa: S311 - test data

    def size() -> int:
        return chance.choice((0, 1, chance.randrange(2_000), chance.randrange(400_000)))

    small = [
        Session(number, LOOPBACKS[number % len(LOOPBACKS)], size(), size(), chance.random() < 0.5)
        for number in range(2, SESSIONS)
    ]
    return [Session(0, LOOPBACKS[0], LARGE, TURNS), Session(1, LOOPBACKS[-1], TURNS, LARGE), *small]


class Talk:
    """Both sides of all sessions.

    Args:
        sessions: all of them.

    Attributes:
        proxy: the proxy between the two sides.
    """

    def __init__(self, sessions: list[Session]) -> None:
        self.proxy: Running
        self._sessions = sessions

    def serve(self, sock: socket.socket) -> None:
        """Run the side of the server."""
        session = self._sessions[int.from_bytes(receive(sock, _NUMBER))]
        up, down = session.sent()
        if session.is_large:
            take_turns(sock, down, up)
            assert not receive_all(sock).data
        elif session.client_ends_first:
            assert receive_all(sock).data == up
            sock.sendall(down)
        else:
            sock.sendall(down)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock).data == up

    def ask(self, session: Session) -> str:
        """Run the side of the client, and return its own address and port."""
        up, down = session.sent()
        with connect((session.host, self.proxy.port)) as sock:
            sock.sendall(session.number.to_bytes(_NUMBER))
            if session.is_large:
                take_turns(sock, up, down, self._wait)
                sock.shutdown(socket.SHUT_WR)
                assert receive_all(sock) == (b"", "eof")
            elif session.client_ends_first:
                sock.sendall(up)
                sock.shutdown(socket.SHUT_WR)
                assert receive_all(sock) == (down, "eof")
            else:
                assert receive_all(sock) == (down, "eof")
                sock.sendall(up)
            port = sock.getsockname()[1]
            return f"{session.bracketed_host}:{port}"

    def _wait(self) -> None:
        eventually(lambda: queued_bytes(self.proxy) < MIB, "the hook keeps up")


def take_turns(
    sock: socket.socket, mine: bytes, others: bytes, wait: Callable[[], None] = lambda: None
) -> None:
    """Send or receive one piece after the other, each after the piece before it has passed the proxy."""
    gives = len(mine) > len(others)
    for turn in range(TURNS):
        piece, answer = (
            one[turn * (len(one) // TURNS) : (turn + 1) * (len(one) // TURNS)] for one in (mine, others)
        )
        if gives:
            sock.sendall(piece)
        assert receive(sock, len(answer)) == answer
        wait()
        if not gives:
            sock.sendall(piece)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_capture_equals_the_sent_bytes(tmp_path: Path) -> None:
    for program in ("tshark", "capinfos"):
        require_program(program)
    path = tmp_path / "sessions.pcapng"
    sessions = sessions_of_chance("2026")
    talk = Talk(sessions)
    with (
        Backend(talk.serve) as backend,
        mirroring(tmp_path, configuration(backend.address, path)) as talk.proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        clients = list(pool.map(talk.ask, sessions))
        for _ in sessions:
            backend.result()
        await_captured(talk.proxy)
        assert talk.proxy.terminate() == 0
    raw = ("-d", f"tcp.port=={backend.port},data")
    assert_sound(path, *raw)
    found = {one.client: one for one in follow(path, *raw)}
    assert sorted(found) == sorted(clients)
    for client, session in zip(clients, sessions, strict=True):
        up, down = session.sent()
        # If only one end has an IPv6 address, the address of the other is mapped into IPv6.
        server = "127.0.0.1" if session.host == "127.0.0.1" else "[::ffff:127.0.0.1]"
        assert found[client].server == f"{server}:{backend.port}"
        # `is True` keeps pytest from printing a difference of megabytes.
        assert (found[client].up == session.number.to_bytes(_NUMBER) + up) is True, session
        assert (found[client].down == down) is True, session
