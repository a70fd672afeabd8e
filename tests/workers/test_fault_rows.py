"""The rules that hold under every fault, through the program as users start it, with one and with three
workers.

Tests of single connections open many at once, so that every worker has some of them.
"""

from __future__ import annotations

import queue
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from proxy.tcp.test_random_programs import Program
from support import hellos
from support.backends import Backend, digest, duplex, echo, named, sink, source
from support.clients import MIB, PATIENCE, ask, connect, payload, receive, receive_all, reset, sending
from support.datagrams import UdpBackend, client
from support.datagrams import ask as ask_datagram
from support.datagrams import echo as echo_datagram
from support.process import Running, free_port, serving
from support.proxy import eventually
from support.status import status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.backends import Handler
    from support.clients import Received

MANY: Final = 12
"""Number of concurrent clients, so many that each of three workers almost always has some of them."""
SESSION_MS: Final = 1_500
"""Milliseconds of silence after which UDP sessions end; every test waits for that."""
_OPENED_LATE: Final = 2
"""Number of descriptors that a process may open for itself later; every test has more clients than that."""
_TICK: Final = 0.01
"""Resolution (s) of the processor time in proc(5)."""


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.slow), 3], ids=["1 worker", "3 workers"])
def workers(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


class Proxy:
    """A program that serves, with the checks that must hold at the end of a test.

    Args:
        program: the program, which listens.
        serves_tcp: whether the program serves TCP clients.

    Attributes:
        address: the address at which clients reach the program.
    """

    def __init__(self, program: Running, *, serves_tcp: bool) -> None:
        self.program = program
        self.address = program.address
        status = status_of(program)
        self._pids = [program.pid, *(one.pid for one in status.workers if one.pid is not None)]
        eventually(program.watches_files, "the configuration is watched")
        # Descriptors that a worker opens with its first client stay open.
        for _ in range(4 * len(self._pids) * serves_tcp):
            ask(self.address, b"?")
        self._await_nobody()
        self._descriptors = self._count_descriptors()

    def assert_clean(self) -> None:
        """Assert that no client is served or counted any more, nothing is left open, and the program is
        idle."""
        self._await_nobody()
        tcp, udp = (status := status_of(self.program)).tcp, status.udp
        assert tcp.accepted == tcp.finished + sum(tcp.refused.values()), tcp
        assert udp.sessions == udp.finished, udp
        assert [one.restarts for one in status.workers] == [0] * len(status.workers), self.program
        eventually(self._has_no_more_descriptors, "as many descriptors as before")
        eventually(self._is_idle, "nothing is left to do")

    def _await_nobody(self) -> None:
        def is_nobody() -> bool:
            status = status_of(self.program)
            return not status.tcp.active + status.udp.active

        eventually(is_nobody, "no client is served any more")

    def _count_descriptors(self) -> list[int]:
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self._pids]

    def _has_no_more_descriptors(self) -> bool:
        pairs = zip(self._count_descriptors(), self._descriptors, strict=True)
        return all(now <= before + _OPENED_LATE for now, before in pairs)

    def _is_idle(self) -> bool:
        before = sum(map(_cpu_seconds, self._pids))
        time.sleep(0.3)
        return sum(map(_cpu_seconds, self._pids)) - before <= (2 + len(self._pids)) * _TICK


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK


@contextmanager
def proxying(
    folder: Path,
    workers: int,
    *,
    tcp: str | None = None,
    udp: str | None = None,
    routes: str = "",
    expected: tuple[str, ...] = (),
) -> Iterator[Proxy]:
    """Run a program with fallbacks and routes; assert that it leaves nothing behind and logs nothing
    unexpected."""
    lines = [
        *([f'fallback_tcp = "{tcp}"'] if tcp else []),
        *([f'fallback_udp = "{udp}"'] if udp else []),
        f"[server]\nbind = '127.0.0.1'\nport = {free_port()}\nworkers = {workers}\nhot_reload = false",
        "max_connections_per_ip = 5000\npeek_timeout_ms = 300",
        f"udp_session_timeout_ms = {SESSION_MS}",
        routes,
    ]
    path = folder / "refractium.toml"
    path.write_text("\n".join(lines) + "\n")
    with serving("-c", path) as program:
        proxy = Proxy(program, serves_tcp=tcp is not None)
        yield proxy
        proxy.assert_clean()
        assert program.terminate() == 0
        levels = (" WARNING ", " ERROR ", " CRITICAL ", " warning ", " error ", " critical ")
        allowed = (*expected, "max_connections_per_ip: over 200")
        logged = [line for line in program.err.splitlines() if any(level in line for level in levels)]
        assert not [line for line in logged if not any(text in line for text in allowed)]


def many(act: Callable[[int], object]) -> list[object]:
    """Run a function for many clients at once, and return the results."""
    with ThreadPoolExecutor(MANY) as pool:
        return list(pool.map(act, range(MANY)))


# Ends and resets


def test_half_closes_pass_after_the_last_byte(workers: int, tmp_path: Path) -> None:
    data = payload("up", 4 * MIB)
    with Backend(sink) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        assert many(lambda _: ask(proxy.address, data)) == [(digest(data), "eof")] * MANY


