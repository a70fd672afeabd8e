from __future__ import annotations

import http.client
import time
from contextlib import closing
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.contract import NO, NeedMore, ProtocolMatch
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium_proto_http import Http, HttpSettings, refractium_protocols
from refractium_proto_http.http2 import PREFACE
from support.answers import needs_more
from support.capture import TIMEOUT, first_bytes, is_whole_header_section, run
from support.programs import require_program

if TYPE_CHECKING:
    from refractium.contract import MetadataValue

protocol = Http()


def curl(*options: str) -> bytes:
    """The bytes that curl sends; ``{port}`` in an option stands for the port."""
    program = require_program("curl")

    def fetch(port: int) -> None:
        run(program, "-sq", "--noproxy", "", *(option.replace("{port}", str(port)) for option in options))

    return first_bytes(fetch, is_whole_header_section)


def host_of(data: bytes) -> MetadataValue | None:
    match = assert_identifies(protocol, data)
    assert not match.pending
    return match.metadata.get("host")


@pytest.mark.parametrize(
    ("options", "metadata"),
    [
        (["http://127.0.0.1:{port}/a?b"], {"method": "GET", "path": "/a", "host": "127.0.0.1"}),
        (["-I", "http://localhost:{port}"], {"method": "HEAD", "path": "/", "host": "localhost"}),
        (["-0", "http://127.0.0.1:{port}"], {"method": "GET", "version": "1.0", "host": "127.0.0.1"}),
        (["-d", "x=1", "http://127.0.0.1:{port}"], {"method": "POST", "version": "1.1"}),
        (["-T", __file__, "http://127.0.0.1:{port}/f"], {"method": "PUT", "path": "/f"}),
        (["-X", "PROPFIND", "http://127.0.0.1:{port}"], {"method": "PROPFIND"}),
        (["-X", "BREW", "http://127.0.0.1:{port}"], {"method": "BREW"}),
        (["--http2", "http://127.0.0.1:{port}"], {"method": "GET", "version": "1.1"}),
        (["-H", "Host: WWW.Example.com.:80", "http://127.0.0.1:{port}"], {"host": "www.example.com"}),
        (
            ["-x", "http://127.0.0.1:{port}", "http://Example.org:81/x"],
            {"method": "GET", "path": "http://Example.org:81/x", "host": "example.org"},
        ),
        (
            ["-px", "http://127.0.0.1:{port}", "http://example.org/"],
            {"method": "CONNECT", "path": "example.org:80", "host": "example.org"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_curl_is_recognised(options: list[str], metadata: dict[str, str]) -> None:
    assert_identifies(protocol, curl(*options), metadata=metadata)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/", "/"),
        ("/a;b=c/@me?token=secret", "/a;b=c/@me"),
        ("/a?x=/b@c?token=secret", "/a"),
        ("*", "*"),
        ("?token=secret", None),
        ("http://example.org?token=secret", "http://example.org"),
        ("http://user:secret@example.org/a@b?c", "http://example.org/a@b"),
        ("HTTP://user:se@cret@example.org", "HTTP://example.org"),
        ("user:secret@example.org:80", "example.org:80"),
    ],
)
def test_the_path_contains_neither_the_query_nor_a_password(target: str, path: str | None) -> None:
    match = assert_identifies(protocol, f"GET {target} HTTP/1.1\r\n\r\n".encode())
    assert match.metadata.get("path") == path
    assert "secret" not in repr(match)


def test_http_client_is_recognised() -> None:
    def fetch(port: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)) as connection:
            connection.request("OPTIONS", "*")

    data = first_bytes(fetch, is_whole_header_section)
    assert_identifies(protocol, data, metadata={"method": "OPTIONS", "path": "*", "host": "127.0.0.1"})


@pytest.mark.parametrize(
    "line",
    [
        b"PRI * HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"PUT /x HTTP/1.0\r\n",
        b"PROXY /x HTTP/1.1\r\n",
        b"SSH-2.0-x / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\n",
        b"VERSION-CONTROL /12345678901234 HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
    ],
)
def test_a_request_line_is_recognised_whatever_its_method(line: bytes) -> None:
    assert_identifies(protocol, line)
    assert needs_more(protocol.identify(line[:-1]))


METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "x"]
EMPTY_LINES = [b"\r\n", b"\n", b"\r\n\r\n", b"\n\n", b"\n\r\n\n", b"\r\n" * 100]


