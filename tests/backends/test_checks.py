"""Each kind of health check, against servers that are well and against servers that are not."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rcode
import pytest
import uvloop

from refractium import Endpoint, Transport
from refractium.addresses.address import Address
from refractium.backends import checker as checker_module
from refractium.backends import checks
from refractium.backends.backend import Backend
from refractium.backends.checker import Checker
from refractium.backends.checks import CHECKS, HexBytes
from refractium.backends.health_settings import Health
from refractium.backends.state import BackendState
from refractium.contract import HealthCheck, NoSettings, problems_of_health_check
from refractium.guard.faults import Faults
from refractium.sockets.descriptors import LOCAL_ERRORS
from refractium.wire import proxy_protocol
from support.backends import Backend as Server
from support.backends import FullUnixQueue, hanging, refusing
from support.clients import receive, reset
from support.datagrams import UdpBackend
from support.lateness import fair_seconds_since
from support.proxy import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from refractium.settings import ProxyVersion


@pytest.fixture(autouse=True)
def a_late_check_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "_GRACE", 10.0)


LOOPS = pytest.mark.parametrize(
    "loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"]
)


async def check_once(backend: Backend, transport: Transport = Transport.TCP) -> None:
    checker = Checker(transport, [backend])
    await checker.start()
    await checker.stop()


def ask(
    address: str,
    kind: str = "tcp",
    *,
    transport: Transport = Transport.TCP,
    timeout_ms: int = 2_000,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    **options: object,
) -> str:
    """Run one check; return ``up``, ``unknown``, or the reason why the backend is down."""
    health = Health(kind=CHECKS[kind], options=options, timeout_ms=timeout_ms)
    state = BackendState(Address.parse(address), health)
    backend = Backend(state.address, state=state)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(check_once(backend, transport))
    return state.reason or str(state.availability)


def answering(*answers: bytes) -> Callable[[socket.socket], bytes]:
    """Return a handler that reads one request, then sends these answers piece by piece."""

    def handle(sock: socket.socket) -> bytes:
        sock.settimeout(5)
        request = sock.recv(4096)
        for answer in answers:
            sock.sendall(answer)
        return request

    return handle


def saying(data: bytes) -> Callable[[socket.socket], None]:
    """Return a handler that sends these bytes at once, and then waits until the other side ends the
    connection."""

    def handle(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.recv(1)

    return handle


def resetting(sock: socket.socket) -> None:
    """Read one byte and reset the connection."""
    sock.recv(1)
    reset(sock)


# tcp


@LOOPS
def test_a_backend_that_accepts_a_connection_is_up(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    with Server(saying(b"")) as server, Server(saying(b""), path=tmp_path / "socket") as unix:
        assert ask(server.address, loop=loop) == "up"
        assert ask(unix.address, loop=loop) == "up"


@LOOPS
def test_a_backend_that_refuses_a_connection_is_down(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    with refusing() as address:
        assert ask(address, loop=loop) == "tcp check: Connection refused"
    assert ask(f"unix:{tmp_path}/none", loop=loop) == "tcp check: No such file or directory"


@LOOPS
def test_a_backend_that_hangs_is_down_after_the_timeout(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with hanging() as address:
        assert ask(address, timeout_ms=50, loop=loop) == "tcp check: no answer within 50 ms"


def test_a_unix_socket_whose_queue_is_full_is_busy_and_not_down(tmp_path: Path) -> None:
    with FullUnixQueue(tmp_path / "full") as full:
        assert ask(full.address) == "unknown"


@pytest.mark.parametrize("number", sorted(LOCAL_ERRORS))
def test_a_shortage_of_this_machine_leaves_the_state_of_a_backend_unknown(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "local trouble")

    with Server(saying(b"")) as server:
        address = server.address
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", fail)
            patch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", fail)
            assert ask(address, loop=asyncio.new_event_loop) == "unknown"
        assert ask(address) == "up"


@pytest.mark.parametrize("kind", ["tcp", "http"])
def test_a_self_connection_counts_as_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    connect = asyncio.selector_events.BaseSelectorEventLoop.sock_connect

    async def from_the_same_port(self: Any, sock: socket.socket, address: tuple[str, int]) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        await connect(self, sock, address)
        assert sock.getsockname() == sock.getpeername()

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_connect", from_the_same_port)
    assert ask(f"127.0.0.1:{port}", kind, loop=asyncio.new_event_loop) == f"{kind} check: Connection refused"


# send_expect


@LOOPS
def test_a_greeting_that_a_server_sends_unasked_can_be_expected(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with Server(saying(b"SSH-2.0-x\r\n")) as server:
        assert ask(server.address, "send_expect", loop=loop, expect="SSH-2.0-") == "up"
        assert ask(server.address, "send_expect", loop=loop, expect={"hex": "53 53 48"}) == "up"


@pytest.mark.parametrize(
    ("send", "request_"), [("PING\\x00", b"PING\0"), ({"hex": "ff 00"}, b"\xff\0"), ("é", b"\xe9")]
)
def test_send_and_expect_may_be_any_bytes(send: object, request_: bytes) -> None:
    with Server(answering(b"PO", b"NG\xff!")) as server:
        assert ask(server.address, "send_expect", send=send, expect="PONG\\xff") == "up"
        assert server.result() == request_


def test_an_unexpected_answer_and_no_answer_mean_down() -> None:
    with Server(answering(b"-LOADING\r\n")) as server:
        found = ask(server.address, "send_expect", send="PING", expect="+PONG")
        assert found == "send_expect check: the answer lacks the expected bytes"
    with Server(answering()) as server:
        found = ask(server.address, "send_expect", send="PING", expect="+PONG")
        assert found == "send_expect check: the connection ended before an answer"
    with Server(saying(b"hello")) as server:
        found = ask(server.address, "send_expect", timeout_ms=50, expect="+PONG")
        assert found == "send_expect check: no answer within 50 ms"
    with Server(resetting) as server:
        found = ask(server.address, "send_expect", send="P", expect="+PONG")
        assert found == "send_expect check: Connection reset by peer"


def test_an_endless_answer_is_read_up_to_a_bound() -> None:
    def flood(sock: socket.socket) -> None:
        while True:
            sock.sendall(bytes(65_536))

    with Server(flood) as server:
        found = ask(server.address, "send_expect", expect="never")
        assert found == "send_expect check: the answer lacks the expected bytes"


@LOOPS
def test_send_expect_works_over_udp(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with UdpBackend(lambda data: [b"other", b"re:" + data]) as server:
        options: dict[str, Any] = {"transport": Transport.UDP, "loop": loop, "timeout_ms": 2_000}
        assert ask(server.address, "send_expect", send="ping", expect="re:ping", **options) == "up"
        found = ask(server.address, "send_expect", send="ping", expect="pong", **options)
        assert found == "send_expect check: no answer within 2000 ms"
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    found = ask(f"127.0.0.1:{port}", "send_expect", send="ping", expect="pong", **options)
    assert found == "send_expect check: Connection refused"


# http


@contextlib.contextmanager
def web() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    """Run a server whose paths name the status of its answers; yield its address, requested paths and
    hosts."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Host"]))
            self.send_response(int(self.path.strip("/") or 204))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@LOOPS
