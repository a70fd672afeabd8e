"""Backends for tests, without a proxy in front of them."""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING

import pytest

from refractium.contract import Transport
from refractium.testing import Backend, serve
from support import clients, datagrams

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS = ((b"", b"220 ready\r\n"), (b"USER me\r\n", b"331 go on\r\n"), (b"PASS x\r\n", b"230 in\r\n"))


def address_of(backend: Backend) -> tuple[str, int]:
    host, port = backend.split(":")
    return host, int(port)


def ask(backend: Backend, data: bytes) -> bytes:
    if backend.transport is Transport.UDP:
        return datagrams.ask(address_of(backend), data)
    return clients.ask(address_of(backend), data).data


@pytest.mark.parametrize("transport", Transport)
def test_a_backend_is_its_address_and_answers(transport: Transport) -> None:
    with Backend.echo(transport) as echo, Backend.named("green", transport) as green:
        assert ask(echo, b"hello") == b"hello"
        assert ask(green, b"hello") == b"green"
        assert [echo.received(), green.received()] == [b"hello"] * 2
        assert repr(green) == f'<Backend "green" {green}>'


def test_an_empty_datagram_is_a_datagram() -> None:
    with Backend.echo(Transport.UDP) as echo:
        assert ask(echo, b"") == b""
        assert echo.received() == b""


def test_a_script_runs_for_each_connection() -> None:
    with Backend.scripted(*STEPS) as backend:
        for _ in range(2):
            with clients.connect(address_of(backend)) as client:
                for expected, answer in STEPS:
                    client.sendall(expected)
                    assert clients.receive(client, len(answer)) == answer
                assert client.recv(1) == b""
        assert ask(backend, b"USER me\r\nPASS x\r\n") == b"".join(answer for _, answer in STEPS)


def test_a_script_of_datagrams_runs_once() -> None:
    with Backend.scripted((b"a", b"1"), (b"b", b"2"), transport=Transport.UDP) as backend:
        assert [ask(backend, b"a"), ask(backend, b"b")] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (
            b"USER you\r\n",
            r"step 2 of 3: expected b'USER me\\r\\n', received b'USER you\\r.*': they differ at byte 5",
        ),
        (b"USER", r"step 2 of 3: expected b'USER me\\r\\n', received b'USER': the client sends no more"),
        (b"USER me\r\n", r"step 3 of 3: expected b'PASS x\\r\\n', received b'': the client sends no more"),
        (b"USER me\r\nPASS x\r\nQUIT\r\n", r"received b'QUIT\\r\\n' after the last step"),
    ],
)
def test_other_bytes_than_those_of_the_script_are_an_error_with_their_step(sent: bytes, error: str) -> None:
    with pytest.raises(AssertionError, match=error), Backend.scripted(*STEPS) as backend:
        ask(backend, sent)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ([b"a", b"c"], r"step 2 of 2: expected b'b', received b'c': they differ at byte 0"),
        ([b"a", b"b", b"c"], r"received b'c' after the last step"),
    ],
)
def test_other_datagrams_than_those_of_the_script_are_an_error(sent: Sequence[bytes], error: str) -> None:
    backend = Backend.scripted((b"a", b"1"), (b"b", b"2"), transport=Transport.UDP)
    with pytest.raises(AssertionError, match=error), backend:
        send_each(backend, sent)


def send_each(backend: Backend, sent: Sequence[bytes]) -> None:
    with datagrams.client(address_of(backend)) as client:
        for datagram in sent:
            client.send(datagram)
            assert backend.received() == datagram


def test_a_connection_that_the_test_serves() -> None:
    with Backend() as backend, clients.connect(address_of(backend)) as client:
        server = backend.accept()
        server.sendall(b"220\r\n")
        assert client.recv(9) == b"220\r\n"
        with pytest.raises(TypeError, match="use the socket from accept"):
            backend.received()


def test_a_silent_backend_for_datagrams() -> None:
    with Backend(Transport.UDP) as backend, datagrams.client(address_of(backend)) as client:
        client.send(b"hello")
        assert backend.received() == b"hello"


def test_a_client_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refractium.testing.backend.PATIENCE", 0.05)
    with (
        Backend() as backend,
        pytest.raises(TimeoutError, match=f"no client has connected to .*{backend}.* 0.05 s"),
    ):
        backend.accept()
    with Backend.echo() as backend:
        with pytest.raises(TimeoutError, match=f"no client of <Backend echo {backend}> has ended"):
            backend.received()
        with pytest.raises(TypeError, match="accept is for Backend"):
            backend.accept()


def test_a_client_that_resets_its_connection_is_no_error() -> None:
    with Backend.echo() as backend:
        client = clients.connect(address_of(backend))
        client.sendall(b"hello")
        assert clients.receive(client, 5) == b"hello"
        clients.reset(client)
        assert backend.received() == b"hello"


def test_a_backend_that_nobody_starts_leaves_no_socket() -> None:
    address = address_of(Backend.echo())
    gc.collect()
    with socket.create_server(address):
        pass


def test_a_backend_runs_once() -> None:
    backend = Backend.named("green")
    with serve(fallback_tcp=backend) as proxy:
        assert proxy.ask(b"hello") == b"green"
    with (
        pytest.raises(RuntimeError, match=f'<Backend "green" {backend}> has ended'),
        serve(fallback_tcp=backend),
    ):
        pass