def test_a_client_goes_on_sending_after_the_backend_has_ended_its_side(workers: int, tmp_path: Path) -> None:
    up, down = payload("up", MIB), payload("down", 4 * MIB)

    def talk(_: int) -> Received:
        with connect(proxy.address) as sock:
            sock.sendall(up[:1])
            got = receive_all(sock)
            sock.sendall(up[1:])
            return got

    with Backend(source(down)) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        assert many(talk) == [(down, "eof")] * MANY
        whole = 0
        while whole < MANY:  # the other connections only warm the program up
            whole += backend.result().data == up


def test_the_directions_are_independent(workers: int, tmp_path: Path) -> None:
    up, down = payload("up", 8 * MIB), payload("down", 8 * MIB)

    def talk(_: int) -> Received:
        with connect(proxy.address) as sock:
            sock.sendall(up)
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    with Backend(duplex(down)) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        assert many(talk) == [(down, "eof")] * MANY


def test_an_end_while_the_client_is_blocked_comes_after_the_last_byte(workers: int, tmp_path: Path) -> None:
    data = payload("down", 8 * MIB)

    def read_late(_: int) -> Received:
        with connect(proxy.address, receive_buffer=4096) as sock:
            sock.sendall(b"?")
            time.sleep(0.3)
            return receive_all(sock)

    with Backend(source(data)) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        assert many(read_late) == [(data, "eof")] * MANY