def test_the_status_decides_whether_a_web_server_is_up(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with web() as (address, asked):
        assert ask(address, "http", loop=loop) == "up"
        assert ask(address, "http", path="/302", loop=loop) == "up"
        assert ask(address, "http", path="/404", loop=loop) == "http check: status 404"
        assert ask(address, "http", path="/503", status=503, host="www.example", loop=loop) == "up"
        assert ask(address, "http", path="/200", status=[204, 201], loop=loop) == "http check: status 200"
        assert asked[0] == ("/", address)
        assert asked[3] == ("/503", "www.example")


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ((b"HTTP/1.0 200\r\n",), "up"),
        ((b"HTTP/1.1 200 \r\n",), "up"),
        ((b"HT", b"TP/1.1 2", b"00 OK\r\n"), "up"),
        ((b"HTTP/1.1 200 OK",), "http check: the answer is not HTTP/1"),
        ((b"HTTP/1.1 20 OK\r\n",), "http check: the answer is not HTTP/1"),
        ((b"SSH-2.0-x\r\n",), "http check: the answer is not HTTP/1"),
        ((b"x" * 9_000,), "http check: the answer is not HTTP/1"),
        ((), "http check: the connection ended before an answer"),
    ],
)
def test_an_answer_without_a_status_line_means_down(answers: tuple[bytes, ...], found: str) -> None:
    with Server(answering(*answers)) as server:
        assert ask(server.address, "http") == found


