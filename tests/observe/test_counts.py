"""Status and metrics equal the traffic of the test, count by count and byte by byte."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from refractium import NEED_MORE, EngineSpec, Identification, Refractium, Route, Transport, define_protocol
from refractium.observe import metrics
from refractium.observe.metrics import Exporter, families
from refractium.observe.status import WorkerStatus
from refractium.proxy.counters import BOUNDS, Outcome, TcpCounters
from refractium.proxy.summary import Ended
from support import datagrams
from support.backends import Backend, echo, refusing
from support.clients import connect, receive_all
from support.hooks import Ignoring
from support.process import free_port
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from refractium.observe.status import RouteTraffic, Status

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"
RESET = struct.pack("ii", 1, 0)


def resetting(sock: socket.socket) -> None:
    """Read some bytes, then reset."""
    sock.recv(100)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


@define_protocol("faulty", max_bytes=1, prefixes=(b"F",))
def faulty(data: bytes) -> Identification:
    if data:
        raise RuntimeError
    return NEED_MORE


@define_protocol("quizzed", transport=Transport.UDP, max_bytes=100)
def quizzed(data: bytes) -> Identification:
    return starting_with(b"QUIZ").identify(data)


class Run:
    """A proxy with every kind of route, and its figures.

    Attributes:
        proxy: the proxy; it admits at most 3 clients from one address.
    """

    def __init__(self, proxy: ProxyThread) -> None:
        self.proxy = proxy

    def ask(self, data: bytes) -> bytes:
        """Connect, send once, and return the answer; leave after the answer or the end."""
        before = self.proxy.counters.finished
        with self.proxy.connect() as client:
            client.sendall(data)
            try:
                answer = client.recv(100)
            except ConnectionResetError:
                answer = b"reset"
        eventually(lambda: self.proxy.counters.finished == before + 1, "the connection has ended")
        return answer

    def status(self) -> Status:
        found: Status = self.proxy.call(self.tell())
        return found

    async def tell(self) -> Status:
        """Return the status, read in the loop of the proxy."""
        return self.proxy.engine.status_now()

    def scrape(self) -> list[Metric]:
        """Return the metrics as a scraper receives them."""
        exporter = Exporter("127.0.0.1", 0, self.tell)
        self.proxy.call(exporter.open())
        try:
            with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        finally:
            self.proxy.call(exporter.close())
        return list(text_string_to_metric_families(text))

    def samples(self) -> dict[str, float]:
        """Return the samples by name and labels, with the labels in alphabetical order."""
        return {
            " ".join((one.name, *(value for _, value in sorted(one.labels.items())))): one.value
            for family in self.scrape()
            for one in family.samples
        }


@pytest.fixture
def run() -> Iterator[Run]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(Backend(echo))
        bad = stack.enter_context(Backend(resetting))
        away = stack.enter_context(refusing())
        quiz = stack.enter_context(datagrams.UdpBackend(datagrams.echo))
        proxy = ProxyThread(
            Route(starting_with(b"GOOD", name="good"), good.address),
            Route(starting_with(b"BAD", name="bad"), bad.address),
            Route(starting_with(b"AWAY", name="away"), away),
            Route(starting_with(b"SELF", name="self"), f"127.0.0.1:{port}"),
            Route(faulty, good.address),
            Route(quizzed, quiz.address),
            port=port,
            settings=quick(max_connections_per_ip=3, udp_session_timeout_ms=300),
            expected=("cannot be reached", "refused a connection", "protocol faulty failed"),
        )
        yield Run(stack.enter_context(proxy))


def mixed(run: Run) -> None:
    """Cause at least one of every event that can be counted; all connections are closed at the end."""
    for _ in range(3):
        assert run.ask(b"GOOD 1") == b"GOOD 1"
    for _ in range(2):
        assert run.ask(b"zzzz") == b""
    assert run.ask(b"SELF") == b""
    assert run.ask(b"AWAY") == b"reset"
    assert run.ask(b"BAD 4567") == b"reset"
    assert run.ask(b"F") == b""
    before = run.proxy.counters.finished
    run.proxy.connect().close()
    with run.proxy.connect() as client:
        client.sendall(b"GOOD")
        assert client.recv(4) == b"GOOD"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    eventually(lambda: run.proxy.counters.finished == before + 2, "both connections have ended")


def by_name(routes: tuple[RouteTraffic, ...]) -> dict[str, tuple[Any, ...]]:
    return {one.name: (one.active, one.ended, one.bytes_up, one.bytes_down) for one in routes}


def test_after_a_mixed_run_every_count_of_connections_is_exact(run: Run) -> None:
    mixed(run)
    tcp = run.status().tcp
    assert (tcp.accepted, tcp.finished, tcp.active, tcp.refused, tcp.loops) == (11, 11, 0, {}, 1)
    assert by_name(tcp.routes) == {
        "good": (0, {"closed": 3, "client_reset": 1}, 22, 22),
        "bad": (0, {"backend_reset": 1}, 8, 0),
        "away": (0, {"unreachable": 1}, 0, 0),
        "self": (0, {"loop": 1}, 0, 0),
        "-": (0, {"no_route": 3, "client_left": 1}, 0, 0),
    }
    assert tcp.outcomes == {"identified": 7, "no_route": 3, "left": 1}
    assert tcp.faults == {"faulty": 1}
    assert tcp.identification_buckets[-1] == (BOUNDS[-1], 11)


def test_metrics_show_the_same_counts_as_the_status(run: Run) -> None:
    mixed(run)
    samples = run.samples()
    expected = {
        "refractium_accepted_total tcp": 11,
        "refractium_connections_total closed good tcp": 3,
        "refractium_connections_total client_reset good tcp": 1,
        "refractium_connections_total backend_reset bad tcp": 1,
        "refractium_connections_total unreachable away tcp": 1,
        "refractium_connections_total loop self tcp": 1,
        "refractium_connections_total no_route - tcp": 3,
        "refractium_connections_total client_left - tcp": 1,
        "refractium_bytes_total up good tcp": 22,
        "refractium_bytes_total down good tcp": 22,
        "refractium_bytes_total up bad tcp": 8,
        "refractium_refusals_total loop tcp": 1,
        "refractium_refusals_total max_connections_per_ip tcp": 0,
        "refractium_identifications_total identified tcp": 7,
        "refractium_identifications_total no_route tcp": 3,
        "refractium_identifications_total left tcp": 1,
        "refractium_identification_seconds_count": 11,
        "refractium_identification_faults_total faulty tcp": 1,
        "refractium_config_generation": 1,
    }
    assert {key: samples.get(key) for key in expected} == expected
    ended = sum(value for key, value in samples.items() if key.startswith("refractium_connections_total"))
    assert ended == 11


def test_open_and_refused_connections_are_counted(run: Run) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(3):
            client = stack.enter_context(run.proxy.connect())
            if number:
                client.sendall(b"GOOD bytes")
                assert client.recv(100) == b"GOOD bytes"
        for _ in range(2):
            with run.proxy.connect() as late:
                assert late.recv(1) == b""
        status = run.status()
        tcp = status.tcp
        assert tcp.accepted == 5 == sum(tcp.refused.values()) + tcp.finished + tcp.active
        assert (tcp.refused, tcp.active) == ({"max_connections_per_ip": 2}, 3)
        assert by_name(tcp.routes) == {"good": (2, {}, 20, 20), "-": (1, {}, 0, 0)}
        active = {one.name: one.backends[0].active for one in status.routes}
        assert active == {"good": 2, "faulty": 2, "bad": 0, "away": 0, "self": 0, "quizzed": 0}
        samples = run.samples()
        assert samples["refractium_connections_active good tcp"] == 2
        assert samples["refractium_bytes_total up good tcp"] == 20
        assert samples["refractium_refusals_total max_connections_per_ip tcp"] == 2


def test_sessions_and_datagrams_are_counted(run: Run) -> None:
    for datagram in (b"QUIZ", b"QUIZ 2"):
        assert datagrams.ask(run.proxy.address, datagram) == datagram
    with datagrams.client(run.proxy.address) as client:
        client.send(b"what")
        eventually(
            lambda: run.proxy.engine.udp_counters.unrouted == 1, "a datagram without a route is counted"
        )
    eventually(lambda: run.proxy.engine.udp_counters.finished == 2, "both sessions have ended")
    udp = run.status().udp
    assert (udp.sessions, udp.finished, udp.active, udp.refused, udp.unrouted) == (2, 2, 0, {}, 1)
    assert by_name(udp.routes) == {"quizzed": (0, {"idle": 2}, 10, 10)}
    samples = run.samples()
    assert samples["refractium_accepted_total udp"] == 2
    assert samples["refractium_connections_total idle quizzed udp"] == 2
    assert samples["refractium_udp_unrouted_total"] == 1


def test_a_backend_that_goes_down_is_shown_with_time_and_reason(run: Run) -> None:
    def away() -> tuple[str, str]:
        (found,) = [one.backends[0] for one in run.status().routes if one.name == "away"]
        assert run.status().started <= found.since <= run.status().at
        return found.state, found.reason

    assert away() == ("unknown", "")
    for _ in range(3):
        assert run.ask(b"AWAY") == b"reset"
    assert away() == ("down", "it cannot be reached: Connection refused")
    up = {key: value for key, value in run.samples().items() if key.startswith("refractium_backend_up")}
    assert sorted(up.values()) == [0, 1, 1, 1, 1]  # two routes share a backend, which has one sample


def test_silent_clients_and_fallback_clients_are_counted_separately() -> None:
    with (
        Backend(echo) as backend,
        ProxyThread(
            Route(starting_with(b"MAIL", name="mail", server_first=True), backend.address),
            fallback=backend.address,
            settings=quick(peek_timeout_ms=1_000),
        ) as proxy,
    ):
        run = Run(proxy)
        assert run.ask(b"other") == b"other"
        with proxy.connect() as client:
            eventually(
                lambda: proxy.counters.outcomes[Outcome.SILENT] == 1, "the client is counted as silent"
            )
            client.sendall(b"late")
            assert client.recv(100) == b"late"
        proxy.await_active(0)
        tcp = run.status().tcp
        assert tcp.outcomes == {"fallback": 1, "silent": 1}
        assert {one.name: one.bytes_up for one in tcp.routes} == {"fallback": 5, "mail": 4}
        assert tcp.identification_seconds >= 1
        assert [count for _, count in tcp.identification_buckets][-1] == 2


def test_good_and_failed_reloads_are_counted_and_keep_the_counts(run: Run) -> None:
    mixed(run)
    run.proxy.engine.reload_failed(["line 3: no"])
    failed = run.status()
    assert failed.last_reload is not None
    assert (failed.generation, failed.reloads_failed) == (1, 1)
    assert (failed.last_reload.ok, failed.last_reload.errors) == (False, ("line 3: no",))
    assert run.samples()["refractium_config_last_reload_successful"] == 0
    run.proxy.call(run.proxy.engine.apply(EngineSpec([Route(faulty, "127.0.0.1:1")], settings=quick())))
    status = run.status()
    assert status.last_reload is not None
    assert (status.generation, status.last_reload.ok, status.last_reload.errors) == (2, True, ())
    assert [one.name for one in status.routes] == ["faulty"]
    assert (status.tcp.accepted, status.tcp.faults) == (11, {"faulty": 1})
    samples = run.samples()
    assert samples["refractium_reloads_total ok"] == samples["refractium_reloads_total failed"] == 1


def test_the_page_lists_exactly_the_metrics_that_are_scraped(run: Run) -> None:
    mixed(run)
    routes = [Route(faulty, "127.0.0.1:1")]
    run.proxy.call(run.proxy.engine.apply(EngineSpec(routes, settings=quick(), hooks=[Ignoring])))
    rows = re.findall(r"^\| `(refractium_\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    status = run.status()
    several = replace(status, workers=(WorkerStatus(1, 4711, status.at, 0, 0),))
    of_workers = [family for family in families(several) if family.name.startswith("refractium_worker")]
    scraped = {}
    for family in (*run.scrape(), *of_workers):
        labels = {label for one in family.samples for label in one.labels} - {"le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        scraped[name] = (family.type, labels)
    assert listed == scraped


def test_the_page_lists_every_value_of_ended() -> None:
    (row,) = re.findall(r"^\| `refractium_connections_total` .*$", PAGE.read_text(), re.MULTILINE)
    assert {how.name.lower() for how in Ended} <= set(re.findall(r"`(\w+)`", row))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_silent_scraper_delays_neither_others_nor_the_stop(run: Run, host: str) -> None:
    exporter = Exporter(host, 0, run.tell)
    run.proxy.call(exporter.open())
    try:
        port = int(exporter.address.rpartition(":")[2])
        with connect((host, port)) as silent:
            with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=10) as answer:
                assert b"refractium_build_info" in answer.read()
            run.proxy.call(exporter.close())
            silent.shutdown(socket.SHUT_WR)
            assert silent.recv(1) == b""
    finally:
        run.proxy.call(exporter.close())


@contextmanager
def exporting(run: Run, *hosts: str) -> Iterator[tuple[str, int]]:
    exporter = Exporter("127.0.0.1", 0, run.tell, hosts)
    run.proxy.call(exporter.open())
    try:
        yield "127.0.0.1", int(exporter.address.rpartition(":")[2])
    finally:
        run.proxy.call(exporter.close())


def answer_to(address: tuple[str, int], path: str, host: str) -> int:
    """Return the status of the answer to a request."""
    with connect(address) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return int(receive_all(sock).data.split()[1])


def test_scrapers_that_send_slowly_make_room_for_others_and_are_cut_off(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE", 1.0)
    with exporting(run) as address, ExitStack() as stack:
        before = threading.active_count()
        dripping = [stack.enter_context(connect(address)) for _ in range(60)]
        for sock in dripping:
            sock.sendall(b"G")
        for _ in range(3):
            assert answer_to(address, "/metrics", "127.0.0.1") == 200
        eventually(lambda: threading.active_count() <= before + 16, "there are at most 16 further threads")
        for sock in dripping:
            assert receive_all(sock).data == b""  # cut off, although none of them was silent for long
        eventually(lambda: threading.active_count() == before, "all scrapers are cut off")


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/metrics", "127.0.0.1:9100", 200),
        ("/metrics", "[::1]:9100", 200),
        ("/metrics", "::1", 200),
        ("/metrics", "localhost", 200),
        ("/metrics", "LOCALHOST:9100", 200),
        ("/metrics", "proxy.example.org:9100", 200),
        ("/metrics", "evil.example", 403),
        ("/metrics", "127.0.0.1.evil.example", 403),
        ("/", "127.0.0.1", 404),
        ("/metrics/", "127.0.0.1", 404),
        ("/favicon.ico", "localhost", 404),
    ],
)
def test_only_metrics_are_served_and_only_for_allowed_host_names(
    run: Run, path: str, host: str, status: int
) -> None:
    with exporting(run, "proxy.example.org") as address:
        assert answer_to(address, path, host) == status


def test_an_identification_is_counted_in_the_bucket_of_its_duration() -> None:
    counters = TcpCounters()
    for seconds in (0.0, 0.001, 0.002, 0.5, 6.0):
        counters.decide(Outcome.IDENTIFIED, seconds)
    assert counters.buckets == [2, 1, 0, 0, 0, 1, 0, 0, 1]
    assert counters.seconds == pytest.approx(6.503)


def test_an_engine_that_serves_nothing_yet_has_a_status() -> None:
    status = Refractium([Route(starting_with(b"A"), "127.0.0.1:1")]).status_now()
    assert (status.listeners, status.tcp.accepted, status.udp.sessions) == ((), 0, 0)
    assert [one.name for one in status.routes] == ["magic"]


def test_the_status_shows_listeners_as_they_are(run: Run) -> None:
    address = f"127.0.0.1:{run.proxy.port}"
    assert [(one.transport.value, one.address) for one in run.status().listeners] == [
        ("tcp", address),
        ("udp", address),
    ]
    with connect(run.proxy.address) as client:
        client.sendall(b"zzzz")
        assert client.recv(1) == b""
