"""A name server that never answers; the C library waits minutes for it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from refractium.sockets.names import THREADS, Standing
from support.backends import Backend, named
from support.clients import ask
from support.lateness import fair_seconds_since
from support.process import Running, children, free_port, is_listening
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PROMPTLY: Final = 1.0
"""Seconds in which a program that serves nobody acts on a signal. Its process may need longer to end."""
HOSTS: Final = 20
_MARGIN: Final = 8
"""Number of threads and descriptors that do not belong to lookups and may appear after the first count."""


class Silence:
    """A machine whose name server never answers; programs started by `serving` see its configuration."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "refractium.toml"
        self._port = free_port()
        (folder / "resolv.conf").write_text("nameserver 127.0.0.53\noptions timeout:30 attempts:5\n")
        (folder / "nsswitch.conf").write_text("hosts: files dns\n")
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost backend.example\n")
        mounts = [
            f"mount --bind {shlex.quote(str(folder / name))} /etc/{name}"
            for name in ("resolv.conf", "nsswitch.conf", "hosts")
            if Path("/etc", name).exists()
        ]
        within = " && ".join([*mounts, 'exec "$@"'])
        self._shell = f'exec {require_program("unshare")} -m sh -c {shlex.quote(within)} sh "$@"'

    def configure(
        self, names: Sequence[str] = (), *, bind: str = "127.0.0.1", more: str = "", **server: object
    ) -> None:
        lines = ["[server]", f'bind = "{bind}"', f"port = {self._port}", "hot_reload = false"]
        lines += [f"{key} = {value!r}".replace("'", '"') for key, value in server.items()]
        for index, name in enumerate(names):
            lines += ["[[protocols]]", f'name = "p{index}"', f'patterns = [{{ hex = "ff {index:02x}" }}]']
            lines += [f'forward_to = "{name}"', 'transport = "tcp"']
        self.file.write_text("\n".join([*lines, more]) + "\n")

    def start(self) -> Running:
        return Running("tcp", "-c", self.file, shell=self._shell)

    @property
    def is_listening(self) -> bool:
        return is_listening(self._port)


@pytest.fixture
def silence(network: Callable[..., None], tmp_path: Path) -> Iterator[Silence]:
    del network
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hole:
        hole.bind(("127.0.0.53", 53))
        yield Silence(tmp_path)


def hanging(generation: int = 0) -> list[str]:
    return [f"h{index}-{generation}.example:80" for index in range(HOSTS)]


def counts(program: Running) -> list[int]:
    """Return the number of threads and of descriptors of a program and its workers."""
    found = []
    for pid in (program.pid, *children(program.pid)):
        found += [len(list(Path(f"/proc/{pid}/{what}").iterdir())) for what in ("task", "fd")]
    return found


def ends_promptly(program: Running) -> None:
    """Let a program end by SIGTERM, long before the C library stops waiting for the name server."""
    assert program.terminate() == 0
    asked, stopped = (
        datetime.fromisoformat(line.split()[0])
        for line in program.err.splitlines()
        if " info SIGTERM: " in line or " info stopped after " in line
    )
    assert (stopped - asked).total_seconds() < PROMPTLY


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_threads_and_sockets_of_reloads_stay_within_the_bound_of_lookups(
    silence: Silence, workers: int
) -> None:
    with Backend(named("here")) as backend:
        local = f"backend.example:{backend.port}"
        silence.configure([local, *hanging()], workers=workers, connect_timeout_ms=500)
        with silence.start() as program:
            program.await_out("^Listening on")
            before = counts(program)
            for reload in range(1, 21):
                if reload > 10:
                    silence.configure([local, *hanging(reload)], workers=workers, connect_timeout_ms=500)
                program.signal(signal.SIGHUP)
                program.await_err(rf"reloaded: configuration {reload + 1} is in force")
                most = HOSTS if reload <= 10 else THREADS[Standing.PROMPT]
                assert max(counts(program)) <= max(before) + most - HOSTS + _MARGIN
            assert ask(program.address, b"\xff\x00").data[:4] == b"here"
            ends_promptly(program)