def test_the_host_of_a_request_to_a_unix_socket_is_localhost(tmp_path: Path) -> None:
    with Server(answering(b"HTTP/1.1 200 OK\r\n\r\n"), path=tmp_path / "web") as server:
        assert ask(server.address, "http", path="/x?y=1") == "up"
        lines = server.result().split(b"\r\n")
        assert lines[:2] == [b"GET /x?y=1 HTTP/1.1", b"Host: localhost"]
        assert b"Connection: close" in lines


# dns


def name_server(
    rcode: dns.rcode.Rcode, *, noise: list[bytes] | None = None
) -> Callable[[bytes], list[bytes]]:
    def answer(data: bytes) -> list[bytes]:
        reply = dns.message.make_response(dns.message.from_wire(data))
        reply.set_rcode(rcode)
        return [*(noise or []), reply.to_wire()]

    return answer


@LOOPS
def test_a_name_server_is_asked_what_was_configured(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    asked = []

    def answer(data: bytes) -> list[bytes]:
        asked.append(dns.message.from_wire(data).question[0].to_text())
        return name_server(dns.rcode.NOERROR)(data)

    with UdpBackend(answer) as server:
        options: dict[str, Any] = {"transport": Transport.UDP, "loop": loop}
        assert ask(server.address, "dns", **options) == "up"
        assert ask(server.address, "dns", query="www.Example.org", type="AAAA", **options) == "up"
        assert asked == [". IN NS", "www.Example.org. IN AAAA"]


@pytest.mark.parametrize(
    ("rcode", "found"),
    [
        (dns.rcode.NOERROR, "up"),
        (dns.rcode.NXDOMAIN, "up"),
        (dns.rcode.REFUSED, "up"),
        (dns.rcode.SERVFAIL, "dns check: SERVFAIL"),
    ],
)
def test_any_response_code_except_servfail_means_up(rcode: dns.rcode.Rcode, found: str) -> None:
    with UdpBackend(name_server(rcode)) as server:
        assert ask(server.address, "dns", transport=Transport.UDP) == found


def test_datagrams_that_do_not_answer_the_question_are_ignored() -> None:
    noise = [b"", b"x", bytes(12), b"\0\0\x80\0" + bytes(8)]
    with UdpBackend(name_server(dns.rcode.NOERROR, noise=noise)) as server:
        assert ask(server.address, "dns", transport=Transport.UDP) == "up"
    with UdpBackend(lambda data: [data]) as server:  # a query is not an answer to itself
        found = ask(server.address, "dns", transport=Transport.UDP, timeout_ms=50)
        assert found == "dns check: no answer within 50 ms"


def test_a_query_over_tcp_begins_with_its_length() -> None:
    def answer(*, cut: int | None = None, id_: bytes | None = None) -> Callable[[socket.socket], None]:
        def handle(sock: socket.socket) -> None:
            query = receive(sock, int.from_bytes(receive(sock, 2), "big"))
            (reply,) = name_server(dns.rcode.NOERROR)(query)
            reply = (id_ or reply[:2]) + reply[2:]
            sock.sendall((len(reply).to_bytes(2, "big") + reply)[:cut])

        return handle

    with Server(answer()) as server:
        assert ask(server.address, "dns") == "up"
    with Server(answer(cut=9)) as server:
        assert ask(server.address, "dns") == "dns check: the connection ended before an answer"
    with Server(saying(b"\0\x0cHTTP/1.1 400")) as server:
        assert ask(server.address, "dns") == "dns check: the answer is not DNS"


# Settings


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("send_expect", {"expect": ""}, "expect"),
        ("send_expect", {"expect": HexBytes("")}, "expect"),
        ("send_expect", {"expect": HexBytes("0")}, "expect"),
        ("send_expect", {"expect": "a", "send": "€"}, "send"),
        ("http", {"path": "x"}, "path"),
        ("http", {"path": "/a b"}, "path"),
        ("http", {"path": "/\r\nX: y"}, "path"),
        ("http", {"path": "/\n"}, "path"),
        ("http", {"host": "a\r\nb"}, "host"),
        ("http", {"status": 99}, "status"),
        ("http", {"status": (200, 600)}, "status"),
        ("dns", {"query": ""}, "query"),
        ("dns", {"query": "a..b"}, "query"),
        ("dns", {"query": "a" * 64}, "query"),
        ("dns", {"query": ".".join(["a" * 63] * 4)}, "query"),
        ("dns", {"query": "bücher.example"}, "query"),
    ],
)
def test_settings_that_cannot_be_sent_are_refused_with_their_key(
    kind: str, options: dict[str, Any], key: str
) -> None:
    check = CHECKS[kind]
    assert [where for where, _ in check.problems(check.settings(**options))] == [key]