@pytest.mark.parametrize("empty_lines", EMPTY_LINES)
def test_empty_lines_may_precede_the_request_line(empty_lines: bytes) -> None:
    data = empty_lines + b"GET /a?token=secret HTTP/1.1\r\nHost: a.example\r\n\r\n"
    line_end = data.index(b" HTTP/1.1\r\n") + len(b" HTTP/1.1\r\n")
    assert all(needs_more(protocol.identify(data[:end])) for end in range(1, line_end))
    metadata = {"method": "GET", "path": "/a", "version": "1.1", "host": "a.example"}
    assert assert_identifies(protocol, data).metadata == metadata


def test_empty_lines_count_towards_the_bound() -> None:
    request = b"GET / HTTP/1.1\r\n"
    assert isinstance(protocol.identify(request.rjust(protocol.max_bytes, b"\n")), ProtocolMatch)
    assert protocol.identify(request.rjust(protocol.max_bytes + 1, b"\n")) == NeedMore(recognised=True)
    assert protocol.identify(b"\n" * protocol.max_bytes) is NO


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a b", "/a b"),
        ("/a  b c ", "/a  b c "),
        ("/ ", "/ "),
        ("/a HTTP/1.1", "/a HTTP/1.1"),
        (" /a", "/a"),
        ("   /a b", "/a b"),
        (" http://a.example/a", "http://a.example/a"),
        ("/a HTTP/1.2 b?token=secret", "/a HTTP/1.2 b"),
        ("/index.php?q=1 UNION SELECT 2", "/index.php"),
        ("http://a.example/a b", "http://a.example/a b"),
        ("HTTPS://user:se cret@a.example/a b", "HTTPS://a.example/a b"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_target_with_spaces_is_http_which_the_backend_refuses(target: str, path: str, method: str) -> None:
    for empty_line, version, line_end in product(["", "\n", "\r\n"], ["1.0", "1.1"], ["\n", "\r\n"]):
        line = f"{empty_line}{method} {target} HTTP/{version}{line_end}".encode()
        assert all(needs_more(protocol.identify(line[:end])) for end in range(1, len(line)))
        match = protocol.identify(line + b"Host: a.example\r\n\r\n")
        assert isinstance(match, ProtocolMatch)
        assert match.metadata["path"] == path
        assert match.metadata["method"] == method
        assert match.metadata["version"] == version
        assert "secret" not in repr(match)
        assert_lawful(protocol, line)


def test_a_request_for_a_path_with_spaces_has_a_host() -> None:
    assert host_of(b"GET /a b HTTP/1.1\r\nHost: a.example\r\n\r\n") == "a.example"
    assert host_of(b"GET http://a.example/x y HTTP/1.1\r\nHost: other\r\n\r\n") == "a.example"


def test_a_host_with_spaces_is_not_a_host() -> None:
    for target in (b"http://a.example /x", b"http:// a.example/x", b"https://a.example b/x"):
        assert host_of(b"GET " + target + b" HTTP/1.1\r\nHost: other\r\n\r\n") is None


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS * RTSP/1.0\r\n",
        b"DESCRIBE rtsp://example.com/a RTSP/2.0\r\n",
        b"REGISTER sip:example.com SIP/2.0\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"GET / HTTP/2.0\r\n",
        b"GET / HTTP/1.2\r\n",
        b"GET / http/1.1\r\n",
        b"GET / HTTP/1.1 \r\n",
        b"GET / HTTP/1.1\rx",
        b"GET /\t HTTP/1.1\r\n",
        b"GET /\x7f HTTP/1.1\r\n",
        b"GET /\r\n",
        b" GET / HTTP/1.1\r\n",
        b"\n\rGET / HTTP/1.1\r\n",
        b"\rGET / HTTP/1.1\r\n",
        b"\r\n GET / HTTP/1.1\r\n",
        b"\r\n" + PREFACE,
        b"\r\nUSER anonymous\r\n",
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c",
        b"GET /a b RTSP/1.0\r\n",
        b"GET /a b SIP/2.0\r\n",
        b"GET /a b\r\n",
        b"GET /a HTTP/1.1 b\r\n",
        b"GET /a\tb c HTTP/1.1\r\n",
        b"GET /a b\x7f HTTP/1.1\r\n",
        b"GET /a b HTTP/1.1\rx",
        b"GET a b HTTP/1.1\r\n",
        b"GET  a HTTP/1.1\r\n",
        b"GET  HTTP/1.1\r\n",
        b"GET   HTTP/1.1\r\n",
        b"GET  httpx://a HTTP/1.1\r\n",
        b"OPTIONS  * HTTP/1.1\r\n",
        b"\r\n\r\nOPTIONS * RTSP/1.0\r\n",
        b"\n\n\r\r\nGET / HTTP/1.1\r\n",
        b"GET ftp://a/b c HTTP/1.1\r\n",
        b"GE(T / HTTP/1.1\r\n",
        b"A" * 21 + b" / HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSN",
        b"USER anonymous\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
def test_bytes_that_are_not_a_request_line_are_rejected(data: bytes) -> None:
    assert_rejects(protocol, data)


@pytest.mark.parametrize(
    ("data", "earliest"),
    [
        (b"OPTIONS * RTSP/1.0\r\n", 11),
        (b"INVITE sip:a@b SIP/2.0\r\n", 16),
        (b"A B C\r\n", 5),
        (b"{", 1),
        (b"\r\r", 2),
        (b"\n\r\n\x00", 4),
        (b"\r\n\r\nINVITE sip:a@b SIP/2.0\r\n", 20),
        (b"GET  x", 6),
        (b"GET  httpx", 10),
    ],
)
def test_the_first_impossible_byte_is_answered_with_no(data: bytes, earliest: int) -> None:
    answers = [protocol.identify(data[:end]) for end in range(1, len(data) + 1)]
    assert answers.index(NO) + 1 == earliest


def test_the_preface_needs_all_of_its_bytes() -> None:
    assert all(needs_more(protocol.identify(PREFACE[:end])) for end in range(1, len(PREFACE)))
    assert_identifies(protocol, PREFACE, metadata={"version": "2"})


@pytest.mark.parametrize(
    ("rest", "host"),
    [
        (b"Host: a.example\r\n", "a.example"),
        (b"host:a.example:8080\r\n", "a.example"),
        (b"X: Host: b\r\nHOST: \t A.Example. \r\n", "a.example"),
        (b"Host: [2001:DB8::1]:443\r\n", "[2001:db8::1]"),
        (b"Host: my_host-1\n", "my_host-1"),
        (b"Host: first\r\nHost: second\r\n", "first"),
        (b"Host:\r\nHost: second\r\n", None),
        (b"Host:\r\n a.example\r\n", "a.example"),
        (b"Host: \r\n\t \r\n  a.example:80\r\n", "a.example"),
        (b"Host:\n a.example\n", "a.example"),
        (b"Host:\r\n \r\nHost: second\r\n", None),
        (b"Host: a.example\r\n b\r\n", "a.example"),
        (b"X: y\r\n Host: folded\r\nHost: a.example\r\n", "a.example"),
        (b"Host: a b\r\n", None),
        (b"Host: a\x1b[2Jb\r\n", None),
        (b"Host: a\rb\r\n", None),
        (b"Host: a\0b\r\n", None),
        (b"Host: \xe9.example\r\n", None),
        (b"Host: a..b\r\n", None),
        (b"Host: a..\r\n", None),
        (b"Host: a:b\r\n", None),
        (b"Host: user@a\r\n", None),
        (b"Host: " + b"a" * 64 + b"\r\n", None),
        (b"Host: " + b".".join([b"a" * 62] * 4) + b"\r\n", ".".join(["a" * 62] * 4)),
        (b"Host: " + b".".join([b"a" * 63] * 4) + b"\r\n", None),
        (b"Hosts: a\r\n", None),
        (b"\r\nHost: in-the-body\r\n", None),
        (b"X: y\n\nHost: in-the-body\n", None),
    ],
)
def test_the_host_is_the_first_host_header_if_it_is_a_valid_name(rest: bytes, host: str | None) -> None:
    assert host_of(b"GET / HTTP/1.1\r\n" + rest + b"\r\n") == host


@pytest.mark.parametrize(
    ("line", "host"),
    [
        (b"GET http://A.Example:81/x HTTP/1.1\r\n", "a.example"),
        (b"GET https://a.example?x HTTP/1.1\r\n", "a.example"),
        (b"GET http://me@a.example/ HTTP/1.1\r\n", None),
        (b"CONNECT A.Example:443 HTTP/1.1\r\n", "a.example"),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n", "[::1]"),
    ],
)
def test_a_host_in_the_target_takes_precedence_over_the_header(line: bytes, host: str | None) -> None:
    match = protocol.identify(line)
    assert isinstance(match, ProtocolMatch)
    assert not match.pending
    assert host_of(line + b"Host: other\r\n\r\n") == host


@pytest.mark.parametrize("fold", [b"\r\n ", b" \n\t", b"\r\n \r\n\t"])
def test_an_empty_host_is_pending_while_its_value_may_follow_in_a_folded_line(fold: bytes) -> None:
    start = b"GET / HTTP/1.1\r\nHost:" + fold
    for end in range(len(b"GET / HTTP/1.1\r\nHost:"), len(start) + 1):
        match = protocol.identify(start[:end])
        assert isinstance(match, ProtocolMatch)
        assert match.pending == {"host"}
        assert "host" not in match.metadata
    assert_identifies(protocol, start + b"a.example\r\n\r\n", metadata={"host": "a.example"})


def test_the_host_is_pending_until_its_line_is_complete() -> None:
    start = b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: a.example\r"
    for end in range(start.index(b"\n") + 1, len(start) + 1):
        match = protocol.identify(start[:end])
        assert isinstance(match, ProtocolMatch)
        assert "host" not in match.metadata
        assert match.pending == {"host"}


def test_the_host_is_not_awaited_beyond_the_bound() -> None:
    data = b"GET / HTTP/1.1\r\nX: ".ljust(protocol.max_bytes, b"x")
    match = protocol.identify(data + b"\r\nHost: late\r\n\r\n")
    assert isinstance(match, ProtocolMatch)
    assert "host" not in match.metadata
    assert match.pending == {"host"}


def test_a_line_longer_than_the_bound_is_recognised_and_never_matches() -> None:
    end = b" HTTP/1.1\r\n"
    longest = b"GET ".ljust(protocol.max_bytes - len(end), b"/") + end
    assert isinstance(protocol.identify(longest), ProtocolMatch)
    assert needs_more(protocol.identify(longest[:-1]))
    longer = longest.replace(b" HTTP", b"/ HTTP")
    for data in (longer[: protocol.max_bytes], longer, longer + b"\r\n"):
        assert protocol.identify(data) == NeedMore(recognised=True)


@pytest.mark.parametrize(
    ("start", "recognised"),
    [
        (b"G", False),
        (b"GET", False),
        (b"GET ", False),
        (b"GET /", True),
        (b"POST /a HTT", True),
        (b"GET https://a.example", True),
        (b"BREW /pot", False),
        (b"SUBSCRIBE a", False),
        (PREFACE[:20], False),
    ],
)
def test_the_start_of_a_common_request_is_recognised(start: bytes, *, recognised: bool) -> None:
    answer = protocol.identify(start)
    assert needs_more(answer)
    assert (isinstance(answer, NeedMore) and answer.recognised) is recognised


@pytest.mark.parametrize("size", [1024, 8192, 131_072])
def test_the_size_of_the_header_is_a_setting(size: int) -> None:
    configured = protocol.with_settings(HttpSettings(max_header_bytes=size))
    assert configured.max_bytes == size
    start, end = b"GET / HTTP/1.1\r\nX: ", b"\r\nHost: a.example\r\n"
    within = configured.identify(start.ljust(size - len(end), b"x") + end)
    assert isinstance(within, ProtocolMatch)
    assert within.metadata["host"] == "a.example"
    beyond = configured.identify(start.ljust(size - len(end) + 1, b"x") + end)
    assert isinstance(beyond, ProtocolMatch)
    assert beyond.pending == {"host"}


def test_a_long_line_that_comes_byte_by_byte_is_cheap() -> None:
    for data in (
        *(b"GET ".ljust(8192, b"/"), b"\nGET ".ljust(8192, b"/"), b"\nGET /" + b" HTTP/1." * 1023),
        *(b"\r\n" * 4096, b"GET ".ljust(8192, b" ")),
    ):
        start = time.process_time()
        answers = {protocol.identify(data[:end]) for end in range(1, len(data))}
        assert all(map(needs_more, answers))
        assert time.process_time() - start < 2


REQUESTS = st.lists(
    st.sampled_from(
        [
            *(b"GET", b"PRI", b"CONNECT", b" ", b"/", b"*", b"http://a", b"a:1", b" HTTP/1.1", b" HTTP/2.0"),
            *(b"\r", b"\n", b"\r\n", b"Host:", b"host: a.b", b"SM", b"\x00", b"\xff", b":", b"x"),
        ]
    ),
    max_size=20,
).map(b"".join)


@settings(deadline=None)
@given(
    st.binary(max_size=100)
    | REQUESTS
    | REQUESTS.map(lambda rest: b"GET / HTTP/1.1\r\n" + rest)
    | REQUESTS.map(lambda rest: b"\r\nGET /" + rest)
    | REQUESTS.map(lambda rest: b"PUT " + rest)
    | st.binary(max_size=60).map(lambda rest: b"CONNECT a HTTP/1.0\n" + rest)
)
def test_any_bytes_keep_the_laws(data: bytes) -> None:
    assert_lawful(protocol, data)


def test_the_plugin_offers_http_over_tcp() -> None:
    assert [repr(one) for one in refractium_protocols()] == ["<Http http/tcp>"]
