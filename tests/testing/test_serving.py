"""`serve` runs a real proxy with real clients and backends."""

from __future__ import annotations

import asyncio
import socket

import pytest

from refractium import (
    NO,
    ConfigError,
    Identification,
    Member,
    ProtocolMatch,
    Route,
    Settings,
    Transport,
    define_hook,
    define_protocol,
)
from refractium.testing import Backend, Proxy, cuts, serve
from testing.knocking import MAGIC, knock, knock_udp

TO_GREEN = MAGIC + b"green.example\n"


def test_a_protocol_alone_stands_for_a_route_to_an_echo_backend() -> None:
    with serve(knock) as proxy:
        assert proxy.ask(MAGIC) == MAGIC
        ended = proxy.ended()
    assert (ended.protocol, ended.route, ended.up, ended.down, ended.ended) == (
        "knock",
        "knock",
        6,
        6,
        "closed",
    )


def test_clients_reach_the_backend_of_their_route_for_every_cut_of_their_bytes() -> None:
    with serve(
        Route(knock, Backend.named("green"), host="green.example"),
        Route(knock, [Member(Backend.named("rest"))]),
        fallback_tcp=Backend.named("none"),
    ) as proxy:
        for pieces in cuts(TO_GREEN):
            assert proxy.ask(*pieces) == b"green"
        assert proxy.ask(MAGIC + b"red.example\n") == b"rest"
        assert proxy.ask(b"GET / HTTP/1.1\r\n\r\n") == b"none"


def test_the_proxy_reads_each_piece_before_the_next_piece_comes() -> None:
    asked = set()

    @define_protocol("noting", max_bytes=99)
    def noting(data: bytes) -> Identification:
        asked.add(len(data))
        return ProtocolMatch() if len(data) == 20 else NO if len(data) > 20 else knock.identify(MAGIC[:1])

    with serve(noting) as proxy:
        assert proxy.ask(*[b"."] * 20) == b"." * 20
    assert asked >= set(range(1, 21))


def test_both_transports_have_one_address() -> None:
    with serve(knock, knock_udp, fallback_udp=Backend.named("none", Transport.UDP)) as proxy:
        assert proxy.ask(MAGIC) == MAGIC
        assert proxy.ask(MAGIC, transport=Transport.UDP) == MAGIC
        assert proxy.ask(b"else", transport=Transport.UDP) == b"none"
        with socket.create_connection(proxy.address) as client:
            assert client.getpeername() == proxy.address


def test_a_client_of_a_proxy_for_udp_alone_uses_udp() -> None:
    with serve(knock_udp) as proxy:
        assert proxy.ask(MAGIC) == MAGIC
        with pytest.raises(ValueError, match="no route for tcp"):
            proxy.ask(MAGIC, transport=Transport.TCP)


def test_a_test_can_hold_both_ends_of_a_connection() -> None:
    backend = Backend()
    with serve(Route(knock, backend)) as proxy:
        client, server = proxy.pair(backend, MAGIC)
        assert server.recv(99) == MAGIC
        server.sendall(b"who is there\n")
        assert client.recv(99) == b"who is there\n"
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        assert proxy.ended().ended == "closed"


def test_a_reset_of_the_proxy_reaches_the_client() -> None:
    with (
        serve(Route(knock, action="reset"), fallback_tcp=Backend.echo()) as proxy,
        pytest.raises(ConnectionResetError),
    ):
        proxy.ask(MAGIC)


def test_a_coroutine_uses_the_same_proxy_without_blocking_its_loop() -> None:
    async def main() -> None:
        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello " + await reader.readline())
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with serve(Route(knock, address), fallback_tcp=Backend.echo()) as proxy:
                assert await proxy.ask(*[MAGIC[:2], MAGIC[2:]]) == b"hello " + MAGIC
                reader, writer = await proxy.connect(MAGIC[:3])
                writer.write(MAGIC[3:])
                assert await reader.read() == b"hello " + MAGIC
                writer.close()
                assert [(await proxy.ended()).route for _ in range(2)] == ["knock"] * 2

    asyncio.run(main())


