"""Messages to systemd, and sockets that systemd hands down."""

from __future__ import annotations

import json
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from support.activation import start_on
from support.backends import Backend, named
from support.clients import PATIENCE, ask
from support.datagrams import UdpBackend, echo
from support.datagrams import ask as ask_datagram
from support.process import Running, environment, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


ARGUMENTS = ("tcp", "-b", "127.0.0.1", "-p", 0, "-f", "http=127.0.0.1:9")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen where a service manager would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(str(tmp_path / "notify"))
        yield sock


def test_the_manager_is_notified_of_readiness_reloads_and_the_stop(
    manager: socket.socket, tmp_path: Path
) -> None:
    env = environment(NOTIFY_SOCKET=manager.getsockname())
    with Running(*ARGUMENTS, cwd=tmp_path, env=env) as program:
        assert manager.recv(1000) == b"READY=1"
        program.await_out("Listening on")
        assert ask(("127.0.0.1", program.port), b"no http\r\n").end == "eof"
        program.signal(signal.SIGHUP)
        reloading = manager.recv(1000)
        assert reloading.startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert int(reloading.rpartition(b"=")[2]) > 0
        assert manager.recv(1000) == b"READY=1"
        program.signal(signal.SIGTERM)
        assert manager.recv(1000) == b"STOPPING=1"
        assert program.wait() == 0


def test_a_manager_that_is_gone_does_no_harm(manager: socket.socket, tmp_path: Path) -> None:
    env = environment(NOTIFY_SOCKET=manager.getsockname())
    manager.close()
    with Running(*ARGUMENTS, cwd=tmp_path, env=env) as program:
        program.await_out("Listening on")
        assert program.terminate() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_handed_down_sockets_are_used_and_stay_over_a_reload(tmp_path: Path, workers: int) -> None:
    with (
        Backend(named("a")) as backend,
        UdpBackend(echo) as datagrams,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        file = tmp_path / "refractium.toml"
        text = f'fallback_tcp = "{backend.address}"\nfallback_udp = "{datagrams.address}"\n[server]\n'
        text += f"workers = {workers}\n"
        file.write_text(f"{text}hot_reload = false\nport = 1\n")
        with start_on(tcp, udp, cwd=tmp_path) as program:
            program.await_out(f"Listening on tcp://127.0.0.1:{tcp.getsockname()[1]}")
            program.await_out(f"Listening on udp://127.0.0.1:{udp.getsockname()[1]}")
            for _ in range(2):
                for _ in range(5 * workers):
                    assert ask(tcp.getsockname(), b"hello").data == b"ahello"
                    assert ask_datagram(udp.getsockname(), b"hello") == b"hello"
                program.signal(signal.SIGHUP)
                program.await_err("configuration 2 is in force")
            assert ":1\n" not in program.out  # the port in the file is not bound
            status = run("status", "-p", tcp.getsockname()[1], "--json")
            assert json.loads(status.out)["pid"] == program.pid, "the process that takes signals"
            file.write_text(f"{text}port = 2\n")
            program.signal(signal.SIGHUP)
            program.await_err("not reloaded: .*, handed down: .* the listener 0.0.0.0:1: restart ")
            assert ask(tcp.getsockname(), b"hello").data == b"ahello"
            assert program.terminate() == 0


def test_sockets_for_another_process_are_left_alone(tmp_path: Path) -> None:
    env = environment(LISTEN_PID="1", LISTEN_FDS="1")
    with Running(*ARGUMENTS, cwd=tmp_path, env=env) as program:
        program.await_out("Listening on tcp://127.0.0.1:")
        assert program.terminate() == 0


def handed_down(tmp_path: Path, sock: socket.socket) -> str:
    """Return the error for a handed-down socket that clients cannot reach."""
    with start_on(sock, arguments=ARGUMENTS, cwd=tmp_path) as program:
        assert program.wait() == 1
        assert "Traceback" not in program.err
        return program.err


def test_a_handed_down_socket_that_clients_cannot_reach_is_refused_with_the_reason(tmp_path: Path) -> None:
    with socket.socket() as bound, socket.socket(socket.AF_UNIX) as unix:
        bound.bind(("127.0.0.1", 0))
        assert "it does not listen: use ListenStream=" in handed_down(tmp_path, bound)
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        assert "it is not an IPv4 or IPv6 socket" in handed_down(tmp_path, unix)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connected,
        socket.socket(type=socket.SOCK_DGRAM) as unbound,
        socket.socket(type=socket.SOCK_DGRAM) as joined,
    ):
        assert "it does not listen" in handed_down(tmp_path, connected)
        assert "it is not a UDP socket that is bound to a port" in handed_down(tmp_path, unbound)
        joined.bind(("127.0.0.1", 0))
        joined.connect(("127.0.0.1", 9))
        assert "open to all: use ListenDatagram=" in handed_down(tmp_path, joined)


@pytest.mark.parametrize("number", ["abc", "-1", "1.5", ""])
def test_a_malformed_number_of_sockets_is_refused_with_the_reason(tmp_path: Path, number: str) -> None:
    shell = f'LISTEN_PID=$$ LISTEN_FDS="{number}" exec "$@"'
    with Running(*ARGUMENTS, cwd=tmp_path, shell=shell) as program:
        assert program.wait() == 1
        assert "cannot listen on LISTEN_FDS" in program.err
        assert "is not a number of sockets" in program.err


def test_a_handed_down_descriptor_that_is_not_a_socket_is_a_clear_error(tmp_path: Path) -> None:
    shell = 'exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    with Running(*ARGUMENTS, cwd=tmp_path, shell=shell) as program:
        assert program.wait() == 1
        assert "cannot listen on descriptor 3 of LISTEN_FDS" in program.err
