"""Reloads under all kinds of traffic: no client notices, nothing is left over, and a change applies soon."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import pytest

from refractium.observe.control import ask as ask_control
from refractium.observe.control import decode, file_name
from support.backends import Backend
from support.clients import PATIENCE, connect, payload, receive
from support.datagrams import UdpBackend
from support.datagrams import client as datagram_client
from support.process import RUNTIME, Running, free_port, is_listening, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from refractium.observe.status import Status

HEALTH: Final = '[protocols.health]\nkind = "tcp"\ninterval_ms = 100\ntimeout_ms = 100'
GROWTH: Final = 16 << 20
"""Bytes by which memory may grow without being a leak."""
POOL: Final = (os.cpu_count() or 1) + 4
"""Most threads that the pool of asyncio starts and keeps. One more thread for each reload would be a leak."""


def naming(name: str) -> Backend:
    """Return a handler that answers all bytes with its name before them."""

    def serve(sock: socket.socket) -> None:
        while data := sock.recv(65_536):
            sock.sendall(name.encode() + b":" + data)

    return Backend(serve)


def server(port: int, *tables: str, more: str = "") -> str:
    """Return the ``[server]`` table of a configuration."""
    return f"""
[server]
bind = "127.0.0.1"
port = {port}
max_connections_per_ip = 1000
udp_session_timeout_ms = 3000
{more}
{"".join(tables)}
"""


def with_listeners(text: str, port: int, other: int) -> str:
    """Return the same configuration with another listener, at another port."""
    served = "".join(f'[[listeners]]\nbind = "127.0.0.1"\nport = {one}\n' for one in (port, other))
    return text.replace(f'bind = "127.0.0.1"\nport = {port}\n', "", 1) + served


def route(name: str, *backends: str, transport: str = "tcp", more: str = "") -> str:
    """Return a protocol of the configuration that is recognised by its name at the start."""
    return f"""
