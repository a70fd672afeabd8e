"""The view of client and backend when the process that carries their connection is killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from support.backends import Backend
from support.clients import MIB, PATIENCE, Received, connect, payload, receive, receive_all
from support.process import Running, children, environment, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HAND_DOWN: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""A program that hands down a socket as a service manager does before it starts a service
(sd_listen_fds(3))."""
REQUEST: Final = b"\xff\xfe"


@contextmanager
def program_of(tmp_path: Path, backend: Backend, *, workers: int, is_handed_down: bool) -> Iterator[Running]:
    path = tmp_path / "refractium.toml"
    server = f'workers = {workers}\nbind = "127.0.0.1"\nport = 0\nhot_reload = false\n'
    path.write_text(f'fallback_tcp = "{backend.address}"\n[server]\n{server}')
    with ExitStack() as stack:
        if not is_handed_down:
            yield stack.enter_context(serving("tcp", "-c", path))
            return
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        shell = f'exec {sys.executable} -c "$HAND_DOWN" {sock.fileno()} "$@"'
        program = stack.enter_context(
            Running(
                *("tcp", "-c", path),
                env=environment(HAND_DOWN=HAND_DOWN),
                shell=shell,
                pass_fds=[sock.fileno()],
            )
        )
        program.await_out("Listening on")
        yield program


def kill_who_carries(program: Running, workers: int, *, is_handed_down: bool) -> None:
    (serving_pid,) = children(program.pid) if is_handed_down else [program.pid]
    for pid in children(serving_pid) if workers > 1 else [serving_pid]:
        os.kill(pid, signal.SIGKILL)


PROGRAMS: Final = pytest.mark.parametrize(
    ("workers", "is_handed_down"),
    [(1, False), (1, True), (3, False), (3, True)],
    ids=["one process", "one process, sockets handed down", "workers", "workers, sockets handed down"],
)


@PROGRAMS
@pytest.mark.parametrize("size", [1, MIB])
def test_a_stream_that_a_kill_cuts_off_ends_with_a_reset(
    tmp_path: Path, workers: int, size: int, *, is_handed_down: bool
) -> None:
    data = payload("both ways", size)
    arrived = threading.Semaphore(0)

    def half(sock: socket.socket) -> Received:
        receive(sock, len(REQUEST))
        sock.sendall(data)
        part = receive(sock, size)
        arrived.release()
        return Received(part, receive_all(sock).end)

    with (
        Backend(half) as backend,
        program_of(tmp_path, backend, workers=workers, is_handed_down=is_handed_down) as program,
    ):
        clients = [connect(program.address) for _ in range(8)]
        for client in clients:
            client.sendall(REQUEST)
            assert receive(client, size) == data  # so that later bytes are not part of the first bytes
            client.sendall(data)
            assert arrived.acquire(timeout=PATIENCE)
        kill_who_carries(program, workers, is_handed_down=is_handed_down)
        for client in clients:
            with client:
                assert receive_all(client) == (b"", "reset")
            assert backend.result() == (data, "reset")


@PROGRAMS
def test_a_stream_that_ended_before_the_kill_is_complete(
    tmp_path: Path, workers: int, *, is_handed_down: bool
) -> None:
    is_killed = threading.Event()

    def answering(sock: socket.socket) -> Received:
        received = receive_all(sock)
        sock.sendall(b"part")
        is_killed.wait(PATIENCE)
        return received

    with (
        Backend(answering) as backend,
        program_of(tmp_path, backend, workers=workers, is_handed_down=is_handed_down) as program,
        connect(program.address) as client,
    ):
        client.sendall(REQUEST)
        client.sendall(b"whole")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 4) == b"part"
        kill_who_carries(program, workers, is_handed_down=is_handed_down)
        assert receive_all(client) == (b"", "reset")
        is_killed.set()
        assert backend.result() == (REQUEST + b"whole", "eof")
