"""A changed configuration is applied as a whole, or not at all, while clients are served."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, hanging
from support.clients import PATIENCE, connect
from support.process import Running, environment, free_port, is_listening
from support.proxy import eventually

if TYPE_CHECKING:
    import socket
    from pathlib import Path


def naming(name: bytes) -> Backend:
    """Return a handler that answers the first bytes of each client with its name, then echoes."""

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(65_536):
            sock.sendall(name + b":" + data)

    return Backend(serve)


def ask(port: int, data: bytes, host: str = "127.0.0.1") -> bytes:
    with connect((host, port)) as client:
        client.sendall(data)
        return client.recv(100)


def config(port: int, *routes: tuple[str, str], bind: str = "127.0.0.1", **server: object) -> str:
    lines = ["[server]", f'bind = "{bind}"', f"port = {port}", "max_connections_per_ip = 1000"]
    lines += [f"{key} = {value!r}".replace("'", '"') for key, value in server.items()]
    for name, backend in routes:
        lines += ["[[protocols]]", f'name = "{name}"', f'forward_to = "{backend}"']
        if name not in {"ssh", "http"}:
            lines += [f'patterns = ["{name.upper()}"]', 'transport = "tcp"']
    return "\n".join(lines) + "\n"


def rewrite(path: Path, text: str) -> None:
    """Replace the file as an editor does."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "refractium.toml"


