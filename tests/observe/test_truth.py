"""A mixed run through the program: its clients count, and status and metrics must show the same counts."""

from __future__ import annotations

import random
import signal
import socket
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import pytest
from prometheus_client.parser import text_string_to_metric_families

from refractium.observe.control import ask, decode, file_name
from support.backends import Backend, echo, named, refusing
from support.clients import connect, receive, receive_all, reset
from support.datagrams import UdpBackend
from support.datagrams import client as datagram_client
from support.datagrams import echo as echo_datagram
from support.process import RUNTIME, Running, run, serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from refractium.observe.status import Status

Story: TypeAlias = "Counter[tuple[str, ...]]"
"""Numbers of events or bytes, by event. Comparisons ignore events with the number 0."""

PER_IP: Final = 40
REFUSED: Final = 5
"""Clients beyond the limit of their address, for each transport."""
WORKERS: Final = 6
STEPS: Final = 80
"""Actions of each worker, one after the other."""
DENIED: Final = "127.0.3.1"
"""An address that the listener does not admit."""


class Backends(NamedTuple):
    """The address of each backend."""

    good: str
    better: str
    crashing: str
    gone: str
    greeting: str
    fallback: str
    answering: str
    sink: str


@contextmanager
def backends() -> Iterator[Backends]:
    """Run one backend of each kind."""
    with (
        Backend(echo) as good,
        Backend(echo) as better,
        Backend(crashing) as crash,
        refusing() as gone,
        Backend(named("hello")) as greeting,
        Backend(echo) as fallback,
        UdpBackend(echo_datagram) as answering,
        UdpBackend(lambda _: []) as sink,
    ):
        yield Backends(
            good.address,
            better.address,
            crash.address,
            gone,
            greeting.address,
            fallback.address,
            answering.address,
            sink.address,
        )


def crashing(sock: socket.socket) -> None:
    """Read some bytes, then reset."""
    sock.recv(100)
    reset(sock)


def configuration(to: Backends, capture: Path, *server: str) -> str:
    routes = [
        ("good", "tcp", f'forward_to = ["{to.good}", "{to.better}"]'),
        ("crash", "tcp", f'forward_to = "{to.crashing}"'),
        ("gone", "tcp", f'forward_to = "{to.gone}"'),
        ("greet", "tcp", f'forward_to = "{to.greeting}"\non_timeout = true\nhooks = ["pcap"]'),
        ("private", "tcp", f'forward_to = "{to.good}"\nallow = ["10.0.0.0/8"]'),
        ("shut", "tcp", 'action = "reject"'),
        ("query", "udp", f'forward_to = "{to.answering}"\nhooks = ["pcap"]'),
        ("stay", "udp", f'forward_to = "{to.answering}"\nudp_session_timeout_ms = 600000'),
        ("mute", "udp", 'action = "reject"'),
    ]
    lines = [
        f'fallback_tcp = "{to.fallback}"',
        f'fallback_udp = "{to.sink}"',
        "[server]",
        'bind = "127.0.0.1"',
        "port = 0",
        f"max_connections_per_ip = {PER_IP}",
        f"max_udp_sessions_per_ip = {PER_IP}",
        f'deny = ["{DENIED}"]',
        "udp_session_timeout_ms = 2000",
        "hot_reload = false",
        *server,
        "[metrics]",
        'bind = "127.0.0.1:0"',
        "[plugins.pcap]",
        f'path = "{capture}"',
    ]
    for name, transport, more in routes:
        lines += [
            "[[protocols]]",
            f'name = "{name}"',
            f'transport = "{transport}"',
            f'patterns = [{{ hex = "{name.encode().hex()}", offset = 0 }}]',
            more,
        ]
    return "\n".join(lines)


