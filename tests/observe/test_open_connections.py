"""A connection that is open for a second has a line of its own in the access log. A short one has none."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from refractium import Identification, ProtocolMatch, Refractium, Route, define_protocol
from support.backends import Backend, echo
from support.clients import connect, receive, receive_all, reset
from support.datagrams import UdpBackend
from support.datagrams import client as udp_client
from support.datagrams import echo as udp_echo
from support.process import serving
from support.proxy import ProxyThread, eventually, quick, starting_with

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from refractium.proxy.summary import Summary


def name_of(sock: socket.socket) -> str:
    return "{}:{}".format(*sock.getsockname()[:2])


def say(client: socket.socket, text: bytes = b"hello") -> None:
    client.sendall(text)
    assert receive(client, len(text)) == text


def test_a_connection_is_reported_when_it_is_a_second_old() -> None:
    with Backend(echo) as backend, ProxyThread(fallback=backend.address) as proxy:
        with proxy.connect() as long:
            say(long)
            for _ in range(20):
                with proxy.connect() as short:
                    say(short)
            summary = proxy.next_open()
            assert summary.client == name_of(long)
            assert (summary.route, summary.backend) == ("fallback", backend.address)
            assert (summary.up, summary.down, summary.ended) == (5, 5, None)
            assert summary.seconds >= 1
            say(long)
        ends = [proxy.next_end() for _ in range(21)]
        assert [(one.client, one.up) for one in ends[20:]] == [(summary.client, 10)]
        assert proxy._log.opened.empty()


def test_a_connection_that_is_joined_later_is_reported_when_it_is_joined() -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        receive_all(sock)

    with Backend(greet) as backend:
        route = Route(starting_with(b"magic", server_first=True), backend.address)
        settings = quick(peek_timeout_ms=1_500)
        with (
            ProxyThread(route, fallback="127.0.0.1:1", settings=settings) as proxy,
            proxy.connect() as client,
        ):
            assert receive(client, 5) == b"hello"
            summary = proxy.next_open()
            assert (summary.client, summary.route) == (name_of(client), "magic")
            assert (summary.backend, summary.ended) == (backend.address, None)
            assert summary.seconds >= 1.4


def test_a_client_that_never_reaches_a_backend_is_reported_only_at_its_end() -> None:
    with ProxyThread(Route(starting_with(b"magic"), "127.0.0.1:1")) as proxy:
        with proxy.connect() as client:
            eventually(
                lambda: all(one._is_settled for one in proxy.service.connections), "it is a second old"
            )
            reset(client)
        assert proxy.next_end().ended == "client left before it was identified"
        assert proxy._log.opened.empty()


@define_protocol("asked", transport="udp", max_bytes=1, udp_responses=1)
def asked(_: bytes) -> Identification:
    return ProtocolMatch()


def test_a_udp_session_that_goes_on_is_reported() -> None:
    with (
        UdpBackend(udp_echo) as backend,
        # The stop cuts the session if its last datagram is less than a second old.
        ProxyThread(fallback_udp=backend.address, expected=["stopped with 1 .* they were cut"]) as proxy,
    ):
        with udp_client(proxy.address) as client:
            client.send(b"hello")
            assert client.recv(10) == b"hello"
            summary = proxy.next_open()
            assert (summary.transport, summary.client) == ("udp", name_of(client))
            assert (summary.up, summary.down, summary.ended) == (5, 5, None)
        proxy.call(proxy.engine.stop(0))


def test_a_udp_session_without_further_answers_is_reported_only_at_its_end() -> None:
    with UdpBackend(udp_echo) as backend, UdpBackend(lambda _: []) as nobody:
        route = Route(asked, backend.address)
        for fallback, routes in ((nobody.address, ()), ((), (route,))):
            with ProxyThread(
                *routes, fallback_udp=fallback, settings=quick(udp_unanswered_timeout_ms=1_500)
            ) as proxy:
                with udp_client(proxy.address) as client:
                    client.send(b"hello")
                    assert proxy.next_end().ended in {"unanswered", "answered"}
                assert proxy._log.opened.empty()


class Ends:
    """A report without the method `write_open`, which an older program may have."""

    def __init__(self) -> None:
        self.summaries: list[Summary] = []

    def is_wanted(self) -> bool:
        return True

    def write(self, summary: Summary) -> None:
        self.summaries.append(summary)


def test_a_report_without_write_open_receives_only_ends() -> None:
    report = Ends()
    with Backend(echo) as backend:
        proxy = ProxyThread(fallback=backend.address)
        proxy.engine = Refractium(fallback_tcp=backend.address, settings=quick(), report=report)
        with proxy:
            with proxy.connect() as client:
                say(client)
                eventually(
                    lambda: all(one._is_settled for one in proxy.service.connections), "it is a second old"
                )
            proxy.await_drained()
    assert [one.ended for one in report.summaries] == ["closed"]


# The program


def configured(folder: Path, backend: str, more: str = "") -> Path:
    path = folder / "refractium.toml"
    path.write_text(f'fallback_tcp = "{backend}"\n[server]\nbind = "127.0.0.1"\nport = 0\n{more}')
    return path


def connections(err: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    return [line["connection"] for line in lines if "connection" in line]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_log_has_a_line_for_a_connection_that_is_open(workers: int, tmp_path: Path) -> None:
    with Backend(echo) as backend:
        path = configured(tmp_path, backend.address)
        arguments: Sequence[object] = ("-c", path, "--workers", workers, "--log-format")
        with serving(*arguments, "plain") as program:
            with connect(program.address) as client:
                say(client)
                name = re.escape(name_of(client))
                program.await_err(
                    rf"^\S+ info {name} fallback -> {backend.address} up=5 down=5 1\.\d+s open$"
                )
            program.await_err(rf" {name} .* closed$")
        with serving(*arguments, "json") as program:
            with connect(program.address) as client:
                say(client)
                name = name_of(client)
                program.await_err(r'"ended":null')
            program.await_err(r'"ended":"closed"')
            opened, closed = connections(program.err)
            assert opened.keys() == closed.keys()
            assert opened["client"] == closed["client"] == name


def test_a_configuration_may_leave_the_lines_of_open_connections_out(tmp_path: Path) -> None:
    with Backend(echo) as backend:
        path = configured(tmp_path, backend.address, "[log]\nopen_connections = false\n")
        with serving("-c", path, "--log-format", "json") as program, connect(program.address) as first:
            begun = time.monotonic()
            say(first)
            eventually(lambda: time.monotonic() > begun + 1.5, "it is more than a second old")
            configured(tmp_path, backend.address)
            program.await_err("reloaded: ")
            with connect(program.address) as second:
                say(second)
                program.await_err(r'"ended":null')
                (only,) = connections(program.err)
                assert only["client"] == name_of(second)


def test_lines_of_open_connections_count_for_the_limit_on_lines(tmp_path: Path) -> None:
    with Backend(echo) as backend:
        path = configured(tmp_path, backend.address, "[log]\nmax_lines_per_second = 1\n")
        with serving("-c", path, "--log-format", "json") as program:
            clients = [connect(program.address) for _ in range(30)]
            for client in clients:
                say(client)
            program.await_err(r"lines of the access log were left out")
            assert 10 <= len(connections(program.err)) < 20
            for client in clients:
                client.close()
