"""The number of connections, the limit that refuses a client, and the cost of refused clients."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.backends import Backend, digest, echo, named, sink
from support.clients import PATIENCE, ask, connect, receive, receive_all
from support.proxy import ProxyThread, eventually, quick

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

REFUSED = "refused a connection"


def test_the_limit_is_never_exceeded_and_each_leaving_client_makes_room_for_one() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def count(sock: socket.socket) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        echo(sock)
        with lock:
            inside -= 1

    def visit(_: int) -> bool:
        with proxy.connect() as client:
            try:
                client.sendall(b"?")
                return client.recv(1) == b"?"
            except ConnectionError:
                return False

    settings = quick(max_connections=20)
    with (
        Backend(count) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
    ):
        with ThreadPoolExecutor(50) as pool:
            served = sum(pool.map(visit, range(1000)))
        proxy.await_drained()
        assert proxy.counters.accepted == 1000
        assert proxy.counters.finished == served
        assert most <= 20
        with ExitStack() as stack:
            clients = [stack.enter_context(proxy.connect()) for _ in range(20)]
            for client in clients:
                client.sendall(b"?")
                assert client.recv(1) == b"?"
            assert not visit(0)
            clients[0].close()
            proxy.await_active(19)
            assert visit(0)


def test_the_limit_of_one_address_does_not_affect_others() -> None:
    settings = quick(max_connections_per_ip=3)
    with (
        Backend(named("in")) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
        ExitStack() as stack,
    ):
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            for _ in range(3):
                client = stack.enter_context(proxy.connect(source=source))
                client.sendall(b"?")
                assert receive(client, 2) == b"in"
            assert ask(proxy.address, b"?", source=source).data == b""
        assert proxy.engine.active == 9
        assert proxy.counters.refused == 3


@pytest.mark.needs_ipv6
def test_an_ipv4_client_of_an_ipv6_listener_counts_by_its_ipv4_address() -> None:
    settings = quick(max_connections_per_ip=2)
    with (
        Backend(named("in")) as backend,
        ProxyThread(host="::", fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
        ExitStack() as stack,
    ):
        for host in ("127.0.0.1", "::1"):
            for _ in range(2):
                client = stack.enter_context(connect((host, proxy.port)))
                client.sendall(b"?")
                assert receive(client, 2) == b"in"
            assert ask((host, proxy.port), b"?").data == b""
        service = proxy.engine._tcp
        assert service is not None
        assert service.limiter._by_origin == {"127.0.0.1": 2, service.limiter.origin("::1"): 2}


def test_a_flood_of_refused_connections_is_cheap_and_quiet() -> None:
    settings = quick(max_connections=1)
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, settings=settings, expected=[REFUSED]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        cpu, begun = proxy.cpu_seconds(), time.monotonic()
        for _ in range(3000):
            with proxy.connect() as refused:
                assert refused.recv(1) == b""
        assert (proxy.cpu_seconds() - cpu) / 3000 < 0.0005
        assert proxy.counters.refused == 3000
        assert backend.accepted == 1
        # At most one line in ten seconds.
        assert 1 <= len(proxy.warnings) <= 1 + (time.monotonic() - begun) // 10
        client.sendall(b"!")
        assert client.recv(1) == b"!"


def test_10_000_clients_that_connect_and_leave_are_counted_and_not_logged() -> None:
    with ProxyThread(fallback="127.0.0.1:1") as proxy:
        for _ in range(10_000):
            socket.create_connection(proxy.address).close()
        eventually(lambda: proxy.counters.accepted == 10_000, "all clients are accepted")
        proxy.await_drained()
        assert proxy.counters.finished == 10_000
        assert proxy.warnings == []


class Child:
    """A proxy in a process of its own (child.py)."""

    def __init__(self, fallback: str, *, descriptors: int | None = None, **settings: int) -> None:
        settings = {"max_connections": 1_000_000, "max_connections_per_ip": 1_000_000, **settings}
        wanted = {"fallback": fallback, "settings": settings, "descriptors": descriptors}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("child.py")), json.dumps(wanted)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._stack = ExitStack()
        self._stack.enter_context(self._process)
        self._stack.callback(self._process.kill)
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def descriptors(self) -> int:
        """The number of its open descriptors, counted here, because it may have none left to count with."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    @property
    def lowest_free(self) -> int:
        """The number that its next descriptor would have."""
        taken = {int(path.name) for path in Path(f"/proc/{self._process.pid}/fd").iterdir()}
        return min(set(range(len(taken) + 1)) - taken)

    def limit_descriptors(self, number: int) -> None:
        """Change its limit of descriptors."""
        _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (number, hard))

    def figures(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def cpu_over(self, seconds: float) -> float:
        before = self.figures()["cpu"]
        time.sleep(seconds)
        return self.figures()["cpu"] - before

    def stop(self) -> str:
        """Stop the process, and return its log."""
        _, logged = self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, logged
        return logged


def test_without_free_descriptors_clients_wait_and_are_served_later() -> None:
    with (
        Backend(echo) as backend,
        Child(backend.address, descriptors=80, connect_timeout_ms=8000) as child,
    ):
        with ExitStack() as stack:
            held = []
            # Each client takes two descriptors of the proxy, so at most 40 clients are in at once.
            for _ in range(20):
                client = stack.enter_context(connect(child.address))
                client.sendall(b"?")
                assert client.recv(1) == b"?"
                held.append(client)
            late = [stack.enter_context(connect(child.address)) for _ in range(100)]
            for client in late:
                client.sendall(b"!")
            eventually(lambda: child.descriptors >= 75, "the process has run out of descriptors")
            assert child.cpu_over(0.5) < 0.15
            for client in held:
                client.sendall(b"still")
                assert receive(client, 5) == b"still"
                client.close()
            for client in late:
                assert client.recv(1) == b"!"
                client.close()
        eventually(lambda: child.figures()["active"] == 0, "all clients have left")
        assert child.figures()["accepted"] == child.figures()["finished"] == 120
        assert "cannot accept: Too many open files" in child.stop()


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """Raise the limit of descriptors of this process to the hard limit, and yield it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_idle_connections_cost_an_active_connection_nothing(many_descriptors: int) -> None:
    count = min(10_000, (many_descriptors - 500) // 2)
    assert count >= 1500, "this test needs a higher hard limit of descriptors"
    with Backend(echo) as backend, Child(backend.address) as child:
        alone = cpu_for_exchanges(child)
    with (
        socket.create_server(("127.0.0.1", 0), backlog=4096) as server,
        Child(f"127.0.0.1:{server.getsockname()[1]}") as child,
    ):
        held: list[socket.socket] = []
        with ExitStack() as stack:
            for _ in range(count):
                client = stack.enter_context(socket.create_connection(child.address))
                client.sendall(b"?")
                held.append(client)
                stack.enter_context(server.accept()[0])
            assert child.figures()["active"] == count
            eventually(lambda: child.cpu_over(0.5) < 0.02, "the proxy is idle")
            taker = threading.Thread(target=echo_one, args=(server,))
            taker.start()
            among_many = cpu_for_exchanges(child)
            taker.join(PATIENCE)
        eventually(lambda: child.figures()["active"] == 0, "all clients have left")
        assert child.descriptors < 50
        # Caches and a busy machine cost something. A cost per connection would multiply the time by
        # thousands.
        assert among_many < 5 * alone + 0.1
        assert child.stop() == ""


def echo_one(server: socket.socket) -> Any:
    with server.accept()[0] as sock:
        return echo(sock)


def cpu_for_exchanges(child: Child) -> float:
    """Return the processor time of 2,000 exchanges."""
    with connect(child.address) as client:
        before = child.figures()["cpu"]
        for _ in range(2000):
            client.sendall(b"?")
            assert client.recv(1) == b"?"
        return child.figures()["cpu"] - before


def test_accepted_clients_reach_a_backend_while_others_wait_for_descriptors() -> None:
    with Backend(echo) as backend, Child(backend.address, descriptors=60, peek_timeout_ms=60_000) as child:
        with ExitStack() as stack:
            # No client sends a byte, so the proxy could accept twice as many as it can have backends for.
            silent = [stack.enter_context(connect(child.address)) for _ in range(100)]
            eventually(lambda: child.figures()["accepted"] > 10, "as many clients are in as the limit allows")
            time.sleep(0.3)  # time in which further clients could come in, and must not
            inside = int(child.figures()["active"])
            for_clients = 60 - (child.descriptors - inside)
            assert (for_clients - 3) // 2 - 1 <= inside <= for_clients // 2
            for client in silent[:inside]:
                client.sendall(b"!")
                assert client.recv(1) == b"!"
            for client in silent[:inside]:
                client.close()
            for client in silent[inside:]:
                client.sendall(b"?")
                assert client.recv(1) == b"?"
                client.close()
        eventually(lambda: child.figures()["active"] == 0, "all clients have left")
        assert "cannot accept: Too many open files" in child.stop()


def test_a_dial_that_waits_for_a_descriptor_is_given_up_at_the_connect_timeout() -> None:
    settings = {"connect_timeout_ms": 300, "peek_timeout_ms": 60_000}
    with Backend(sink) as backend, Child(backend.address, descriptors=40, **settings) as child:
        with connect(child.address) as silent:
            eventually(lambda: child.figures()["active"] == 1, "the client is accepted")
            child.limit_descriptors(child.lowest_free)
            silent.sendall(b"?")
            assert receive_all(silent) == (b"", "reset")
            eventually(lambda: child.figures()["active"] == 0, "the client has left")
        child.limit_descriptors(40)
        assert ask(child.address, b"?") == (digest(b"?"), "eof")
        child.stop()