class Clients:
    """Clients with one source address.

    Args:
        port: the port of the proxy.
        source: the address of the clients.

    Attributes:
        story: the counts of events that the clients have seen.
    """

    def __init__(self, port: int, source: str) -> None:
        self._address = "127.0.0.1", port
        self._source = source
        self._stack = ExitStack()
        self.story: Story = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def do_many_things(self, seed: int) -> None:
        """Do random actions in a random order."""
        chance = random.Random(seed)  # noqa: S311 - test data
        things: tuple[tuple[Callable[[bytes], None], int], ...] = (
            (self.talk, 100_000),
            (self.go_to_the_fallback, 100_000),
            (self.are_unknown, 100_000),
            (self.wait_to_be_greeted, 100_000),
            (self.leave_in_anger, 0),
            (self.are_thrown_out, 0),
            (self.say_nothing, 0),
            (self.are_kept_out, 0),
            (self.are_rejected, 0),
            (self.query, 1_000),
            (self.send_one_way, 1_000),
            (self.send_in_vain, 1_000),
        )
        for do, most in chance.choices(things, k=STEPS):
            do(chance.randbytes(chance.randint(0, most)))

    def talk(self, data: bytes) -> None:
        self._exchange("good", "identified", b"good" + data)

    def go_to_the_fallback(self, data: bytes) -> None:
        """Be served by the fallback, because no backend of the route can be reached."""
        self._exchange("fallback", "identified", b"gone" + data)

    def are_unknown(self, data: bytes) -> None:
        self._exchange("fallback", "fallback", b"what?" + data)

    def wait_to_be_greeted(self, data: bytes) -> None:
        with self._connect() as sock:
            assert receive(sock, 5) == b"hello"
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == (data, "eof")
        self._has_ended("greet", "silent", "closed", len(data), 5 + len(data))

    def leave_in_anger(self, _data: bytes) -> None:
        with self._connect() as sock:
            sock.sendall(b"good")
            assert receive(sock, 4) == b"good"
            reset(sock)
        self._has_ended("good", "identified", "client_reset", 4, 4)

    def are_thrown_out(self, _data: bytes) -> None:
        with self._connect() as sock:
            sock.sendall(b"crash")
            assert receive_all(sock) == (b"", "reset")
        self._has_ended("crash", "identified", "backend_reset", 5, 0)

    def say_nothing(self, _data: bytes) -> None:
        self._connect().close()
        self._has_ended("-", "left", "client_left", 0, 0)

    def are_kept_out(self, _data: bytes) -> None:
        with self._connect() as sock:
            sock.sendall(b"private")
            assert receive_all(sock) == (b"", "eof")
        self._has_ended("private", "identified", "denied", 0, 0)

    def are_rejected(self, _data: bytes) -> None:
        with self._connect() as sock:
            sock.sendall(b"shut")
            assert receive_all(sock) == (b"", "eof")
        self._has_ended("shut", "identified", "rejected", 0, 0)

    def query(self, data: bytes) -> None:
        sock = self._send(b"query" + data)
        assert sock.recv(65_536) == b"query" + data
        self.story["identification", "udp", "identified"] += 1
        self._has_session("ended", "udp", "query", "idle", up=5 + len(data), down=5 + len(data))

    def send_one_way(self, data: bytes) -> None:
        self._send(data).send(data)
        self.story["identification", "udp", "fallback"] += 1
        self._has_session("ended", "udp", "fallback", "unanswered", up=2 * len(data), down=0)

    def send_in_vain(self, data: bytes) -> None:
        self._send(b"mute" + data)
        self.story["identification", "udp", "identified"] += 1
        self.story["refused", "udp", "rejected"] += 1

    def are_denied(self) -> None:
        """Expect the listener to refuse these clients before it reads a byte."""
        with self._connect() as sock:
            assert receive_all(sock).data == b""
        self._send(b"query")
        self.story["refused", "tcp", "denied"] += 1
        self.story["refused", "udp", "denied"] += 1

    def fill_up(self) -> None:
        """Open as many connections as one address may have, which stay open, and then some more."""
        for _ in range(PER_IP):
            sock = self._stack.enter_context(self._connect())
            sock.sendall(b"good")
            assert receive(sock, 4) == b"good"
        for _ in range(REFUSED):
            with self._connect() as sock:
                assert receive_all(sock).data == b""
        self.story["active", "tcp", "good"] += PER_IP
        self.story["identification", "tcp", "identified"] += PER_IP
        self.story["refused", "tcp", "max_connections_per_ip"] += REFUSED
        self._has_moved("tcp", "good", 4 * PER_IP, 4 * PER_IP)

    def fill_up_with_sessions(self) -> None:
        """Open as many UDP sessions as one address may have, and then some more."""
        for _ in range(PER_IP):
            assert self._send(b"stay").recv(100) == b"stay"
            self._has_session("active", "udp", "stay", up=4, down=4)
        for _ in range(REFUSED):
            self._send(b"stay")
        self.story["identification", "udp", "identified"] += PER_IP + REFUSED
        self.story["refused", "udp", "max_udp_sessions_per_ip"] += REFUSED

    def _connect(self) -> socket.socket:
        self.story["accepted", "tcp"] += 1
        return connect(self._address, source=self._source)

    def _send(self, datagram: bytes) -> socket.socket:
        """Send a datagram from a port of its own, which stays in use as long as the session may last."""
        sock = self._stack.enter_context(datagram_client(self._address, source=self._source))
        sock.send(datagram)
        return sock

    def _exchange(self, route: str, outcome: str, data: bytes) -> None:
        with self._connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == (data, "eof")
        self._has_ended(route, outcome, "closed", len(data), len(data))

    def _has_ended(self, route: str, outcome: str, how: str, up: int, down: int) -> None:
        self.story["ended", "tcp", route, how] += 1
        self.story["identification", "tcp", outcome] += 1
        self._has_moved("tcp", route, up, down)

    def _has_session(self, *what: str, up: int, down: int) -> None:
        self.story["accepted", "udp"] += 1
        self.story[what] += 1
        self._has_moved("udp", what[2], up, down)

    def _has_moved(self, transport: str, route: str, up: int, down: int) -> None:
        self.story["bytes", transport, route, "up"] += up
        self.story["bytes", transport, route, "down"] += down


