"""Every n-th system call of the running program fails: no client hangs, and nothing stays broken."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, echo
from support.clients import ask, connect, payload, receive_all, sending
from support.injection import injecting
from support.process import Running, free_port, is_listening, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = """
fallback_tcp = "{tcp}"
[server]
bind = "127.0.0.1"
port = 0
max_connections_per_ip = 5000
connect_timeout_ms = 2000
hot_reload = false
[[protocols]]
name = "local"
patterns = ["UNIX"]
forward_to = "{unix}"
transport = "tcp"
"""
CALLS = [
    *(f"accept4:{error}:3" for error in ("EMFILE", "ENOMEM", "ECONNABORTED", "EPERM", "EIO")),
    *(f"connect:{error}:4" for error in ("ENOMEM", "EINTR", "EPERM", "EADDRNOTAVAIL")),
    *(f"recvfrom:{error}:9" for error in ("ENOMEM", "EIO")),
    *(f"sendto:{error}:9" for error in ("ENOMEM", "ENOBUFS", "EPERM", "EIO")),
    # EAGAIN is left out: a kernel that returns it announces later, by an event, that the call can go on.
    # strace does not.
    *(f"splice:{error}:5" for error in ("ENOMEM", "EIO")),
    *(f"epoll_ctl:{error}:7" for error in ("ENOMEM", "ENOSPC")),
    *(f"socket:{error}:3" for error in ("EMFILE", "ENOBUFS")),
    *(f"shutdown:{error}:3" for error in ("ENOTCONN", "ENOBUFS")),
    *("setsockopt:ENOMEM:5", "getsockopt:ENOBUFS:3", "ioctl:EIO:3", "pipe2:EMFILE:1", "epoll_pwait:EINTR:3"),
]
"""System calls, each with the error that it returns and the n of "every n-th call"."""


def exchange(program: Running, number: int) -> bool:
    """Send bytes and read the echo; return whether all came back. An incomplete echo must be a prefix
    without an orderly end."""
    size = (10, 3_000, 200_000, 1_500_000)[number % 4]
    data = (b"UNIX" if number % 3 == 2 else b"?") + payload(number, size)
    try:
        with connect(program.address) as sock, sending(sock, data) as sent:
            received = receive_all(sock)
    except ConnectionError:
        return False
    assert data.startswith(received.data), "the client received bytes that it did not send"
    whole = received.data == data
    # A send that meets the reset takes its error; the next receive then looks like an orderly end.
    assert whole or received.end == "reset" or not sent.is_set(), "the echo was cut off but ended in order"
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_system_call_that_sometimes_fails_hangs_no_client_and_leaks_nothing(
    tmp_path: Path, call: str
) -> None:
    path = tmp_path / "refractium.toml"
    with (
        Backend(echo) as tcp,
        Backend(echo, path=tmp_path / "backend") as unix,
        ThreadPoolExecutor(8) as pool,
    ):
        path.write_text(CONFIGURATION.format(tcp=tcp.address, unix=unix.address))
        with serving("tcp", "-c", path) as program:
            assert all(pool.map(lambda number: exchange(program, number), range(12)))
            with injecting(call, program.pid):
                list(pool.map(lambda number: exchange(program, number), range(48)))
            assert all(pool.map(lambda number: exchange(program, number), range(24)))
            eventually(lambda: not status_of(program).tcp.active, "no client is connected")
            tcp_status = status_of(program).tcp
            assert tcp_status.accepted == tcp_status.finished + sum(tcp_status.refused.values())
            eventually(program.is_idle, "the program is idle")
            assert program.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_listener_that_cannot_start_at_a_reload_starts_at_the_next_reload(
    tmp_path: Path, workers: int
) -> None:
    path, stays, goes, comes = tmp_path / "refractium.toml", free_port(), free_port(), free_port()
    server = f"[server]\nworkers = {workers}\nhot_reload = false\n"

    def configure(*ports: int) -> None:
        listeners = "".join(f'[[listeners]]\nbind = "127.0.0.1"\nport = {port}\n' for port in ports)
        path.write_text(f'fallback_tcp = "{backend.address}"\n{listeners}{server}')

    def answered(port: int) -> bytes:
        return ask(("127.0.0.1", port), b"?").data

    with Backend(echo) as backend:
        configure(stays, goes)
        with serving("tcp", "-c", path) as program:
            program.await_out(f":{goes}$")
            configure(stays, comes)
            with injecting("getsockname:ENOBUFS:1", program.pid):
                program.signal(signal.SIGHUP)
                program.await_err(
                    rf"cannot listen on tcp://127\.0\.0\.1:{comes}: .*; the next reload tries again$"
                )
            assert not is_listening(goes)
            assert not is_listening(comes)
            assert answered(stays) == b"?"
            program.signal(signal.SIGHUP)
            program.await_out(f":{comes}$")
            assert (answered(stays), answered(comes)) == (b"?", b"?")
            assert program.terminate() == 0
