"""Changes of listeners: afterwards the configured addresses are served, or else the former ones."""

from __future__ import annotations

import random
import signal
import socket
from typing import TYPE_CHECKING, Final

import pytest

from support.backends import Backend, echo, named
from support.clients import ask, connect, receive
from support.ipv6 import HAS_IPV6
from support.process import Running, free_port, serving

if TYPE_CHECKING:
    from pathlib import Path

SEED: Final = random.SystemRandom().randrange(1 << 32)
STEPS: Final = 12


def configuration(binds: list[tuple[str, int]], workers: int, fallback: str) -> str:
    listeners = "".join(f'[[listeners]]\nbind = "{host}"\nport = {port}\n' for host, port in binds)
    server = f"workers = {workers}\nhot_reload = false\nmax_connections_per_ip = 5000\ndrain_timeout_ms = 0"
    return f'fallback_tcp = "{fallback}"\n[server]\n{server}\n{listeners}'


def reached(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def reload(program: Running, path: Path, text: str) -> bool:
    """Reload, and return whether the new configuration is in force."""
    path.write_text(text)
    lines = program.err.count("is in force") + program.err.count("not reloaded")
    program.signal(signal.SIGHUP)
    program.await_err(rf"(?s)\A(.*?(is in force|not reloaded)){{{lines + 1}}}")
    last = [line for line in program.err.splitlines() if "is in force" in line or "not reloaded" in line][-1]
    return "is in force" in last


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_an_address_can_change_on_the_same_port_while_clients_are_connected(
    tmp_path: Path, workers: int, first: str, second: str
) -> None:
    path, port = tmp_path / "refractium.toml", free_port()
    with Backend(echo) as backend:
        path.write_text(configuration([(first, port)], workers, backend.address))
        with serving("tcp", "-c", path) as program:
            held = [connect(("127.0.0.1", port)) for _ in range(12)]
            for sock in held:
                sock.sendall(b"?")
                assert receive(sock, 1) == b"?"
            for host in (second, first):
                assert reload(program, path, configuration([(host, port)], workers, backend.address))
                for _ in range(12):
                    assert ask(("127.0.0.1", port), b"!").data == b"!"
            for sock in held:
                sock.sendall(b"still")
                assert receive(sock, 5) == b"still"
                sock.close()
            assert program.terminate() == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_the_old_address_is_still_served_if_the_new_one_is_in_use(tmp_path: Path, workers: int) -> None:
    path, port = tmp_path / "refractium.toml", free_port()
    with Backend(echo) as backend, socket.create_server(("127.0.0.2", port)):
        path.write_text(configuration([("127.0.0.1", port)], workers, backend.address))
        with serving("tcp", "-c", path) as program:
            assert not reload(program, path, configuration([("0.0.0.0", port)], workers, backend.address))
            for _ in range(12):
                assert ask(("127.0.0.1", port), b"!").data == b"!"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_restart_finds_its_port_free_after_backends_closed_connections_first(
    tmp_path: Path, workers: int
) -> None:
    """The proxy then closes first towards its clients, so their sockets stay in TIME_WAIT on its port."""

    def bye(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(b"bye")

    path, port = tmp_path / "refractium.toml", free_port()
    with Backend(bye) as backend:
        path.write_text(configuration([("127.0.0.1", port)], workers, backend.address))
        for _ in range(2):
            with serving("tcp", "-c", path) as program:
                for _ in range(20):
                    with connect(("127.0.0.1", port)) as sock:
                        sock.sendall(b"?")
                        assert receive(sock, 4) == b"bye"
                assert program.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_after_any_sequence_of_changes_the_configured_or_former_listeners_serve(
    tmp_path: Path, workers: int
) -> None:
    print(f"seed {SEED}")  # noqa: T201 - shown if the test fails
    chance = random.Random(f"{SEED} {workers}")  # noqa: S311 - chooses test data
    path, ports = tmp_path / "refractium.toml", [free_port() for _ in range(2)]
    hosts = ["127.0.0.1", "127.0.0.2", "0.0.0.0", *(["::", "::1"] if HAS_IPV6 else [])]

    def any_binds() -> list[tuple[str, int]]:
        """Draw one listener for each port, so that listeners of one configuration do not conflict."""
        return [(chance.choice(hosts), port) for port in chance.sample(ports, chance.choice([1, 2]))]

    with Backend(named("in")) as backend:
        binds = any_binds()
        path.write_text(configuration(binds, workers, backend.address))
        with serving("tcp", "-c", path) as program:
            for step in range(STEPS):
                wanted = any_binds()
                taken = None
                if chance.random() < 0.3:
                    taken = socket.socket()
                    try:
                        taken.bind(("127.0.0.3", chance.choice(ports)))
                        taken.listen()
                    except OSError:
                        taken.close()
                        taken = None
                if reload(program, path, configuration(wanted, workers, backend.address)):
                    binds = wanted
                else:
                    assert taken is not None, program
                for host, port in binds:
                    for _ in range(2 * workers):
                        assert ask((reached(host), port), b"?").data == b"in?", (step, binds, program)
                if taken is not None:
                    taken.close()
            assert program.terminate() == 0