def test_a_query_may_have_the_longest_allowed_name() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert list(CHECKS["dns"].problems(checks.DnsSettings(query=longest))) == []
    (question,) = dns.message.from_wire(checks._query(checks.DnsSettings(query=longest))).question
    assert question.name.to_text() == longest + "."


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_built_in_check_fulfils_the_contract(check: HealthCheck[Any]) -> None:
    assert list(problems_of_health_check(check)) == []
    assert check.summary


# The connection of an endpoint, for checks of plugins


def endpoint_of(
    address: str, version: ProxyVersion | None = None, transport: Transport = Transport.TCP
) -> Endpoint:
    family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
    host, _, port = address.removeprefix("unix:").rpartition(":")
    target: Any = (family, address.removeprefix("unix:") if family == socket.AF_UNIX else (host, int(port)))
    preface = proxy_protocol.build(version, transport, None, None, {}) if version else b""
    return Endpoint(transport, target, preface)


async def say_and_hear(endpoint: Endpoint) -> bytes:
    reader, writer = await endpoint.connect()
    writer.write(b"hello")
    heard = await reader.read()
    writer.close()
    await writer.wait_closed()
    return heard


def read_all_then_answer(sock: socket.socket) -> bytes:
    """Read until the greeting of the test has arrived, and return all bytes."""
    got = b""
    while not got.endswith(b"hello"):
        got += sock.recv(4096)
    sock.sendall(b"220 well")
    return got


@LOOPS
@pytest.mark.parametrize("path", ["tcp", "unix"])
@pytest.mark.parametrize("version", [None, "v1", "v2"])
def test_an_endpoint_connects_over_each_path_and_sends_the_header_first(
    loop: Callable[[], asyncio.AbstractEventLoop], path: str, version: ProxyVersion | None, tmp_path: Path
) -> None:
    with (
        Server(read_all_then_answer, path=tmp_path / "socket" if path == "unix" else None) as server,
        asyncio.Runner(loop_factory=loop) as runner,
    ):
        endpoint = endpoint_of(server.address, version)
        assert runner.run(say_and_hear(endpoint)) == b"220 well"
        assert server.results.get(timeout=5) == endpoint.preface + b"hello"