@pytest.mark.slow
def test_a_worker_replaced_while_no_name_server_answers_knows_the_addresses(silence: Silence) -> None:
    with Backend(named("here")) as backend:
        silence.configure([f"backend.example:{backend.port}"], workers=2, connect_timeout_ms=500)
        with silence.start() as program:
            program.await_out("^Listening on")
            silence.hosts.write_text("127.0.0.1 localhost\n")
            former = children(program.pid)
            for pid in former:
                os.kill(pid, signal.SIGKILL)
            eventually(
                lambda: len(set(children(program.pid)) - set(former)) == len(former), "there are new workers"
            )
            for _ in range(20):
                assert ask(program.address, b"\xff\x00").data[:4] == b"here"
            ends_promptly(program)


@pytest.mark.slow
def test_a_name_that_hangs_is_logged_with_its_backend(silence: Silence) -> None:
    silence.configure(["hang.example:80"], connect_timeout_ms=100)
    with silence.start() as program:
        program.await_err(r"warning backend hang\.example:80: .*name.* \d+ s$")
        ends_promptly(program)


def test_a_signal_ends_a_start_that_waits_for_names_of_backends(silence: Silence) -> None:
    silence.configure(hanging(), connect_timeout_ms=60_000)
    with silence.start() as program:
        eventually(lambda: silence.is_listening, "clients may wait")
        ends_promptly(program)


@pytest.mark.parametrize(
    ("bind", "more"),
    [("hang.example", ""), ("127.0.0.1", '[metrics]\nbind = "hang.example:9100"')],
    ids=["listener", "metrics"],
)
def test_a_signal_ends_a_start_that_waits_for_the_name_of_a_listener(
    silence: Silence, bind: str, more: str
) -> None:
    silence.configure(["127.0.0.1:9"], bind=bind, more=more)
    with silence.start() as program:
        eventually(lambda: _looks_up(program), "the name is looked up")
        ends_promptly(program)


def _looks_up(program: Running) -> bool:
    """Return whether the program has a socket connected to the name server (proc(5), /proc/net/udp)."""
    lines = Path(f"/proc/{program.pid}/net/udp").read_text().splitlines()[1:]
    return any(line.split()[2] == "3500007F:0035" for line in lines)


@pytest.mark.parametrize(
    ("bind", "names", "more"),
    [
        ("hang.example", ["127.0.0.1:9"], ""),
        ("127.0.0.1", ["127.0.0.1:9"], '[metrics]\nbind = "hang.example:9100"'),
        ("127.0.0.1", ["hang.example:80"], ""),
    ],
    ids=["listener", "metrics", "backend"],
)
def test_a_reload_that_waits_for_a_name_gives_way_to_a_newer_one_and_to_a_signal(
    silence: Silence, bind: str, names: Sequence[str], more: str
) -> None:
    silence.configure(["127.0.0.1:9"], connect_timeout_ms=60_000)
    with silence.start() as program:
        program.await_out("^Listening on")
        silence.configure(names, bind=bind, more=more, connect_timeout_ms=60_000)
        program.signal(signal.SIGHUP)
        eventually(lambda: _looks_up(program), "the name is looked up")
        silence.configure(["127.0.0.1:10"], connect_timeout_ms=60_000)
        begun = time.monotonic()
        program.signal(signal.SIGHUP)
        program.await_err(r"info not reloaded: superseded by a newer reload$")
        program.await_err(r"reloaded: configuration 2 is in force")
        assert fair_seconds_since(begun) < PROMPTLY
        silence.configure(names, bind=bind, more=more, connect_timeout_ms=60_000)
        program.signal(signal.SIGHUP)
        ends_promptly(program)


def test_a_reload_refuses_a_listener_whose_name_hangs(silence: Silence) -> None:
    silence.configure(["127.0.0.1:9"], connect_timeout_ms=100)
    with silence.start() as program:
        program.await_out("^Listening on")
        silence.configure(["127.0.0.1:9"], bind="hang.example")
        program.signal(signal.SIGHUP)
        program.await_err(
            r"error not reloaded: cannot listen on tcp://hang\.example:\d+: 'hang\.example' is not "
            r"an address of this machine: no name server has answered within 0\.1 s$"
        )
        assert silence.is_listening
        ends_promptly(program)
