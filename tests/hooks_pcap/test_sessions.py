"""A hundred sessions of chance through a real proxy: the capture has what was sent, byte for byte."""

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
"""Bytes of each of two, one in either direction."""
TURNS: Final = 26
"""Pieces that a large one comes in, each answered by a byte, so that the disk of a slow machine keeps up."""
_NUMBER: Final = 4


class Session(NamedTuple):
    """What both sides send.

    Attributes:
        number: the first bytes of the client.
        host: where the client finds the proxy.
        up: bytes that the client sends after these.
        down: bytes that the server sends.
        client_ends_first: or the server does.
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
        """What the client sends after its number, and what the server sends."""
        return payload(f"up {self.number}", self.up), payload(f"down {self.number}", self.down)


def sessions_of_chance(seed: str) -> list[Session]:
    """In the order of their numbers; the large ones are first."""
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
        proxy: between the two.
    """

    def __init__(self, sessions: list[Session]) -> None:
        self.proxy: Running
        self._sessions = sessions

    def serve(self, sock: socket.socket) -> None:
        """The server's side."""
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
        """The client's side; its own address and port."""
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
    """Send or receive one piece after the other, each when the one before has passed the proxy."""
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
def test_the_capture_has_what_was_sent_byte_for_byte(tmp_path: Path) -> None:
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
        # Where only one end has an IPv6 address, the other is mapped into it.
        server = "127.0.0.1" if session.host == "127.0.0.1" else "[::ffff:127.0.0.1]"
        assert found[client].server == f"{server}:{backend.port}"
        # Not compared as they are: a difference of megabytes would be printed.
        assert (found[client].up == session.number.to_bytes(_NUMBER) + up) is True, session
        assert (found[client].down == down) is True, session
