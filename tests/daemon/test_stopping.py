"""Signals: the first one lets connections finish, the second one does not."""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, hanging, named
from support.clients import connect, payload, receive, receive_all
from support.process import Running, free_port, is_listening, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from pathlib import Path

HTTP = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
LOCAL = ("-b", "127.0.0.1", "-p", 0)
each_signal = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name
)


def refuses(address: tuple[str, int]) -> bool:
    try:
        connect(address).close()
    except ConnectionError:  # a reset, if the connection was in the queue when the listener closed
        return True
    return False


@each_signal
def test_a_signal_ends_an_idle_program_with_exit_0(number: signal.Signals) -> None:
    with serving(*LOCAL, "-f", "http=127.0.0.1:9") as proxy:
        proxy.signal(number)
        assert proxy.wait() == 0
        assert f"{number.name}: 0 connections may finish" in proxy.err
        assert "info stopped after 0 connections" in proxy.err.splitlines()[-1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_ends_a_start_that_waits_for_the_first_checks(workers: int, tmp_path: Path) -> None:
    port = free_port()
    with hanging() as dead:
        (tmp_path / "refractium.toml").write_text(
            f'[server]\nworkers = {workers}\n[[protocols]]\nname = "http"\nforward_to = "{dead}"\n'
            'health = { kind = "tcp", timeout_ms = 20000 }\n'
        )
        with Running("-b", "127.0.0.1", "-p", port, cwd=tmp_path) as program:
            eventually(lambda: is_listening(port), "clients may wait")
            assert program.terminate() == 0
            assert "info stopped after 0 connections" in program.err.splitlines()[-1]
            assert "Listening on" not in program.out


@each_signal
def test_a_running_transfer_finishes_while_no_new_client_is_accepted(number: signal.Signals) -> None:
    data = payload("transfer", 1 << 20)
    may_go_on = threading.Event()

    def in_two_parts(sock: socket.socket) -> None:
        receive(sock, len(HTTP))
        sock.sendall(data[:1000])
        assert may_go_on.wait(10)
        sock.sendall(data[1000:])

    with (
        Backend(in_two_parts) as backend,
        serving(*LOCAL, "-f", f"http={backend.address}") as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(HTTP)
        assert receive(client, 1000) == data[:1000]
        proxy.signal(number)
        proxy.await_err(rf"{number.name}: 1 connections may finish$")
        eventually(lambda: refuses(proxy.address), "new connections are refused")
        may_go_on.set()
        assert receive_all(client) == (data[1000:], "eof")
        client.close()
        assert proxy.wait() == 0
        assert " info stopped after " in proxy.err.splitlines()[-1]


def test_connections_that_outlive_the_drain_timeout_are_cut_and_counted(tmp_path: Path) -> None:
    with Backend(named("web")) as backend:
        (tmp_path / "refractium.toml").write_text(
            "[server]\ndrain_timeout_ms = 100\n"
            f'[[protocols]]\nname = "http"\nforward_to = "{backend.address}"\n'
        )
        with serving(*LOCAL, cwd=tmp_path) as proxy, connect(proxy.address) as client:
            client.sendall(HTTP)
            assert receive(client, 3 + len(HTTP)) == b"web" + HTTP
            assert proxy.terminate() == 0
            assert receive_all(client) == (b"", "reset")
            assert re.search(r" warning stopped with 1 connections .*still open", proxy.err)
            assert "cut at the drain timeout" in proxy.err


def test_a_second_signal_ends_at_once() -> None:
    with (
        Backend(named("web")) as backend,
        serving(*LOCAL, "-f", f"http={backend.address}") as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(HTTP)
        assert receive(client, 3 + len(HTTP)) == b"web" + HTTP
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM: 1 connections may finish$")
        began = time.monotonic()
        proxy.signal(signal.SIGINT)
        assert proxy.wait() == 0
        assert time.monotonic() - began < 10, "the drain timeout is 30 s"
        assert receive_all(client) == (b"", "reset")
        proxy.await_err(r"SIGINT again: ending at once$")


def test_a_silent_client_may_still_send_its_first_bytes_while_draining() -> None:
    with (
        Backend(named("web")) as backend,
        serving(*LOCAL, "-f", f"http={backend.address}") as proxy,
        connect(proxy.address) as client,
    ):
        client.sendall(HTTP[:1])
        proxy.signal(signal.SIGTERM)
        proxy.await_err(r"SIGTERM: \d connections may finish$")
        client.sendall(HTTP[1:])
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (b"web" + HTTP, "eof")
        assert proxy.wait() == 0