def test_bytes_of_a_backend_sent_before_its_reset_arrive_before_the_reset(
    workers: int, tmp_path: Path
) -> None:
    data = payload("before the reset", 20_000)

    def send_and_reset(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(data)
        # Time for the bytes to arrive, because a reset discards bytes that are still in the kernel.
        time.sleep(0.1)
        reset(sock)

    def talk(_: int) -> Received:
        with connect(proxy.address) as sock:
            sock.sendall(b"?")
            return receive_all(sock)

    with Backend(send_and_reset) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        assert many(talk) == [(data, "reset")] * MANY


def test_a_reset_of_the_client_during_an_upload_reaches_the_backend_at_once(
    workers: int, tmp_path: Path
) -> None:
    def until_reset(sock: socket.socket) -> tuple[str, float]:
        return receive_all(sock).end, time.monotonic()

    delays = []
    with Backend(until_reset) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        while not backend.results.empty():
            backend.result()
        for _ in range(MANY):
            sock = connect(proxy.address)
            sock.sendall(bytes(MIB))
            reset_at = time.monotonic()
            reset(sock)
            end, seen_at = backend.result()
            assert end == "reset"
            delays.append(seen_at - reset_at)
    assert min(delays) < 0.1, delays


# First bytes


def test_a_silent_client_is_decided_at_the_timeout_and_an_ended_one_at_once(
    workers: int, tmp_path: Path
) -> None:
    def be_silent(_: int) -> float:
        begun = time.monotonic()
        with connect(proxy.address) as sock:
            assert receive(sock, 6) == b"silent"
        return time.monotonic() - begun

    with Backend(named("silent")) as silent, Backend(sink) as rest:
        routes = f'[[protocols]]\nname = "ftp"\non_timeout = true\nforward_to = "{silent.address}"'
        with proxying(tmp_path, workers, tcp=rest.address, routes=routes) as proxy:
            waited = many(be_silent)
            assert all(isinstance(one, float) and 0.28 < one < 1.5 for one in waited), waited
            assert many(lambda _: ask(proxy.address, b"abc")) == [(digest(b"abc"), "eof")] * MANY


def test_a_hello_cut_anywhere_goes_where_its_name_says(workers: int, tmp_path: Path) -> None:
    builder = hellos.Builder()
    extensions = [builder.extension(21, bytes(1000)), *hellos.typical_extensions(builder, b"a.example")]
    hello = hellos.records(builder.hello(extensions))
    behind = payload("behind the hello", MIB)

    def talk(number: int) -> Received:
        cut = random.Random(number).randrange(1, len(hello))  # noqa: S311 - test data
        with connect(proxy.address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(hello[:cut])
            time.sleep(0.02)
            with sending(sock, hello[cut:] + behind):
                return receive_all(sock)

    with Backend(sink) as backend:
        routes = "".join(
            f'[[protocols]]\nname = "https"\nforward_to = "{address}"\n{condition}\n'
            for address, condition in (
                ("127.0.0.1:9", ""),
                ("127.0.0.1:9", 'sni = "*.example"'),
                (backend.address, 'sni = "a.example"'),
            )
        )
        with proxying(tmp_path, workers, tcp=backend.address, routes=routes) as proxy:
            assert many(talk) == [(digest(hello + behind), "eof")] * MANY


def test_clients_that_come_and_go_are_counted_exactly(workers: int, tmp_path: Path) -> None:
    with Backend(echo) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        before = status_of(proxy.program).tcp.accepted
        for _ in range(1000):
            connect(proxy.address).close()
        eventually(lambda: status_of(proxy.program).tcp.accepted == before + 1000, "all clients are counted")


def test_300_clients_that_send_slowly_do_not_delay_another(workers: int, tmp_path: Path) -> None:
    with Backend(echo) as backend, proxying(tmp_path, workers, tcp=backend.address) as proxy:
        socks = [connect(proxy.address) for _ in range(300)]
        for sock in socks:
            sock.sendall(b"S")
        times = []
        for _ in range(20):
            begun = time.monotonic()
            assert ask(proxy.address, b"good").data == b"good"
            times.append(time.monotonic() - begun)
        assert sorted(times)[10] < 0.2, times
        for sock in socks:
            sock.close()


# Random behaviour of both ends


def test_each_end_receives_the_bytes_that_the_other_sent(workers: int, tmp_path: Path) -> None:
    programs: queue.SimpleQueue[Program] = queue.SimpleQueue()
    rng = random.Random("both ends")  # noqa: S311 - chooses test data

    def backend_end(sock: socket.socket) -> Received:
        return programs.get(timeout=PATIENCE).run(sock)

    handlers: list[Handler] = [echo]
    with (
        Backend(lambda sock: handlers[-1](sock)) as backend,  # noqa: PLW0108 - the handler at the time of the call
        proxying(tmp_path, workers, tcp=backend.address, expected=("Broken pipe", "reset by peer")) as proxy,
    ):
        while not backend.results.empty():
            backend.result()
        handlers.append(backend_end)
        for number in range(60):
            mine = Program.random(rng, f"client {number}", at_least=1)
            theirs = Program.random(rng, f"backend {number}", at_least=0)
            programs.put(theirs)
            at_client = mine.run(connect(proxy.address, receive_buffer=mine.buffer))
            at_backend = backend.result()
            shown = f"program {number}: {mine} {theirs}"
            assert theirs.data.startswith(at_client.data), shown
            assert mine.data.startswith(at_backend.data), shown
            if mine.ending == theirs.ending == "shut":
                assert at_client == (theirs.data, "eof"), shown
                assert at_backend == (mine.data, "eof"), shown


# Datagrams


def test_datagrams_of_any_size_pass_both_ways(workers: int, tmp_path: Path) -> None:
    with UdpBackend(echo_datagram) as backend, proxying(tmp_path, workers, udp=backend.address) as proxy:
        for size in (0, 1, 1472, 65_507):
            data = payload(size, size)
            # One by one, because a kernel may queue only a few datagrams of the largest size.
            for _ in range(MANY):
                assert ask_datagram(proxy.address, data) == data


def test_500_clients_get_their_own_answers_and_stay_with_their_backend(workers: int, tmp_path: Path) -> None:
    def talk(number: int) -> int:
        with client(proxy.address, source=f"127.1.{number // 200}.{number % 200 + 1}") as sock:
            wrong = 0
            for turn in range(10):
                question = b"%d/%d" % (number, turn)
                sock.send(question)
                wrong += sock.recv(100) != b"re:" + question
        return wrong

    with (
        UdpBackend(lambda datagram: [b"re:" + datagram]) as backend,
        proxying(tmp_path, workers, udp=backend.address) as proxy,
        ThreadPoolExecutor(8) as pool,
    ):
        assert sum(pool.map(talk, range(500))) == 0
        # The backend may see fewer addresses, because a later session may reuse the port of an ended one.
        assert len(backend.clients) <= status_of(proxy.program).udp.sessions == 500


def test_a_session_recovers_when_its_backend_returns_and_others_never_notice(
    workers: int, tmp_path: Path
) -> None:
    dead = free_port()
    routes = (
        '[[protocols]]\nname = "magic"\npatterns = ["magic"]\ntransport = "udp"\n'
        f'forward_to = "127.0.0.1:{dead}"'
    )
    with (
        UdpBackend(echo_datagram) as alive,
        proxying(
            tmp_path, workers, udp=alive.address, routes=routes, expected=("refuses", "is down")
        ) as proxy,
        client(proxy.address) as sock,
        client(proxy.address) as other,
    ):
        for turn in range(20):  # an ICMP error answers each datagram, and the next send meets it
            sock.send(b"magic %d" % turn)
            other.send(b"%d" % turn)
            assert other.recv(100) == b"%d" % turn
        # The other session has another worker, so this worker may be behind.
        eventually(lambda: unread_bytes(proxy.address[1]) == 0, "the proxy has taken all datagrams")
        with UdpBackend(echo_datagram, port=dead):
            sock.send(b"magic again")
            # The last answers may still be on their way.
            answers = iter(lambda: sock.recv(100), b"magic again")
            assert all(answer.startswith(b"magic 1") for answer in answers)


def unread_bytes(port: int) -> int:
    """Return the bytes waiting in the IPv4 UDP sockets of a port: ``rx_queue`` of proc_net(5)."""
    rows = (line.split() for line in Path("/proc/net/udp").read_text(encoding="ascii").splitlines()[1:])
    return sum(int(row[4].split(":")[1], 16) for row in rows if int(row[1].split(":")[1], 16) == port)
