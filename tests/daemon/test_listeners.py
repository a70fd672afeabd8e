"""Several listeners of one program: at the start, over reloads, and handed down."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, named
from support.clients import ask, connect, receive
from support.process import Running, environment, free_port, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HAND_DOWN = """
import fcntl, os, sys
for number, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]], 3):
    os.dup2(fd, number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
os.execv(sys.argv[3], sys.argv[3:])
"""
SSH = b"SSH-2.0-test\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def web() -> Iterator[Backend]:
    with Backend(named("web")) as backend:
        yield backend


@pytest.fixture
def shell() -> Iterator[Backend]:
    with Backend(named("shell")) as backend:
        yield backend


def listener(port: int, *lines: str) -> str:
    return "\n".join(("[[listeners]]", 'bind = "127.0.0.1"', f"port = {port}", *lines, ""))


def routes(web: Backend, shell: Backend) -> str:
    return (
        f'[[protocols]]\nname = "http"\nforward_to = "{web.address}"\n'
        f'[[protocols]]\nname = "ssh"\nid = "shell"\nforward_to = "{shell.address}"\n'
    )


def answer(port: int, request: bytes, source: str | None = None) -> bytes:
    """Return the answer to a request, after which the connection must end."""
    return ask(("127.0.0.1", port), request, source=source).data.removesuffix(request)


def test_each_listener_serves_its_own_routes_to_its_own_clients(
    tmp_path: Path, web: Backend, shell: Backend
) -> None:
    all_of_them, one, guarded = (free_port() for _ in range(3))
    (tmp_path / "refractium.toml").write_text(
        listener(all_of_them)
        + listener(one, 'routes = ["shell"]')
        + listener(guarded, 'routes = ["http"]', 'deny = ["127.0.0.2"]')
        + routes(web, shell)
    )
    with Running(cwd=tmp_path) as program:
        for port in (all_of_them, one, guarded):
            program.await_out(f"Listening on tcp://127.0.0.1:{port}\n")
        assert "udp://" not in program.out
        told = [[answer(port, request) for request in (GET, SSH)] for port in (all_of_them, one, guarded)]
        assert told == [[b"web", b"shell"], [b"", b"shell"], [b"web", b""]]
        assert answer(guarded, GET, "127.0.0.2") == b""
        assert answer(all_of_them, GET, "127.0.0.2") == b"web"
        status = run("status", cwd=tmp_path)
        assert (status.code, status.err) == (0, "")
        shown = [line.split()[:3] for line in status.out.splitlines() if "127.0.0.1" in line][:3]
        assert shown == [
            ["tcp", f"127.0.0.1:{all_of_them}", "http,"],
            ["tcp", f"127.0.0.1:{one}", "shell"],
            ["tcp", f"127.0.0.1:{guarded}", "http"],
        ]
        assert program.terminate() == 0


def test_a_reload_adds_removes_and_changes_listeners_and_keeps_unchanged_sockets(
    tmp_path: Path, web: Backend, shell: Backend
) -> None:
    stays, goes, comes = (free_port() for _ in range(3))
    file = tmp_path / "refractium.toml"
    rest = routes(web, shell)
    file.write_text(listener(stays) + listener(goes, 'routes = ["http"]') + rest)
    with Running("tcp", cwd=tmp_path) as program:
        program.await_out(f"Listening on tcp://127.0.0.1:{goes}\n")
        with connect(("127.0.0.1", goes)) as client:
            client.sendall(GET)
            assert receive(client, 3 + len(GET)) == b"web" + GET
            file.write_text(listener(stays, 'routes = ["shell"]') + listener(comes) + rest)
            program.await_err("reloaded: configuration 2")
            assert [answer(stays, one) for one in (GET, SSH)] == [b"", b"shell"]
            assert [answer(comes, one) for one in (GET, SSH)] == [b"web", b"shell"]
            with pytest.raises(ConnectionRefusedError):
                connect(("127.0.0.1", goes))
            client.sendall(b"more")
            assert receive(client, 4) == b"more"
        assert program.out.count(f"tcp://127.0.0.1:{stays}\n") == 1

        # If one listener cannot be opened, everything stays as it was.
        with socket.create_server(("127.0.0.1", goes)):
            file.write_text(listener(stays) + listener(goes) + rest)
            program.await_err("not reloaded: cannot listen on tcp://127.0.0.1:[0-9]+: the address is in use")
            assert [answer(stays, one) for one in (GET, SSH)] == [b"", b"shell"]
            assert [answer(comes, one) for one in (GET, SSH)] == [b"web", b"shell"]

        # From [[listeners]] to the listener of [server], and back.
        file.write_text(f'[server]\nbind = "127.0.0.1"\nport = {stays}\ndeny = ["127.0.0.3"]\n{rest}')
        program.await_err("reloaded: configuration 3")
        assert [answer(stays, one) for one in (GET, SSH)] == [b"web", b"shell"]
        assert answer(stays, GET, "127.0.0.3") == b""
        assert program.out.count(f"tcp://127.0.0.1:{stays}\n") == 1
        assert program.terminate() == 0


def test_an_address_given_up_for_a_new_one_is_restored_if_the_new_one_fails(
    tmp_path: Path, web: Backend, shell: Backend
) -> None:
    port, taken = free_port(), free_port()
    file = tmp_path / "refractium.toml"
    file.write_text(listener(port).replace("127.0.0.1", "0.0.0.0") + routes(web, shell))
    with Running("tcp", cwd=tmp_path) as program, socket.create_server(("127.0.0.1", taken)):
        program.await_out(f"Listening on tcp://0.0.0.0:{port}\n")
        file.write_text(listener(port) + listener(taken) + routes(web, shell))
        program.await_err("not reloaded: cannot listen")
        assert answer(port, GET) == b"web"
        assert answer(port, GET, "127.0.0.2") == b"web"
        assert program.terminate() == 0


def test_flags_cannot_set_the_address_of_several_listeners(
    tmp_path: Path, web: Backend, shell: Backend
) -> None:
    (tmp_path / "refractium.toml").write_text(listener(1) + routes(web, shell))
    done = run("check", "-p", 2, "-b", "::1", cwd=tmp_path)
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: --bind: the file has [[listeners]], each with its own bind",
        "error: --port: the file has [[listeners]], each with its own port",
    ]


def test_listeners_that_name_missing_routes_are_errors(tmp_path: Path, web: Backend, shell: Backend) -> None:
    file = tmp_path / "refractium.toml"
    file.write_text(listener(1, 'routes = ["http", "shel"]') + routes(web, shell))
    done = run("check", cwd=tmp_path)
    assert done.code == 2
    assert "refractium.toml:4: listeners[0].routes[1]: 'shel' is not known: did you mean 'shell'?" in done.err
    # A listener may name a route that only a flag gives.
    file.write_text(listener(1, 'routes = ["ftp"]') + routes(web, shell))
    assert run("check", "-f", "ftp=127.0.0.1:21", cwd=tmp_path).code == 0


def test_check_shows_the_routes_of_each_listener(tmp_path: Path, web: Backend, shell: Backend) -> None:
    (tmp_path / "refractium.toml").write_text(
        listener(1, 'routes = ["shell"]', 'allow = ["10.0.0.0/8"]', 'transports = ["tcp"]')
        + listener(2)
        + routes(web, shell)
    )
    done = run("check", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines()[:3]] == [
        ["listener", "transports", "routes", "access"],
        ["127.0.0.1:1", "tcp", "shell", "allow", "10.0.0.0/8"],
        ["127.0.0.1:2", "tcp,", "udp", "all"],
    ]


def test_sockets_handed_down_go_to_the_listeners_of_their_ports(
    tmp_path: Path, web: Backend, shell: Backend
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        ports = [sock.getsockname()[1] for sock in (first, second)]
        other = free_port()
        file = tmp_path / "refractium.toml"
        text = listener(ports[1], 'routes = ["shell"]') + listener(other) + routes(web, shell)
        file.write_text(listener(ports[0], 'routes = ["http"]') + text)
        fds = [sock.fileno() for sock in (first, second)]
        line = f'exec {sys.executable} -c "$HAND_DOWN" {fds[0]} {fds[1]} "$@"'
        env = environment(HAND_DOWN=HAND_DOWN)
        with Running("tcp", cwd=tmp_path, env=env, shell=line, pass_fds=fds) as program:
            program.await_out(f"Listening on tcp://127.0.0.1:{other}\n")
            told = [[answer(port, request) for request in (GET, SSH)] for port in (*ports, other)]
            assert told == [[b"web", b""], [b"", b"shell"], [b"web", b"shell"]]
            assert program.terminate() == 0
        file.write_text(text)
        with Running("tcp", cwd=tmp_path, env=env, shell=line, pass_fds=fds) as program:
            program.await_err(f"127.0.0.1:{ports[0]}, handed down: no entry of \\[\\[listeners\\]\\]")
            assert program.wait() == 1