@LOOPS
def test_an_endpoint_that_cannot_be_reached_raises_the_error_of_the_system(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    with refusing() as address, asyncio.Runner(loop_factory=loop) as runner:
        with pytest.raises(ConnectionRefusedError):
            runner.run(say_and_hear(endpoint_of(address)))
        with pytest.raises(FileNotFoundError):
            runner.run(say_and_hear(endpoint_of(f"unix:{tmp_path / 'none'}")))
        with pytest.raises(ValueError, match="not UDP"):
            runner.run(say_and_hear(endpoint_of(address, transport=Transport.UDP)))


@LOOPS
def test_a_cancelled_connect_leaves_no_socket_open(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def connect_in_vain(address: str) -> None:
        before = open_descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await endpoint_of(address).connect()
        assert open_descriptors() == before

    with hanging() as address, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(connect_in_vain(address))


# Checks of plugins


class Odd(HealthCheck[NoSettings]):
    name = "odd"
    settings = NoSettings

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del endpoint, settings, timeout
        if self.error is not None:
            raise self.error
        return None


def ask_odd(error: BaseException | None, *targets: str) -> str:
    state = BackendState(Address.parse("some.name:80"), Health(kind=Odd(error)))
    backend = Backend(state.address, state=state)
    backend.socket_addresses = tuple((socket.AF_INET, (target, 80)) for target in targets)

    asyncio.run(check_once(backend))
    return state.reason or str(state.availability)


def test_a_check_that_raises_counts_as_failed_and_checks_go_on() -> None:
    assert ask_odd(ValueError("boom"), "127.0.0.1") == "odd check: ValueError: boom"
    assert ask_odd(None, "127.0.0.1") == "up"


def test_a_check_that_never_ends_delays_the_start_only_by_its_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checker_module, "_GRACE", 0.05)

    class Stubborn(Odd):
        async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
            del endpoint, settings, timeout
            while not may_end.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await may_end.wait()
            return None

    async def main() -> None:
        state = BackendState(Address.parse("some.name:80"), Health(kind=Stubborn(None), timeout_ms=50))
        backend = Backend(state.address, state=state)
        backend.socket_addresses = ((socket.AF_INET, ("127.0.0.1", 80)),)
        checker = Checker(Transport.TCP, [backend])
        begun = time.monotonic()
        await checker.start()
        assert fair_seconds_since(begun) < 10
        assert (state.availability, state.is_up) == ("unknown", True)
        may_end.set()
        await checker.stop()

    may_end = asyncio.Event()
    asyncio.run(main())


def test_checks_that_start_at_the_same_time_spread_out() -> None:
    begun: dict[str, list[float]] = {}
    all_often = asyncio.Event()

    class Noting(Odd):
        async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
            del settings, timeout
            begun.setdefault(str(endpoint.target[1][0]), []).append(time.monotonic())
            if len(begun) == 20 and all(len(times) > 3 for times in begun.values()):
                all_often.set()
            return None

    async def main() -> None:
        backends = []
        for number in range(1, 21):
            state = BackendState(
                Address(f"127.0.0.{number}", 80), Health(kind=Noting(None), interval_ms=1000)
            )
            backends.append(Backend(state.address, state=state))
            backends[-1].socket_addresses = ((socket.AF_INET, (f"127.0.0.{number}", 80)),)
        checker = Checker(Transport.TCP, backends)
        await checker.start()
        await asyncio.wait_for(all_often.wait(), 10)
        await checker.stop()

    asyncio.run(main())
    firsts = [times[0] for times in begun.values()]
    assert max(firsts) - min(firsts) < 0.5  # all checks begin side by side
    # The best of three rounds: after a pause of this machine, all checks that became due begin at once.
    rounds = [[times[at + 1] - times[at] for times in begun.values()] for at in range(3)]
    assert sorted(min(pauses) for pauses in rounds)[1] > 0.89
    assert max(max(pauses) - min(pauses) for pauses in rounds) > 0.03


def test_a_name_without_an_address_is_down() -> None:
    assert ask_odd(None) == "odd check: its name has no address"


def test_a_name_is_up_if_one_of_its_addresses_is_up() -> None:
    with Server(saying(b""), host="127.0.0.2") as server:
        well, not_well = ((socket.AF_INET, (ip, server.port)) for ip in ("127.0.0.2", "127.0.0.3"))
        found = []
        for targets in ((not_well, well), (well, not_well), (not_well,)):
            state = BackendState(Address("some.name", server.port), Health(kind=CHECKS["tcp"]))
            backend = Backend(state.address, state=state)
            backend.socket_addresses = targets
            asyncio.run(check_once(backend))
            found.append(state.is_up)
        assert found == [True, True, False]


class Ending(HealthCheck[NoSettings]):
    """A check that returns a given object, or raises a given exception."""

    name = "ending"
    settings = NoSettings

    def __init__(self, end: Any) -> None:
        self._end = end

    async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del endpoint, settings, timeout
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end  # type: ignore[no-any-return]


def ended(end: Any) -> tuple[str, Faults]:
    """Run one check of `Ending`; return the reason why the backend is down, and the counted faults."""
    return ended_by(Ending(end))


def ended_by(check: Ending) -> tuple[str, Faults]:
    state = BackendState(Address.parse("127.0.0.1:80"), Health(kind=check, timeout_ms=5_000))
    faults = Faults()

    async def main() -> None:
        checker = Checker(Transport.TCP, [Backend(state.address, state=state)], faults)
        await checker.start()
        await checker.stop()

    asyncio.run(main())
    return state.reason, faults


@pytest.mark.parametrize("result", [True, False, 3])
def test_a_result_other_than_a_reason_or_none_is_a_failed_check(result: object) -> None:
    reason, faults = ended(result)
    assert reason == f"ending check: check ending returned {result}, not str or None"
    assert faults["check ending"] >= 1


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseException(),
        MemoryError(),
        RecursionError(),
        KeyError(),
    ],
)
def test_a_check_that_raises_any_exception_is_a_failed_check(error: BaseException) -> None:
    reason, faults = ended(error)
    assert reason.startswith("ending check: ")
    assert type(error).__name__ in reason
    assert faults["check ending"] >= 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "text of an event loop"), "Connection refused"),
        (TimeoutError(), "no answer within 5000 ms"),
        (EOFError("no answer"), "EOFError: no answer"),
        (OSError("the backend says no"), "the backend says no"),
        (ConnectionResetError(), "ConnectionResetError"),
        (OSError("refused", "web.example"), "[Errno refused] web.example"),
        (OSError(["a list"], "odd"), "[Errno ['a list']] odd"),
        (OSError(10**30, "odd"), f"[Errno {10**30}] odd"),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "[Errno -2] Name or service not known",
        ),
        # The number of an error of TLS is no number of the system: 24 would be EMFILE.
        (ssl.SSLError(1, "wrong version number"), "wrong version number"),
        (ssl.SSLError(24, "unknown"), "unknown"),
    ],
)
def test_a_backend_that_is_not_well_is_no_fault_of_its_check(error: Exception, told: str) -> None:
    reason, faults = ended(error)
    assert reason == f"ending check: {told}"
    assert faults == {}


