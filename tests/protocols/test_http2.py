"""The host of HTTP/2 with prior knowledge, which a HEADERS frame carries (RFC 9113 section 8.3.1)."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import httpx
import pytest
from hpack import Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, ProtocolMatch
from refractium.testing import assert_lawful
from refractium_proto_http import Http
from refractium_proto_http.http2 import MAX_FRAMES, PREFACE
from support.capture import TIMEOUT, first_bytes, run
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterable

protocol = Http()

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM, END_HEADERS, PADDED, PRIORITY_FLAG = 1, 4, 8, 0x20
AUTHORITY, HOST = ":authority", "host"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def block(*headers: tuple[str, str], huffman: bool = True) -> bytes:
    """Return the headers of a GET request, encoded."""
    pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/?token=secret")]
    return Encoder().encode([*pseudo, *headers], huffman=huffman)


def request(*headers: tuple[str, str], huffman: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*headers, huffman=huffman))


SETTINGS_FRAME = frame(SETTINGS, payload=bytes.fromhex("0003 00000064 0004 00100000"))
START = PREFACE + SETTINGS_FRAME
BLOCK = block((AUTHORITY, "a.example"))


def assert_host(data: bytes, host: str | None) -> None:
    """Assert that the protocol knows the whole metadata, and never knew another host before."""
    match = protocol.identify(data)
    assert isinstance(match, ProtocolMatch)
    assert match.metadata == ({"version": "2"} if host is None else {"version": "2", "host": host})
    assert not match.pending
    assert_lawful(protocol, data[:300])


def assert_pending(data: bytes) -> None:
    match = protocol.identify(data)
    assert isinstance(match, ProtocolMatch)
    assert match.metadata == {"version": "2"}
    assert match.pending == {"host"}


def assert_always_pending(data: bytes) -> None:
    assert_pending(data)
    match = protocol.identify(data)
    assert isinstance(match, ProtocolMatch)
    assert match.pending_at > protocol.max_bytes


def has_host(data: bytes) -> bool:
    match = protocol.identify(data)
    return isinstance(match, ProtocolMatch) and "host" in match.metadata


@pytest.mark.parametrize(
    ("options", "host"),
    [
        (["http://localhost:{port}"], "localhost"),
        (["http://127.0.0.1:{port}/a?b"], "127.0.0.1"),
        (["-H", "Host: WWW.Example.com.:80", "http://127.0.0.1:{port}"], "www.example.com"),
        (["-d", "x=1", "-H", "Host: [::1]", "http://127.0.0.1:{port}"], "[::1]"),
        (["-H", "Cookie: " + "x" * 3000, "http://127.0.0.1:{port}"], "127.0.0.1"),
    ],
)
def test_curl_names_its_host(options: list[str], host: str) -> None:
    program = require_program("curl")

    def fetch(port: int) -> None:
        url = [option.replace("{port}", str(port)) for option in options]
        run(program, "-sq", "--noproxy", "", "--http2-prior-knowledge", *url)

    assert_host(first_bytes(fetch, has_host), host)


def test_httpx_names_its_host() -> None:
    def fetch(port: int) -> None:
        with suppress(httpx.HTTPError), httpx.Client(http1=False, http2=True, trust_env=False) as client:
            client.get(f"http://127.0.0.1:{port}/", headers={"Host": "a.example"}, timeout=TIMEOUT)

    assert_host(first_bytes(fetch, has_host), "a.example")


@pytest.mark.parametrize("name", [AUTHORITY, HOST])
def test_a_connection_of_h2_names_its_host(name: str) -> None:
    configuration = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(configuration)
    connection.initiate_connection()
    connection.increment_flow_control_window(1 << 20)
    start = connection.data_to_send()
    assert_pending(start)
    pseudo = [(":method", "POST"), (":scheme", "http"), (":path", "/")]
    connection.send_headers(1, [*pseudo, (name, "a.example:8080"), ("x", "y" * 2000)], priority_weight=16)
    first = connection.data_to_send()
    assert_pending(start + first[:-1])
    assert_host(start + first, "a.example")
    connection.send_data(1, b"body")
    connection.send_headers(3, [*pseudo, (name, "other.example")])
    assert_host(start + first + connection.data_to_send(), "a.example")


@pytest.mark.parametrize(
    ("headers", "host"),
    [
        ([(AUTHORITY, "a.example")], "a.example"),
        ([(AUTHORITY, "A.Example.:81")], "a.example"),
        ([(AUTHORITY, "[2001:DB8::1]:443")], "[2001:db8::1]"),
        ([(HOST, "b.example")], "b.example"),
        ([("cookie", "c=d"), (HOST, "b.example:80")], "b.example"),
        ([(AUTHORITY, "a.example"), (HOST, "a.example")], "a.example"),
        ([(AUTHORITY, "a.example"), (HOST, "b.example")], "a.example"),
        ([(AUTHORITY, ""), (HOST, "b.example")], None),
        ([(AUTHORITY, "a.example"), (AUTHORITY, "b.example")], None),
        ([(HOST, "a.example"), (HOST, "b.example")], None),
        ([(AUTHORITY, "user@a.example")], None),
        ([(AUTHORITY, "a b")], None),
        ([(AUTHORITY, "a\x1b[2Jb")], None),
        ([(AUTHORITY, "\xe9.example")], None),
        ([("Host", "a.example")], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("huffman", [False, True])
def test_the_host_is_the_authority_or_else_the_header(
    headers: list[tuple[str, str]], host: str | None, *, huffman: bool
) -> None:
    assert_host(START + request(*headers, huffman=huffman), host)


FRAMES_BEFORE = {
    "nothing, not even settings": b"",
    "settings": SETTINGS_FRAME,
    "a window": SETTINGS_FRAME + frame(WINDOW_UPDATE, payload=b"\0\x0f\0\1"),
    "the tree of priorities of old browsers": SETTINGS_FRAME
    + b"".join(frame(PRIORITY, 0, stream, bytes(4) + b"\xc8") for stream in (3, 5, 7, 9, 11)),
    "a priority update": SETTINGS_FRAME + frame(0x10, payload=b"\0\0\0\1u=3"),
    "a ping and an acknowledgement": SETTINGS_FRAME + frame(PING, payload=bytes(8)) + frame(SETTINGS, 1),
    "GREASE": SETTINGS_FRAME + frame(0x0B, 0xFF, 0x7FFFFFFF, b"?" * 300) + frame(0xFF),
    "as many frames as are read": SETTINGS_FRAME * (MAX_FRAMES - 1),
}


@pytest.mark.parametrize("before", FRAMES_BEFORE.values(), ids=FRAMES_BEFORE)
def test_the_host_is_pending_until_the_headers_are_complete(before: bytes) -> None:
    data = PREFACE + before + request((AUTHORITY, "a.example"))
    assert all(protocol.identify(data[:end]) is NEED_MORE for end in range(1, len(PREFACE)))
    for end in range(len(PREFACE), len(data)):
        assert_pending(data[:end])
    assert_host(data, "a.example")
    assert_host(data + request((AUTHORITY, "other.example")) + b"anything", "a.example")


@pytest.mark.parametrize("size", [1, 2, 7, len(BLOCK) - 1, len(BLOCK)])
@pytest.mark.parametrize(
    "before", [b"", b"\0\0\0\0\xc8", b"\3\x80\0\0\0\xff"], ids=["", "priority", "padding"]
)
def test_a_block_in_several_frames_is_joined(size: int, before: bytes) -> None:
    flags = {0: 0, 5: PRIORITY_FLAG, 6: PRIORITY_FLAG | PADDED}[len(before)]
    padding = bytes(3 if flags & PADDED else 0)
    parts = [BLOCK[at : at + size] for at in range(0, len(BLOCK), size)]
    data = START + frame(HEADERS, flags, 5, before + parts[0] + padding)
    for part in [*parts[1:], b""]:
        data += frame(CONTINUATION, 0, 5, part)
    for end in range(len(START), len(data) + 1):
        assert_pending(data[:end])
    assert_host(data + frame(CONTINUATION, END_HEADERS, 5), "a.example")


@pytest.mark.parametrize(
    ("flags", "payload", "host"),
    [
        (PADDED, b"\0" + BLOCK, "a.example"),
        (PADDED, b"\xff" + BLOCK + bytes(255), "a.example"),
        (PRIORITY_FLAG, b"\xff\xff\xff\xff\0" + BLOCK, "a.example"),
        (PADDED | PRIORITY_FLAG, b"\2" + bytes(5) + BLOCK + b"xx", "a.example"),
        (PADDED, b"", None),
        (PADDED, b"\1", None),
        (PADDED, b"\xff" + BLOCK, None),
        (PRIORITY_FLAG, b"", None),
        (PRIORITY_FLAG, bytes(4), None),
        (PRIORITY_FLAG, bytes(5), None),
        (PADDED | PRIORITY_FLAG, b"\1" + bytes(5), None),
    ],
)
def test_padding_and_priority_are_not_part_of_the_block(flags: int, payload: bytes, host: str | None) -> None:
    assert_host(START + frame(HEADERS, END_HEADERS | flags, 1, payload), host)


def test_the_reserved_bit_of_a_stream_is_ignored() -> None:
    assert_host(START + frame(HEADERS, END_HEADERS, 0x80000001, BLOCK), "a.example")


LITERAL = b"\x40\1x\x7f\xb1\x0e" + b"y" * 2000  # stored in the dynamic table, whose last entry has index 62
BROKEN = {
    "data first": frame(DATA, 0, 1, b"x"),
    "a reset first": frame(RST_STREAM, 0, 1, bytes(4)),
    "a push from a client": frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + BLOCK),
    "a continuation first": frame(CONTINUATION, END_HEADERS, 1, BLOCK),
    "headers of stream 0": frame(HEADERS, END_HEADERS, 0, BLOCK),
    "headers of an even stream": frame(HEADERS, END_HEADERS, 2, BLOCK),
    "a frame that is too large": frame(SETTINGS, payload=bytes(16385)),
    "another frame inside of the block": frame(HEADERS, 0, 1, BLOCK[:5]) + SETTINGS_FRAME,
    "a continuation of another stream": frame(HEADERS, 0, 1, BLOCK[:5])
    + frame(CONTINUATION, END_HEADERS, 3, BLOCK[5:]),
    "another request inside of the block": frame(HEADERS, 0, 1, BLOCK[:5])
    + frame(HEADERS, END_HEADERS, 1, BLOCK[5:]),
    "an empty block": frame(HEADERS, END_HEADERS, 1),
    "a truncated block": frame(HEADERS, END_HEADERS, 1, BLOCK[:-1]),
    "an index outside of the table": frame(HEADERS, END_HEADERS, 1, BLOCK + b"\xff\x7f"),
    "index 0": frame(HEADERS, END_HEADERS, 1, b"\x80" + BLOCK),
    "an endless number": frame(HEADERS, END_HEADERS, 1, BLOCK + b"\xff" * 4000),
    "bad Huffman code": frame(HEADERS, END_HEADERS, 1, BLOCK + b"\0\x81\xff\0"),
    "a table that is too large": frame(HEADERS, END_HEADERS, 1, b"\x3f\xff\xff\x03" + BLOCK),
    "three table sizes": frame(HEADERS, END_HEADERS, 1, b"\x20\x3f\xe1\x1f\x3e" + BLOCK),
    "thousands of table sizes": frame(HEADERS, END_HEADERS, 1, b"\x20" * 7000 + BLOCK),
}
TOO_LARGE = {
    "a bomb of references": frame(HEADERS, END_HEADERS, 1, BLOCK + LITERAL + b"\xbe" * 4000),
    "a bomb of static headers": frame(HEADERS, END_HEADERS, 1, BLOCK + b"\x82" * 7000),
}


@pytest.mark.parametrize("frames", BROKEN.values(), ids=BROKEN)
def test_a_host_that_cannot_be_read_is_unknown_and_not_pending(frames: bytes) -> None:
    for data in (START + frames, START + frames + request((AUTHORITY, "late.example"))):
        match = protocol.identify(data)
        assert isinstance(match, ProtocolMatch)
        assert match.metadata == {"version": "2"}
        assert not match.pending
    assert_lawful(protocol, (START + frames)[:400])


@pytest.mark.parametrize("frames", TOO_LARGE.values(), ids=TOO_LARGE)
def test_the_host_of_headers_that_are_too_large_stays_pending(frames: bytes) -> None:
    assert_always_pending(START + frames)
    assert_always_pending(START + frames + request((AUTHORITY, "late.example")))
    assert_lawful(protocol, (START + frames)[:400])


@pytest.mark.parametrize("max_bytes", [1024, 65_536, 131_072])
@pytest.mark.parametrize("is_host_first", [True, False])
def test_a_header_that_fills_the_bytes_hides_no_host(max_bytes: int, *, is_host_first: bool) -> None:
    reading = Http(max_bytes)
    name, filling = (AUTHORITY, "a.example"), ("x", "a" * ((max_bytes - 200) * 8 // 5))  # five bits each
    encoded = block(*([name, filling] if is_host_first else [filling, name]))
    pieces = [encoded[at : at + 16_384] for at in range(0, len(encoded), 16_384)]
    first, *others = pieces
    data = START + frame(HEADERS, END_STREAM | (0 if others else END_HEADERS), 1, first)
    for piece in others:
        data += frame(CONTINUATION, END_HEADERS if piece is others[-1] else 0, 1, piece)
    assert max_bytes - 200 < len(data) <= max_bytes
    match = reading.identify(data)
    assert isinstance(match, ProtocolMatch)
    assert match.metadata.get("host") == "a.example"


def test_at_most_two_table_sizes_may_start_a_block() -> None:
    for sizes in (b"\x20", b"\x3f\xe1\x1f", b"\x20\x3f\xe1\x1f"):
        assert_host(START + frame(HEADERS, END_HEADERS, 1, sizes + BLOCK), "a.example")


def test_the_host_is_not_awaited_beyond_the_bound() -> None:
    data = START + frame(0xFF, payload=bytes(16384)) * 8 + request((AUTHORITY, "late.example"))
    assert_pending(data[: protocol.max_bytes - 1])
    for end in (protocol.max_bytes, len(data)):
        assert_pending(data[:end])


@pytest.mark.parametrize(
    "frames",
    [
        frame(PING, payload=bytes(8)) * MAX_FRAMES + request((AUTHORITY, "a.example")),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * MAX_FRAMES,
    ],
    ids=["pings", "continuations"],
)
def test_the_host_after_too_many_frames_stays_pending(frames: bytes) -> None:
    assert_always_pending(START + frames)
    assert_always_pending(START + frames + request((AUTHORITY, "late.example")))


def test_the_decoder_is_imported_only_for_http2() -> None:
    program = """