def test_a_protocol_added_is_recognised_and_a_route_removed_is_not(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one, naming(b"two") as two:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            with connect(("127.0.0.1", port)) as old:
                old.sendall(b"ALPHA 1")
                assert old.recv(100) == b"one:ALPHA 1"
                rewrite(file, config(port, ("beta", two.address)))
                program.await_err("configuration 2 is in force")
                assert ask(port, b"BETA") == b"two:BETA"
                assert ask(port, b"ALPHA" + bytes(1024)) == b""  # closed, because no route matches any more
                old.sendall(b"still there")
                assert old.recv(100) == b"one:still there"
            assert program.out.count("Listening on") == 1  # the port has kept its socket


def test_an_invalid_file_changes_nothing_and_is_reported_once(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            rewrite(file, config(port, ("alpha", "nowhere"), prt=1))
            program.await_err("not reloaded: .*unknown key.*did you mean 'port'")
            program.await_err("not reloaded: .*no port")
            assert ask(port, b"ALPHA") == b"one:ALPHA"
            rewrite(file, config(port, ("gamma", one.address)))
            program.await_err("configuration 2 is in force")
            assert ask(port, b"GAMMA") == b"one:GAMMA"
            assert program.err.count("not reloaded") == 2
            assert "Traceback" not in program.err


def test_a_port_may_change_and_connections_on_the_old_one_go_on(file: Path) -> None:
    before, after = free_port(), free_port()
    with naming(b"one") as one:
        file.write_text(config(before, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            with connect(("127.0.0.1", before)) as old:
                old.sendall(b"ALPHA")
                assert old.recv(100) == b"one:ALPHA"
                rewrite(file, config(after, ("alpha", one.address)))
                program.await_err("configuration 2 is in force")
                assert ask(after, b"ALPHA") == b"one:ALPHA"
                eventually(lambda: not is_listening(before), "the old port is closed")
                old.sendall(b"on and on")
                assert old.recv(100) == b"one:on and on"


def test_an_address_may_change_on_the_same_port(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            rewrite(file, config(port, ("alpha", one.address), bind="0.0.0.0"))
            program.await_err("configuration 2 is in force")
            assert ask(port, b"ALPHA", host="127.0.0.9") == b"one:ALPHA"


def test_a_port_in_use_changes_nothing(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one, naming(b"other") as other:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            rewrite(file, config(other.port, ("beta", one.address)))
            program.await_err("not reloaded: cannot listen on .* in use")
            assert ask(port, b"ALPHA") == b"one:ALPHA"


def test_sighup_always_reloads_and_a_file_change_only_with_hot_reload(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one, naming(b"two") as two:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file, "--no-hot-reload") as program:
            program.await_out("Listening on")
            rewrite(file, config(port, ("alpha", two.address)))
            assert ask(port, b"ALPHA") == b"one:ALPHA"
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert ask(port, b"ALPHA") == b"two:ALPHA"


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "huge"])
def test_anything_but_a_readable_file_in_place_of_the_configuration_is_one_error(
    file: Path, what: str
) -> None:
    port = free_port()
    other = file.with_name("other")
    with naming(b"one") as one, naming(b"two") as two:
        file.write_text(config(port, ("alpha", one.address)))
        with Running("-c", file) as program:
            program.await_out("Listening on")
            if what == "fifo":
                os.mkfifo(other)
            elif what == "device":
                other.symlink_to("/dev/zero")
            elif what == "folder":
                file.unlink()
                other.mkdir()
            else:
                with other.open("wb") as huge:
                    huge.truncate(6 << 30)
            other.rename(file)
            program.await_err("not reloaded: .*(not a regular file|larger than 1048576 bytes|Is a directory)")
            assert ask(port, b"ALPHA") == b"one:ALPHA"
            program.signal(signal.SIGHUP)
            eventually(lambda: program.err.count("not reloaded") == 2, "the second reload is refused")
            if what == "folder":
                file.rmdir()
            other.write_text(config(port, ("alpha", two.address)))
            other.rename(file)
            program.await_err("configuration 2 is in force")
            assert ask(port, b"ALPHA") == b"two:ALPHA"
            assert program.err.count("not reloaded") == 2
            assert program.memory() < 200 << 20
            assert program.terminate() == 0


def test_a_plugin_may_be_enabled_and_disabled(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one:
        file.write_text(config(port, ("ssh", one.address)) + '[plugins]\ndisable = ["http"]\n')
        with Running("-c", file) as program:
            program.await_out("Listening on")
            rewrite(file, config(port, ("http", one.address)) + '[plugins]\ndisable = ["http"]\n')
            program.await_err("not reloaded: .*protocol 'http' is not available: .*disable under")
            rewrite(file, config(port, ("http", one.address)) + '[plugins]\ndisable = ["ssh"]\n')
            program.await_err("configuration 2 is in force")
            assert ask(port, b"GET / HTTP/1.1\r\n\r\n").startswith(b"one:GET")


@pytest.mark.parametrize("by_signal", [True, False], ids=["SIGHUP", "file"])
def test_a_reload_requested_during_the_start_happens_after_it(file: Path, by_signal: bool) -> None:  # noqa: FBT001
    port = free_port()
    with naming(b"one") as one, hanging() as dead:
        slow = f'[[protocols]]\nname = "ssh"\nforward_to = "{dead}"\n'
        slow += 'health = { kind = "tcp", timeout_ms = 2000 }\n'
        file.write_text(config(port, ("alpha", one.address)) + slow)
        with Running("-c", file, *["--no-hot-reload"] * by_signal) as program:
            eventually(lambda: is_listening(port), "clients may wait")
            assert "Listening on" not in program.out
            rewrite(file, config(port, ("beta", one.address)))
            if by_signal:
                program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert ask(port, b"BETA") == b"one:BETA"
            assert "not reloaded" not in program.err


def test_flags_still_take_precedence_over_the_file_after_a_reload(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one:
        file.write_text(config(free_port(), ("alpha", one.address)))
        with Running("-c", file, "-p", port) as program:
            program.await_out("Listening on")
            rewrite(file, config(free_port(), ("beta", one.address)))
            program.await_err("configuration 2 is in force")
            assert ask(port, b"BETA") == b"one:BETA"


def test_without_a_file_sighup_does_no_harm(tmp_path: Path) -> None:
    with naming(b"one") as one:
        arguments = ("-b", "127.0.0.1", "-p", 0, "-f", f"http={one.address}")
        with Running(*arguments, cwd=tmp_path, env=environment()) as program:
            program.await_out("Listening on")
            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert ask(program.port, b"GET / HTTP/1.1\r\n").startswith(b"one:GET")


def test_200_reloads_under_load_fail_no_connection_and_leak_nothing(file: Path) -> None:
    port = free_port()
    with naming(b"one") as one, naming(b"two") as two:
        always = ("alpha", one.address)
        versions = [
            config(port, always),
            config(port, always, ("beta", two.address)),
            config(port, always, peek_timeout_ms=2500, max_connections=5000),
            config(port, always, ("beta", two.address), prt=1),  # invalid
            config(port, always, fallback_udp=two.address),  # with one listener more
        ]
        last = config(port, always, ("omega", two.address))
        file.write_text(versions[0])
        with Running("-c", file) as program:
            program.await_out("Listening on")
            for generation in (2, 3):  # by now everything that starts late has started
                rewrite(file, versions[3 - generation])
                program.await_err(f"configuration {generation} is in force")
                assert ask(port, b"ALPHA") == b"one:ALPHA"
            eventually(program.watches_files, "everything that starts late has started")
            eventually(program.is_idle, "nothing is left to do")
            descriptors, memory = program.descriptors(), program.memory()
            over = threading.Event()
            failures: list[BaseException] = []
            served = [0]

            def load() -> None:
                while not over.is_set():
                    try:
                        assert ask(port, b"ALPHA") == b"one:ALPHA"
                        served[0] += 1
                    except BaseException as error:  # noqa: BLE001 - asserted below
                        failures.append(error)

            clients = [threading.Thread(target=load) for _ in range(4)]
            for client in clients:
                client.start()
            pause = threading.Event()
            for number in range(200):
                rewrite(file, versions[number % len(versions)])
                program.signal(signal.SIGHUP)
                pause.wait(0.01)
            rewrite(file, last)
            program.signal(signal.SIGHUP)
            eventually(lambda: ask(port, b"OMEGA" + bytes(1019))[:4] == b"two:", "the last file is in force")
            over.set()
            for client in clients:
                client.join(PATIENCE)
            assert not failures
            assert served[0] > 200
            eventually(
                lambda: program.descriptors() <= descriptors, "the program has as many descriptors as before"
            )
            assert program.memory() < memory + 16 * 1024 * 1024
            eventually(program.is_idle, "nothing is left to do")
