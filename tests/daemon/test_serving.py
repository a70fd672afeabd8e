"""The running program: its listeners, the backends of its clients, and the surroundings that it needs."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, named, refusing
from support.clients import ask, connect, receive
from support.process import Running, environment, free_port, is_listening, run, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HTTP = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
SSH = b"SSH-2.0-Client\r\n"
LOCAL = ("-b", "127.0.0.1", "-p", 0)


def name_of(address: tuple[str, int], request: bytes = HTTP) -> str:
    """Return the name of the backend that answers a request."""
    return ask(address, request).data.decode().removesuffix(request.decode())


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(named("web")) as backend:
        yield backend


@pytest.mark.parametrize("command", [[], ["tcp"]], ids=["no command", "tcp"])
def test_port_0_takes_a_free_port_and_prints_it(command: list[str], backend: Backend) -> None:
    with serving(*command, *LOCAL, "-f", f"http={backend.address}") as proxy:
        assert proxy.addresses == [f"127.0.0.1:{proxy.port}"]
        assert name_of(proxy.address) == "web"
        assert proxy.terminate() == 0


def test_address_and_port_come_from_the_file_unless_flags_set_them(tmp_path: Path, backend: Backend) -> None:
    port = free_port()
    (tmp_path / "refractium.toml").write_text(
        f'[server]\nbind = "127.0.0.1"\nport = {port}\n'
        f'[[protocols]]\nname = "http"\nforward_to = "{backend.address}"\n'
    )
    with serving(cwd=tmp_path) as proxy:
        assert proxy.addresses == [f"127.0.0.1:{port}"]
        with serving("tcp", "-p", 0, cwd=tmp_path) as other:
            assert other.port != port
            assert name_of(proxy.address) == name_of(other.address) == "web"


def test_repeated_forwards_of_one_protocol_are_used_in_turn(backend: Backend) -> None:
    with (
        Backend(named("second")) as second,
        Backend(named("shell")) as shell,
        serving(
            *("-f", f"http={backend.address}", "tcp", *LOCAL),
            *("-f", f"http={second.address}", "-f", f"ssh={shell.address}"),
        ) as proxy,
    ):
        assert [name_of(proxy.address) for _ in range(4)] == ["web", "second", "web", "second"]
        assert name_of(proxy.address, SSH) == "shell"


@pytest.mark.parametrize(
    ("bind", "shown", "reached_at"),
    [
        ("::1", ["[::1]"], ["::1"]),
        ("::", ["[::]"], ["::1", "127.0.0.1"]),
        ("0.0.0.0", ["0.0.0.0"], ["127.0.0.1"]),
    ],
    ids=["IPv6", "both", "IPv4"],
)
def test_the_program_listens_on_ipv4_ipv6_or_both(
    backend: Backend, bind: str, shown: list[str], reached_at: list[str]
) -> None:
    with serving("-b", bind, "-p", 0, "-f", f"http={backend.address}") as proxy:
        assert proxy.addresses == [f"{host}:{proxy.port}" for host in shown]
        for host in reached_at:
            assert name_of((host, proxy.port)) == "web"
            # IPv4-mapped addresses are shown as IPv4 addresses.
            proxy.await_err(rf"info (\[{host}\]|{host}):\d+ http ")


def test_a_name_is_bound_at_all_its_addresses_with_one_port(backend: Backend) -> None:
    hosts = {one[4][0] for one in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with serving("-b", "localhost", "-p", 0, "-f", f"http={backend.address}") as proxy:
        for host in hosts:
            shown = f"[{host}]" if ":" in str(host) else host
            proxy.await_out(rf"^Listening on tcp://{shown}:{proxy.port}$".replace("[", r"\["))
            assert name_of((str(host), proxy.port)) == "web"


def test_a_second_instance_on_the_same_port_fails_loudly_and_the_first_goes_on(backend: Backend) -> None:
    forward = ("-f", f"http={backend.address}")
    with serving(*LOCAL, *forward) as proxy:
        second = run("-b", "127.0.0.1", "-p", proxy.port, *forward)
        assert second.code == 1
        assert "Listening" not in second.out
        shown = f"tcp://127.0.0.1:{proxy.port}"
        assert re.fullmatch(rf"error: [^\n]*{re.escape(shown)}: [^\n]*in use[^\n]*\n", second.err)
        assert name_of(proxy.address) == "web"


def test_an_address_of_another_machine_fails_with_exit_1() -> None:
    done = run("-b", "192.0.2.1", "-p", 0, "-f", "http=127.0.0.1:9")
    assert done.code == 1
    assert re.fullmatch(r"error: [^\n]*tcp://192\.0\.2\.1:0: [^\n]*this machine[^\n]*\n", done.err)


@pytest.mark.parametrize(
    ("command", "transports"),
    [([], ["tcp", "udp"]), (["tcp"], ["tcp"]), (["udp"], ["udp"])],
    ids=["no command", "tcp", "udp"],
)
def test_the_command_says_which_transports_share_the_port(command: list[str], transports: list[str]) -> None:
    with Running(*command, *LOCAL, "-f", "dns=127.0.0.1:9") as proxy:
        proxy.await_out(rf"^Listening on {transports[-1]}://")
        assert proxy.terminate() == 0
        listening = re.findall(r"^Listening on (\w+)://127\.0\.0\.1:(\d+)$", proxy.out, re.MULTILINE)
        assert [transport for transport, _ in listening] == transports
        assert len({port for _, port in listening}) == 1


def test_a_transport_without_routes_is_left_out(backend: Backend) -> None:
    with serving(*LOCAL, "-f", f"http={backend.address}") as proxy:
        assert proxy.terminate() == 0
        assert "udp://" not in proxy.out


def test_warnings_of_the_configuration_are_logged_at_the_start(backend: Backend) -> None:
    with serving(*LOCAL, "-f", f"http={backend.address}", "--max-connections", 10) as proxy:
        proxy.await_err(
            r" warning server.max_connections_per_ip: .* take all of max_connections \[wide-limit\]$"
        )


def test_a_broken_plugin_that_no_route_needs_does_not_stop_the_start(
    broken_plugin: Path, backend: Backend
) -> None:
    env = environment(PYTHONPATH=str(broken_plugin))
    with serving(*LOCAL, "-f", f"http={backend.address}", env=env) as proxy:
        proxy.await_err(r" warning plugin cracked: .* not used: .*: the glass is cracked \[broken-plugin\]$")
        assert name_of(proxy.address) == "web"


def test_a_limit_given_as_a_flag_applies(backend: Backend) -> None:
    with serving(*LOCAL, "-f", f"http={backend.address}", "--max-connections-per-ip", 1) as proxy:
        with connect(proxy.address) as held:
            held.sendall(HTTP)
            assert receive(held, 3) == b"web"
            assert ask(proxy.address, HTTP).data == b""
            proxy.await_err(r" warning refused a connection from 127\.0\.0\.1: ")
        eventually(lambda: name_of(proxy.address) == "web", "there is room for a client again")


def test_the_peek_timeout_given_as_a_flag_applies() -> None:
    with (
        Backend(named("silent")) as silent,
        serving(*LOCAL, "-f", f"ftp={silent.address}", "--peek-timeout", 1) as proxy,
        connect(proxy.address) as client,
    ):
        assert receive(client, 6) == b"silent"


# Output that nobody reads


@pytest.mark.parametrize("when", ["from the start", "later"])
def test_the_program_goes_on_serving_when_nobody_reads_its_stdout(when: str, backend: Backend) -> None:
    port = free_port()
    reading, writing = os.pipe()
    with Running("-b", "127.0.0.1", "-p", port, "-f", f"http={backend.address}", stdout=writing) as proxy:
        os.close(writing)
        with os.fdopen(reading) as lines:
            if when == "later":
                assert any(line.startswith("Listening") for line in lines)
        eventually(lambda: is_listening(port), "the program listens")
        assert name_of(("127.0.0.1", port)) == "web"
        assert proxy.terminate() == 0


CLOSED = {
    "stdout is closed": 'exec "$@" >&-',
    "stdout is on a full disk": 'exec "$@" >/dev/full',
    "stderr is closed": 'exec "$@" 2>&-',
    "stderr is on a full disk": 'exec "$@" 2>/dev/full',
    "all streams are closed": 'exec "$@" <&- >&- 2>&-',
}


@pytest.mark.parametrize("shell", CLOSED.values(), ids=CLOSED)
def test_the_program_serves_and_stops_in_order_when(shell: str, backend: Backend) -> None:
    port = free_port()
    command = ("-b", "127.0.0.1", "-p", port, "-f", f"http={backend.address}")
    with Running(*command, shell=shell) as proxy:
        eventually(lambda: is_listening(port), "the program listens")
        assert name_of(("127.0.0.1", port)) == "web"
        assert proxy.terminate() == 0


def test_a_backend_that_is_the_listener_itself_is_never_dialled(backend: Backend) -> None:
    port = free_port()
    with serving(
        "-b", "127.0.0.1", "-p", port, "-f", f"http=127.0.0.1:{port}", "-f", f"ssh={backend.address}"
    ) as proxy:
        assert ask(proxy.address, HTTP).data == b""
        proxy.await_err(r"route leads back to this listener$")
        assert name_of(proxy.address, SSH) == "web"


def test_a_backend_that_is_down_is_reported_and_the_client_reset() -> None:
    with refusing() as address, serving(*LOCAL, "-f", f"http={address}") as proxy:
        assert ask(proxy.address, HTTP) == (b"", "reset")
        proxy.await_err(rf" warning backend {address} cannot be reached .*: Connection refused$")
        proxy.await_err(r" http .* -> none up=0 down=0 .* no backend reachable$")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("command", "forwards", "file"),
    [
        ("udp", ["http"], ""),
        ("udp", ["http", "dns"], ""),
        (
            "udp",
            ["http"],
            '[[protocols]]\nname = "x"\npatterns = ["x"]\ntransport = "udp"\naction = "reject"\n',
        ),
        ("tcp", ["ssh", "http"], '[[listeners]]\nport = 1\nroutes = ["ssh"]\n'),
        ("tcp", ["http"], '[[listeners]]\nport = 1\ntransports = ["udp"]\n'),
    ],
)
def test_an_inline_route_that_no_listener_serves_is_an_error(
    tmp_path: Path, command: str, forwards: list[str], file: str, workers: int
) -> None:
    (tmp_path / "refractium.toml").write_text(file)
    flags = [flag for name in forwards for flag in ("-f", f"{name}=127.0.0.1:1")]
    done = run(command, "--workers", workers, *flags, cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert f"-f http: no listener serves this route over {command}" in done.err


def test_a_transport_without_a_route_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "refractium.toml"
    file.write_text('[[protocols]]\nname = "http"\nforward_to = "127.0.0.1:1"\n')
    done = run("udp", "-c", file)
    assert (done.code, done.out) == (2, "")
    assert "udp" in done.err