import sys
from refractium_proto_http import Http
from refractium_proto_http.http2 import PREFACE
match = Http().identify(b"GET / HTTP/1.1\\r\\nHost: a.example\\r\\n\\r\\n")
assert match.metadata["host"] == "a.example"
assert Http().identify(PREFACE).pending == {"host"}
assert "hpack" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=TIMEOUT)


def frames(kinds: Iterable[int]) -> st.SearchStrategy[bytes]:
    return st.builds(
        frame,
        st.sampled_from(list(kinds)),
        st.sampled_from([0, END_HEADERS, PADDED, PRIORITY_FLAG, 0xFF]) | st.integers(0, 255),
        st.sampled_from([0, 1, 1, 1, 2, 0x80000001]),
        st.binary(max_size=20)
        | st.integers(0, len(BLOCK)).map(lambda cut: BLOCK[:cut])
        | st.integers(0, len(BLOCK)).map(lambda cut: BLOCK[cut:]),
    )


@settings(deadline=None)
@given(
    st.lists(frames(range(12)) | frames([HEADERS, CONTINUATION]), max_size=6).map(b"".join),
    st.integers(0, 20),
)
def test_any_frames_keep_the_laws(sent: bytes, missing: int) -> None:
    data = PREFACE + sent
    assert_lawful(protocol, data[: len(data) - missing])


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_block_keeps_the_laws(sent: bytes) -> None:
    assert_lawful(protocol, PREFACE + frame(HEADERS, END_HEADERS, 1, sent))


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([AUTHORITY, HOST, "x"]), st.text("a.:@[]1 Z")), max_size=4), st.data()
)
def test_a_block_means_the_same_in_any_number_of_frames(
    headers: list[tuple[str, str]], choices: st.DataObject
) -> None:
    whole = block(*headers)
    cuts = sorted(choices.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    edges = [0, *cuts, len(whole)]
    parts = [whole[first:last] for first, last in pairwise(edges)]
    data = START + frame(HEADERS, 0, 1, parts[0])
    data += b"".join(frame(CONTINUATION, 0, 1, part) for part in parts[1:]) + frame(
        CONTINUATION, END_HEADERS, 1
    )
    match, expected = protocol.identify(data), protocol.identify(START + request(*headers))
    assert isinstance(match, ProtocolMatch)
    assert isinstance(expected, ProtocolMatch)
    assert match.metadata == expected.metadata