def as_status_tells_it(status: Status) -> Story:
    story: Story = Counter()
    story["accepted", "tcp"] = status.tcp.accepted
    story["accepted", "udp"] = status.udp.sessions
    story["refused", "tcp", "loop"] = status.tcp.loops
    story["unrouted",] = status.udp.unrouted
    story["dropped",] = status.udp.dropped
    story["generation",] = status.generation
    story["reloads", "failed"] = status.reloads_failed
    for transport, of in (("tcp", status.tcp), ("udp", status.udp)):
        for reason, count in of.refused.items():
            story["refused", transport, reason] = count
        for outcome, count in of.outcomes.items():
            story["identification", transport, outcome] = count
        for route in of.routes:
            story["active", transport, route.name] = route.active
            story["bytes", transport, route.name, "up"] = route.bytes_up
            story["bytes", transport, route.name, "down"] = route.bytes_down
            for how, count in route.ended.items():
                story["ended", transport, route.name, how] = count
    for hook in status.hooks:
        for direction, tally in (("inbound", hook.inbound), ("outbound", hook.outbound)):
            story["hook", direction, "seen"] += tally.seen_bytes
            story["hook", direction, "delivered"] += tally.delivered_bytes
            story["hook", direction, "dropped"] += tally.dropped_bytes
    for configured in status.routes:
        for backend in configured.backends:
            story["up", configured.transport, backend.address] = int(backend.state != "down")
            story["serves", configured.transport, backend.address] = backend.active
    return +story


METRICS: Final = {
    "refractium_accepted_total": ("accepted", "transport"),
    "refractium_refusals_total": ("refused", "transport", "reason"),
    "refractium_connections_total": ("ended", "transport", "route", "ended"),
    "refractium_connections_active": ("active", "transport", "route"),
    "refractium_bytes_total": ("bytes", "transport", "route", "direction"),
    "refractium_identifications_total": ("identification", "transport", "result"),
    "refractium_udp_unrouted_total": ("unrouted",),
    "refractium_udp_dropped_total": ("dropped",),
    "refractium_backend_up": ("up", "transport", "backend"),
    "refractium_backend_active": ("serves", "transport", "backend"),
    "refractium_config_generation": ("generation",),
    "refractium_reloads_total": ("reloads", "result"),
    "refractium_hook_bytes_total": ("hook", "direction", "result"),
}
"""The first word of the events in the story that each metric counts, and the labels of the metric."""