def hostile(*_: object) -> Any:
    raise SystemExit(9)


class HostileText(str):
    __slots__ = ()
    __str__ = __format__ = __len__ = __bool__ = isprintable = hostile


class HostileNumber(int):
    __str__ = __repr__ = __format__ = hostile


class HostileList(list[object]):
    __iter__ = __len__ = hostile


class HostileError(OSError):
    errno = property(hostile)
    __str__ = hostile


@pytest.mark.parametrize("kind", [HostileText, HostileNumber, HostileList, HostileError])
def test_an_object_that_raises_when_it_is_read_is_a_failed_check(kind: Callable[[], object]) -> None:
    # An exception here must never end the task that checks the backend: no more checks would follow.
    reason, faults = ended(kind())
    if kind is HostileText:
        assert (reason, faults) == ("ending check: ", {})
    else:
        assert reason == "ending check: SystemExit: 9"
        assert faults["check ending"] >= 1


def test_a_check_that_cancels_itself_is_a_failed_check() -> None:
    class Cancelling(Ending):
        async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
            del endpoint, settings
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(timeout)
            return None

    reason, faults = ended_by(Cancelling(None))
    assert reason == "ending check: check ending has cancelled itself"
    assert faults["check ending"] >= 1


@LOOPS
def test_a_stop_that_is_cancelled_leaves_behind_a_check_that_ignores_its_cancellation(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    begun = asyncio.Event()

    class Endless(Ending):
        async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
            del endpoint, settings, timeout
            while True:
                begun.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.get_running_loop().create_future()

    async def main() -> None:
        address = Address.parse("127.0.0.1:80")
        state = BackendState(address, Health(kind=Endless(None), timeout_ms=5_000))
        checker = Checker(Transport.TCP, [Backend(address, state=state)])
        starting = asyncio.create_task(checker.start())
        await begun.wait()
        starting.cancel()
        begun.clear()
        stopping = asyncio.create_task(checker.stop())
        await begun.wait()  # the check has ignored its cancellation
        stopping.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())  # would wait for a check that is not left behind


@LOOPS
def test_a_check_that_ignores_its_cancellation_does_not_hold_up_a_stop(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker_module, "_GRACE", 0.05)
    monkeypatch.setattr(checker_module, "_STOPPING", 0.1)

    class Endless(Ending):
        async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
            del endpoint, settings, timeout
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

    state = BackendState(
        Address.parse("127.0.0.1:80"), Health(kind=Endless(None), timeout_ms=50, interval_ms=50)
    )
    faults = Faults()

    async def main() -> None:
        checker = Checker(Transport.TCP, [Backend(state.address, state=state)], faults)
        await checker.start()
        while not faults:  # noqa: ASYNC110 - a second check finds the first check still running
            await asyncio.sleep(0.01)
        await asyncio.wait_for(checker.stop(), 10)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
    assert faults["check ending"] >= 2
    assert state.reason