def test_settings_and_hooks_are_those_of_the_proxy() -> None:
    @define_protocol("first", max_bytes=1, server_first=True)
    def server_first(_data: bytes) -> Identification:
        return NO

    seen = []
    seeing = define_hook("seeing")(lambda _context, _direction, data: seen.append(data))
    settings = Settings(peek_timeout_ms=20)
    with serve(Route(server_first, Backend.named("hi")), hooks=[seeing], settings=settings) as proxy:
        assert proxy.connect().recv(2) == b"hi"
    assert seen == [b"hi"]


# Errors


def notes_of(error: BaseException) -> str:
    return "\n".join(error.__notes__)


def test_the_error_of_a_test_lists_the_sessions_of_the_proxy() -> None:
    with pytest.raises(AssertionError) as raised, serve(knock, fallback_tcp=Backend.named("none")) as proxy:
        assert proxy.ask(b"KNICK") == b"KNICK"
    assert "no protocol: route fallback to 127.0.0.1:" in notes_of(raised.value)
    assert ": 5 bytes in, 4 bytes out: closed" in notes_of(raised.value)


def test_the_error_of_a_coroutine_lists_them_too() -> None:
    async def main() -> None:
        async with serve(knock) as proxy:
            assert await proxy.ask(b"KNICK") == b"KNICK"

    with pytest.raises(AssertionError) as raised:
        asyncio.run(main())
    assert "no protocol: no route: 0 bytes in, 0 bytes out: no route" in notes_of(raised.value)


def test_a_fault_of_a_protocol_fails_the_test() -> None:
    @define_protocol("broken", max_bytes=9)
    def broken(data: bytes) -> Identification:
        raise LookupError(f"no rule for {len(data)} bytes")

    with pytest.raises(AssertionError, match="no rule for 3 bytes") as raised, serve(broken) as proxy:
        assert proxy.ask(b"abc") == b""
    assert "broken: 1 fault" in str(raised.value)


def test_a_fault_of_a_hook_fails_the_test() -> None:
    @define_hook("broken")
    def broken(_context: object, _direction: object, data: bytes) -> None:
        raise LookupError(f"no rule for {len(data)} bytes")

    with (
        pytest.raises(AssertionError, match=r"hook broken: 2 exceptions"),
        serve(knock, hooks=[broken]) as proxy,
    ):
        assert proxy.ask(MAGIC) == MAGIC


def test_bytes_that_a_script_does_not_expect_fail_the_test() -> None:
    backend = Backend.scripted((MAGIC, b"who\n"))
    wrong = r"step 1 of 1: expected b'KNOCK\\n', received b'KNOCX\\n': they differ at byte 4"
    with pytest.raises(AssertionError, match=wrong), serve(fallback_tcp=backend) as proxy:
        assert proxy.ask(b"KNOCX\n") == b""


def test_the_error_of_a_script_is_a_note_if_the_test_fails_itself() -> None:
    backend = Backend.scripted((MAGIC, b"who\n"))
    with pytest.raises(AssertionError) as raised, serve(fallback_tcp=backend) as proxy:
        assert proxy.ask(b"KNOCX\n") == b"who\n"
    assert "they differ at byte 4" in notes_of(raised.value)


def test_an_answer_without_an_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refractium.testing.serving.PATIENCE", 0.2)
    with serve(fallback_tcp=Backend()) as proxy:
        with pytest.raises(TimeoutError, match=r"answer to b'hello' within 0.2 s: received nothing; <Proxy"):
            proxy.ask(b"hello")
        with pytest.raises(TimeoutError, match=r"no session has ended within 0.2 s; 1 sessions are open"):
            proxy.ended()


@pytest.mark.parametrize("is_async", [False, True])
def test_arguments_that_are_not_valid_leave_nothing_open(*, is_async: bool) -> None:
    async def main() -> None:
        async with serve(knock, fallback_tcp="nowhere"):
            pass

    def blocking() -> None:
        with serve(knock, fallback_tcp="nowhere"):
            pass

    with pytest.raises(ConfigError, match="fallback_tcp"):
        asyncio.run(main()) if is_async else blocking()
    with pytest.raises(ValueError, match="needs a route or a fallback"), serve():
        pass


def test_a_backend_that_runs_already_runs_on() -> None:
    def name_from(proxy: Proxy) -> bytes:
        return proxy.ask(MAGIC)

    with Backend.named("green") as backend:
        for _ in range(2):
            with serve(Route(knock, backend)) as proxy:
                assert name_from(proxy) == b"green"
        assert backend.is_running
    assert not backend.is_running