[[protocols]]
name = "{name}"
transport = "{transport}"
patterns = [{{ hex = "{name.encode().hex()}", offset = 0 }}]
forward_to = {list(backends)}
{more}
"""


def first_answer(port: int, data: bytes) -> bytes:
    """Return the answer to the first bytes of a new client."""
    with connect(("127.0.0.1", port)) as client:
        client.sendall(data)
        return client.recv(100)


class Reloads:
    """Reloads of a program with one configuration after the other, each awaited.

    Args:
        program: the program; it must reload on SIGHUP only.
        file: the configuration file of the program.
        good: valid configurations, used in turn.
        bad: invalid configurations, used in turn for every fourth reload.
    """

    def __init__(self, program: Running, file: Path, good: Sequence[str], bad: Sequence[str]) -> None:
        self._program = program
        self._file = file
        self._good = good
        self._bad = bad
        self._done = {True: 0, False: 0}
        self._control = [Path(RUNTIME.name, file_name(program.port))]
        status_of(program)  # the control socket answers from now on

    def status(self) -> Status:
        return decode(ask_control(self._control))

    def nobody_is_served(self) -> bool:
        now = self.status()
        return now.tcp.active == now.udp.active == 0

    def some(self, count: int) -> None:
        for number in range(count):
            if number % 4 == 3:
                self.one(self._bad[number // 4 % len(self._bad)], is_good=False)
            else:
                self.one(self._good[number % len(self._good)])

    def one(self, text: str, *, is_good: bool = True) -> None:
        self._done[is_good] += 1
        self._file.write_text(text)
        self._program.signal(signal.SIGHUP)
        eventually(self._are_done, f"reloads {self._done}")

    def _are_done(self) -> bool:
        now = self.status()
        return (now.generation - 1, now.reloads_failed) == (self._done[True], self._done[False])


class Load:
    """Clients that run in a thread each until the block ends; their errors are raised at its end.

    Attributes:
        served: number of correct answers for each client.
    """

    def __init__(self, port: int) -> None:
        self._address = "127.0.0.1", port
        clients = (self._new_connections, self._new_connections, self._one_stream, self._one_session)
        self.served = [0] * len(clients)
        self._failures: list[BaseException] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(client, number)) for number, client in enumerate(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        if kind is None and self._failures:
            raise self._failures[0]

    def _run(self, client: Callable[[int], None], number: int) -> None:
        try:
            client(number)
        except BaseException as error:  # noqa: BLE001 - raised at the end of the block
            self._failures.append(error)

    def _is_answered(self, number: int) -> bool:
        """Count an answer; after a moment, return whether the client should go on."""
        self.served[number] += 1
        return not self._over.wait(0.002)

    def _new_connections(self, number: int) -> None:
        while self._is_answered(number):
            assert first_answer(self._address[1], b"alpha") == b"one:alpha"

    def _one_stream(self, number: int) -> None:
        with connect(self._address) as client:
            while self._is_answered(number):
                data = b"alpha" + payload(self.served[number], 1000)
                client.sendall(data)
                assert receive(client, 4 + len(data)) == b"one:" + data

    def _one_session(self, number: int) -> None:
        with datagram_client(self._address) as client:
            while self._is_answered(number):
                data = b"query" + payload(self.served[number], 1000)
                client.send(data)
                assert client.recv(2000) == data


class Held(NamedTuple):
    """The resources of a process."""

    descriptors: int
    threads: int
    memory: int


def held(pid: int) -> Held:
    """Return the resources of a process (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    threads, resident = (int(status.partition(key)[2].split()[0]) for key in ("Threads:", "VmRSS:"))
    return Held(len(list(Path(f"/proc/{pid}/fd").iterdir())), threads, resident * 1024)


def holds_again(pid: int, descriptors: int, threads: int) -> bool:
    """Return whether a process has exactly so many descriptors, and at most so many threads."""
    now = held(pid)
    return now.descriptors == descriptors and now.threads <= threads


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, 2])
def test_200_reloads_disturb_no_client_and_leak_nothing(tmp_path: Path, workers: int) -> None:
    file, port, other = tmp_path / "refractium.toml", free_port(), free_port()
    with ExitStack() as stack:
        one, two = (stack.enter_context(naming(name)) for name in ("one", "two"))
        named = two.address.replace("127.0.0.1", "localhost")
        udp = stack.enter_context(UdpBackend(lambda datagram: [datagram]))
        always = route("alpha", one.address) + route("query", udp.address, transport="udp")
        good = [
            server(port, always),
            server(port, always, route("beta", named, more=HEALTH)),
            with_listeners(server(port, always, more="peek_timeout_ms = 2500"), port, other),
            server(port, always, route("beta", two.address, named, more='balance = "least_connections"')),
            server(port, always, route("gamma", named), route("beta", one.address, more=HEALTH)),
        ]
        bad = [server(port, always, more="prt = 1"), server(port, always, route("beta", "nowhere")), "[[["]
        last = server(port, always, route("omega", named, more=HEALTH), '[metrics]\nbind = "127.0.0.1:0"\n')

        file.write_text(good[0])
        log = stack.enter_context((tmp_path / "log").open("wb"))  # a file takes many lines fastest
        program = stack.enter_context(
            Running("-c", file, "--no-hot-reload", "--workers", workers, stderr=log.fileno())
        )
        program.await_out("Listening on udp")
        reloads = Reloads(program, file, good, bad)
        with Load(port):  # after this block, everything that starts late has started
            reloads.some(20)
            reloads.one(last)
        eventually(reloads.nobody_is_served, "the end of the session")
        eventually(program.is_idle, "nothing is left to do")
        processes = [program.pid, *(one.pid for one in reloads.status().workers if one.pid)]
        before = {pid: held(pid) for pid in processes}
        seen = udp.seen

        with Load(port) as load:
            reloads.some(200)
            reloads.one(last)
            assert first_answer(port, b"omega") == b"two:omega"
            assert first_answer(port, b"beta") == b""  # this route has gone
            assert not is_listening(other)
        assert min(load.served) > 200
        assert udp.seen - seen == load.served[3] - 1
        eventually(reloads.nobody_is_served, "the end of the session")
        assert [one.restarts for one in reloads.status().workers] == [0] * (len(processes) - 1)
        for pid, (descriptors, threads, memory) in before.items():
            eventually(
                partial(holds_again, pid, descriptors, threads + POOL),
                "the process has as many descriptors and threads as before",
            )
            assert held(pid).memory - memory < GROWTH
        eventually(program.is_idle, "nothing is left to do")
        assert program.terminate() == 0
        assert program.out.count(f"Listening on tcp://127.0.0.1:{other}\n") > 20
        assert program.out.count(f"Listening on tcp://127.0.0.1:{port}\n") == 1  # the port kept its socket
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_change_of_the_file_applies_to_connections_two_seconds_later(tmp_path: Path) -> None:
    file, new, port = tmp_path / "refractium.toml", tmp_path / "new", free_port()
    with naming("one") as one, naming("two") as two, naming("rest") as rest:
        fallback = f'fallback_tcp = "{rest.address}"\n'

        def becomes(name: str, backend: Backend) -> float:
            """Make this the only route, and return the seconds until it applies."""
            new.write_text(fallback + server(port, route(name, backend.address)))
            new.rename(file)
            changed = time.monotonic()
            eventually(
                lambda: not first_answer(port, name.encode()).startswith(b"rest:"),
                "the new protocol is recognised",
            )
            return time.monotonic() - changed

        file.write_text(fallback + server(port, route("alpha", one.address)))
        with serving("-c", file):
            becomes("beta", one)  # by now the file is watched
            assert first_answer(port, b"gamma") == b"rest:gamma"
            took = [becomes("gamma", two), becomes("delta", one), becomes("gamma", two)]
            assert sorted(took)[1] < 2
            assert first_answer(port, b"gamma") == b"two:gamma"
            assert first_answer(port, b"beta") == b"rest:beta"