def as_metrics_tell_it(url: str) -> Story:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own address
        page = answer.read().decode()
    story: Story = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name in METRICS:
                word, *labels = METRICS[sample.name]
                story[word, *(sample.labels[label] for label in labels)] += int(sample.value)
    return +story


def reload(program: Running, file: Path, to: Backends) -> Story:
    """Reload with some valid and some invalid configurations; return the counts that must be shown."""
    for number, timeout_ms in enumerate((1_001, 1_002, 1_003), 2):
        file.write_text(configuration(to, file.with_suffix(".pcapng"), f"peek_timeout_ms = {timeout_ms}"))
        program.signal(signal.SIGHUP)
        program.await_err(f"configuration {number} is in force")
        if number > 2:
            file.write_text(configuration(to, file.with_suffix(".pcapng"), "prt = 1"))
            program.signal(signal.SIGHUP)
            eventually(lambda: program.err.count("not reloaded") == number - 2, "the reload is refused")  # noqa: B023
    return Counter({("generation",): 4, ("reloads", "ok"): 3, ("reloads", "failed"): 2})


@pytest.mark.slow
def test_after_a_mixed_run_with_reloads_status_and_metrics_equal_the_counts_of_the_clients(
    tmp_path: Path,
) -> None:
    file = tmp_path / "refractium.toml"
    with ExitStack() as stack:
        to = stack.enter_context(backends())
        file.write_text(configuration(to, file.with_suffix(".pcapng"), "peek_timeout_ms = 1000"))
        program = stack.enter_context(serving("-c", file))
        url = program.await_out("^Metrics on (.*)$")[1]
        port = program.port
        control = [Path(RUNTIME.name, file_name(port))]
        workers = [
            stack.enter_context(Clients(port, f"127.0.1.{number}")) for number in range(1, WORKERS + 1)
        ]
        others = [stack.enter_context(Clients(port, source)) for source in ("127.0.2.1", "127.0.2.2", DENIED)]
        with ThreadPoolExecutor(WORKERS) as pool:
            working = [pool.submit(one.do_many_things, seed) for seed, one in enumerate(workers)]
            expected = reload(program, file, to)
            for work in working:
                work.result()
        others[0].fill_up()
        others[1].fill_up_with_sessions()
        others[2].are_denied()
        for clients in (*workers, *others):
            expected += clients.story
        refused = sum(
            count for (what, *of), count in expected.items() if (what, of[:1]) == ("refused", ["udp"])
        )

        def is_over() -> bool:
            now = decode(ask(control))
            active = now.tcp.active, now.udp.active
            for tally in (one for hook in now.hooks for one in (hook.inbound, hook.outbound)):
                if tally.seen != tally.delivered + tally.dropped:
                    return False
            return active == (PER_IP, PER_IP) and sum(now.udp.refused.values()) >= refused

        eventually(is_over, "everything that ends has ended")
        for transport, addresses in (("tcp", to[:6]), ("udp", to[6:])):
            expected.update({("up", transport, one): 1 for one in addresses if one != to.gone})
        expected.update({("serves", "tcp", one): PER_IP // 2 for one in (to.good, to.better)})
        expected["serves", "udp", to.answering] = PER_IP
        for direction, way in (("inbound", "up"), ("outbound", "down")):
            told = expected["bytes", "tcp", "greet", way] + expected["bytes", "udp", "query", way]
            expected["hook", direction, "seen"] = expected["hook", direction, "delivered"] = told
        assert {key for key in expected if key[0] == "ended"} >= {
            ("ended", "tcp", "good", "closed"),
            ("ended", "tcp", "good", "client_reset"),
            ("ended", "tcp", "crash", "backend_reset"),
            ("ended", "tcp", "private", "denied"),
            ("ended", "udp", "fallback", "unanswered"),
        }
        answer = run("status", "-p", port, "--json")
        assert answer.code == 0
        without_ok = Counter({key: count for key, count in expected.items() if key != ("reloads", "ok")})
        assert as_status_tells_it(decode(answer.out.encode())) == without_ok
        assert as_metrics_tell_it(url) == expected
        assert "Traceback" not in program.err
