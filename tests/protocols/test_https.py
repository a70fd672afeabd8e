from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from refractium.contract import NO, MetadataValue, NeedMore, ProtocolMatch
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium_proto_https import Https, HttpsSettings, refractium_protocols
from refractium_proto_https.hello import MAX_ALPN_NAMES
from support import strangers
from support.answers import needs_more
from support.capture import TIMEOUT, browser_hello, first_bytes, is_whole_record, run
from support.hellos import (
    ALPN,
    ECH,
    KEY_SHARE,
    LENGTHS,
    SNI,
    VERSIONS,
    Builder,
    records,
    typical_extensions,
    typical_hello,
)
from support.programs import require_program

https = Https()
build = Builder()
HELLO = typical_hello()
WHOLE = records(HELLO)
NAME_AT = HELLO.index(b"www.")


def metadata_of(*extensions: bytes, version: int = 0x0303) -> dict[str, MetadataValue]:
    match = https.identify(records(build.hello(extensions, version=version)))
    assert isinstance(match, ProtocolMatch)
    assert not match.pending
    return dict(match.metadata)


@pytest.mark.parametrize("browser", ["chrome", "firefox", "safari"])
def test_the_hello_of_every_browser_is_recognised(browser: str) -> None:
    data = browser_hello(browser)
    assert len(data) > 1448, "a browser hello must be large enough for two segments"
    metadata: dict[str, MetadataValue] = {
        "sni": "www.example.com",
        "alpn": ("h2", "http/1.1"),
        "versions": ("1.3", "1.2"),
    }
    match = assert_identifies(https, data, metadata=metadata)
    assert match.metadata.get("ech", False) is (browser != "safari")


@pytest.mark.parametrize(
    ("options", "metadata"),
    [
        (["-tls1_3"], {"versions": ("1.3",), "sni": None, "alpn": None}),
        (["-tls1_2"], {"versions": ("1.2",)}),
        (["-tls1_2", "-servername", "Example.ORG"], {"sni": "example.org"}),
        (["-servername", "a.example", "-alpn", "h2,acme-tls/1"], {"alpn": ("h2", "acme-tls/1")}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_openssl_is_recognised(options: list[str], metadata: dict[str, MetadataValue]) -> None:
    program = require_program("openssl")
    name = [] if "-servername" in options else ["-noservername"]

    def connect(port: int) -> None:
        run(program, "s_client", "-connect", f"127.0.0.1:{port}", *name, *options)

    assert_identifies(https, first_bytes(connect, is_whole_record), metadata=metadata)


def test_curl_is_recognised() -> None:
    program = require_program("curl")

    def fetch(port: int) -> None:
        resolve = f"a.example:{port}:127.0.0.1"
        run(program, "-sq", "--noproxy", "*", "--resolve", resolve, f"https://A.Example:{port}/")

    data = first_bytes(fetch, is_whole_record)
    assert_identifies(https, data, metadata={"sni": "a.example", "alpn": ("h2", "http/1.1")})


def test_python_is_recognised() -> None:
    def connect(port: int) -> None:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["imap"])
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain:
            context.wrap_socket(plain, server_hostname="imap.example.com")

    data = first_bytes(connect, is_whole_record)
    assert_identifies(https, data, metadata={"sni": "imap.example.com", "alpn": ("imap",)})


def test_the_metadata_is_complete_and_leaves_out_grease() -> None:
    match = assert_identifies(https, WHOLE)
    assert match.metadata == {
        "sni": "www.example.com",
        "alpn": ("h2", "http/1.1"),
        "versions": ("1.3", "1.2"),
    }


@pytest.mark.parametrize("size", [1, 7, 536, 1448])
def test_a_hello_in_segments_needs_more_until_it_is_whole(size: int) -> None:
    hello = build.hello([*typical_extensions(build), build.extension(21, bytes(3000))])
    data = records(hello)
    assert all(needs_more(https.identify(data[:end])) for end in range(size, len(data), size))
    assert_identifies(https, data, metadata={"sni": "www.example.com"})


@pytest.mark.parametrize(
    "cuts",
    [
        (NAME_AT + 5,),
        (1,),
        (1, 2, 3, 4, 5),
        tuple(range(NAME_AT, NAME_AT + 15)),
        tuple(range(3, len(HELLO), 3))[:63],
        tuple(range(1, 128)),
    ],
    ids=lambda cuts: f"{len(cuts) + 1} records",
)
def test_a_hello_cut_over_records_is_joined(cuts: tuple[int, ...]) -> None:
    data = records(HELLO, *cuts)
    match = assert_identifies(https, data, metadata={"sni": "www.example.com", "alpn": ("h2", "http/1.1")})
    assert needs_more(https.identify(data[:-1]))
    assert match.metadata == assert_identifies(https, WHOLE).metadata


def test_a_hello_in_too_many_records_is_recognised_and_never_matches() -> None:
    hello = sized_hello(1000)
    assert isinstance(https.identify(records(hello, *range(1, 512))), ProtocolMatch)
    data = records(hello, *range(1, 513))
    assert_lawful(https, data)
    assert https.identify(data) == NeedMore(https.max_bytes + 1, recognised=True)


@pytest.mark.parametrize("cuts", [(), (20,), (1, 2, 3, 4, 5, 40)], ids=len)
@pytest.mark.parametrize("major", [3, 4, 5, 6, 0x7F, 0xFE, 0xFF])
def test_the_version_of_a_record_does_not_matter(major: int, cuts: tuple[int, ...]) -> None:
    for minor in range(256):
        data = records(HELLO, *cuts, major=major, minor=minor)
        match = https.identify(data)
        assert isinstance(match, ProtocolMatch)
        assert match.metadata["sni"] == "www.example.com"
        assert all(needs_more(https.identify(data[:end])) for end in range(1, 60))


def test_records_with_different_versions_are_joined() -> None:
    first, second = records(HELLO[:20], minor=0xFE), records(HELLO[20:], major=4, minor=9)
    assert_identifies(https, first + second, metadata={"sni": "www.example.com"})


@pytest.mark.parametrize(
    "version", [0x0305, 0x03FE, 0x03FF, 0x0400, 0x0401, 0x0603, 0x7F1C, 0xFEFD, 0xFEFE, 0xFFFF]
)
def test_a_hello_with_a_higher_version_than_any_known_is_tls(version: int) -> None:
    metadata: dict[str, MetadataValue] = {"sni": "www.example.com", "alpn": ("h2",), "versions": ("1.2",)}
    extensions = [build.sni(b"www.example.com"), build.alpn(b"h2")]
    hello = build.hello(extensions, version=version)
    assert_identifies(https, records(hello, minor=0xFE), metadata=metadata)
    assert_identifies(https, records(hello, 5, 11, 50), metadata=metadata)
    offering = build.hello([*extensions, build.versions(0x0304)], version=version)
    assert_identifies(https, records(offering), metadata={**metadata, "versions": ("1.3",)})


@pytest.mark.parametrize("after", [b"\x17\x03\x03\x00\x04data", b"\x14\x03\x03\x00\x01\x01", b"anything"])
def test_bytes_behind_the_hello_do_not_matter(after: bytes) -> None:
    assert_identifies(https, WHOLE + after, metadata={"sni": "www.example.com"})
    in_its_record = b"\x16\x03\x01" + (len(HELLO) + len(after)).to_bytes(2) + HELLO + after
    assert_identifies(https, in_its_record, metadata={"sni": "www.example.com"})


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(strangers.TCP["sslv2 hello"], id="SSLv2 hello"),
        pytest.param(strangers.TCP["tls alert"], id="alert"),
        pytest.param(b"\x16\x02\x00", id="version 2"),
        pytest.param(b"\x16\x00\x03\x00\x40\x01", id="version 0"),
        pytest.param(b"\x16\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x01", id="DTLS record"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="empty record"),
        pytest.param(b"\x16\x03\x01\x40\x01", id="record too large"),
        pytest.param(b"\x16\x03\x01\x00\x40\x02", id="ServerHello"),
        pytest.param(records(HELLO, 10, 10), id="empty record inside"),
        pytest.param(records(HELLO[:30]) + b"\x15\x03\x01\x00\x02\x01\x00", id="alert inside"),
        pytest.param(records(b"\x01\x00\x00\x28" + bytes(40)), id="hello too small"),
        pytest.param(records(build.hello([], version=0x0203)), id="hello version 2.3"),
        pytest.param(records(build.hello([], version=0x0002)), id="hello version of SSL 2"),
        pytest.param(records(build.hello([], session_id=bytes(33))), id="session id too long"),
        pytest.param(records(build.hello([], ciphers=b"")), id="no cipher suites"),
        pytest.param(records(build.hello([], ciphers=bytes(3))), id="odd cipher suites"),
        pytest.param(records(build.hello([], compressions=b"")), id="no compression method"),
        pytest.param(
            records(Builder({"extensions": 1}).hello([]) + b"\0"), id="extensions beyond the message"
        ),
        pytest.param(records(build.hello([build.sni(b"a"), build.sni(b"b")])), id="SNI twice"),
        pytest.param(records(build.hello([build.sni(b"a", b"b")])), id="two names"),
        pytest.param(records(build.hello([build.sni()])), id="no name"),
        pytest.param(records(build.hello([build.sni(b"")])), id="empty name"),
        pytest.param(records(build.hello([build.extension(SNI, b"")])), id="empty SNI"),
        pytest.param(records(build.hello([build.alpn(b"h2"), build.alpn(b"h2")])), id="ALPN twice"),
        pytest.param(records(build.hello([build.alpn()])), id="no ALPN name"),
        pytest.param(records(build.hello([build.alpn(b"h2", b"")])), id="empty ALPN name"),
        pytest.param(records(build.hello([build.extension(ALPN, b"")])), id="empty ALPN"),
        pytest.param(records(build.hello([build.versions(772), build.versions(772)])), id="versions twice"),
        pytest.param(records(build.hello([build.versions()])), id="no versions"),
        pytest.param(records(build.hello([build.extension(VERSIONS, b"\3\3\4\3")])), id="odd versions"),
    ],
)
def test_a_malformed_hello_is_rejected(data: bytes) -> None:
    assert_rejects(https, data)


@pytest.mark.parametrize("sample", strangers.TCP.values(), ids=strangers.TCP)
def test_other_protocols_are_rejected(sample: bytes) -> None:
    if sample is strangers.TCP["tls record"]:
        assert needs_more(https.identify(sample))
    else:
        assert_rejects(https, sample)


def test_the_first_impossible_byte_is_answered_with_no() -> None:
    for at, value in ((0, 0x15), (1, 2), (4, 0), (5, 2), (8, 40)):
        wrong = WHOLE[:at] + bytes([value]) + WHOLE[at + 1 :]
        if at == 4:
            wrong = b"\x16\x03\x01\x00\x00" + WHOLE[5:]
        elif at == 8:
            wrong = WHOLE[:6] + b"\0\0\x28" + WHOLE[9:]
        assert needs_more(https.identify(wrong[:at]))
        assert https.identify(wrong[: at + 1]) is NO


def test_a_hello_above_the_maximum_is_recognised_at_once_and_the_largest_is_read() -> None:
    largest = sized_hello(65_536)
    for cuts in (range(10_000, 65_536, 10_000), range(128, 65_536, 128)):
        data = records(largest, *cuts)
        match = https.identify(data)
        assert isinstance(match, ProtocolMatch)
        assert match.metadata["sni"] == "www.example.com"
        assert needs_more(https.identify(data[:-1]))
    assert len(records(largest, *range(128, 65_536, 128))) == https.max_bytes

    data = records(sized_hello(65_537), *range(2000, 65_537, 10_000))
    assert needs_more(https.identify(data[:8]))
    for end in (9, 3000, len(data)):
        assert https.identify(data[:end]) == NeedMore(https.max_bytes + 1, recognised=True)


def sized_hello(size: int) -> bytes:
    """Return a hello with a server name, and with padding up to `size` bytes."""
    ciphers = bytes(2 if size < 70_000 else 65_534)
    fixed = len(build.hello([*typical_extensions(build), build.extension(21, b"")], ciphers=ciphers))
    return build.hello(
        [*typical_extensions(build), build.extension(21, bytes(size - fixed))], ciphers=ciphers
    )


@pytest.mark.parametrize("size", [16_384, 131_072])
def test_the_size_of_the_hello_is_a_setting(size: int) -> None:
    configured = https.with_settings(HttpsSettings(max_hello_bytes=size))
    cuts = range(16_000, size, 16_000)
    assert isinstance(configured.identify(records(sized_hello(size), *cuts)), ProtocolMatch)
    larger = configured.identify(records(sized_hello(size + 1), *cuts))
    assert larger == NeedMore(configured.max_bytes + 1, recognised=True)


@pytest.mark.parametrize("cuts", [(), (100, 300), tuple(range(5, 500, 7))])
def test_the_next_question_comes_at_the_end_of_a_record(cuts: tuple[int, ...]) -> None:
    data = records(HELLO, *cuts)
    answers = []
    at = 1
    while at <= len(data):
        answers.append(answer := https.identify(data[:at]))
        at = max(at + 1, answer.at if isinstance(answer, NeedMore) else 0)
    assert isinstance(answers[-1], ProtocolMatch)
    assert len(answers) <= 10 + 6 * len(cuts)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("lie", [-1, 1, 255])
def test_a_hello_with_a_wrong_length_never_matches(length: str, lie: int) -> None:
    data = records(typical_hello({length: lie}))
    assert_lawful(https, data)
    assert not isinstance(https.identify(data), ProtocolMatch)
    assert not isinstance(https.identify(data + bytes(600)), ProtocolMatch)


@pytest.mark.parametrize(
    ("name", "sni"),
    [
        (b"WWW.Example.COM", "www.example.com"),
        (b"example.com.", "example.com"),
        (b"example.com..", None),
        (b"xn--bcher-kva.example", "xn--bcher-kva.example"),
        (b"_dmarc.example", "_dmarc.example"),
        (b".", None),
        (b"a..b", None),
        (b".a", None),
        ("bücher.example".encode(), None),
        (b"a\0b.example", None),
        (b"a\r\nb", None),
        (b"a.example\n", None),
        (b"a\x1b[2J", None),
        (b"%s", None),
        (b"{}", None),
        (b"*.example.com", None),
        (b"a b", None),
        (b"[::1]", None),
        (b"a" * 63, "a" * 63),
        (b"a" * 64, None),
        (b".".join([b"a" * 62] * 4) + b".a", ".".join(["a" * 62] * 4) + ".a"),
        (b".".join([b"a" * 62] * 4) + b".a.", ".".join(["a" * 62] * 4) + ".a"),
        (b".".join([b"a" * 62] * 4) + b".aa", None),
        (b"a" * 256, None),
        (b"a" * 16000, None),
    ],
)
def test_a_server_name_must_be_a_host_name(name: bytes, sni: str | None) -> None:
    assert metadata_of(build.sni(name), build.alpn(b"h2")).get("sni") == sni


def test_a_name_of_another_type_is_not_a_server_name() -> None:
    assert "sni" not in metadata_of(build.sni(b"www.example.com", kind=1))


def test_a_hello_without_extensions_is_tls_1_2_without_a_name() -> None:
    for hello in (build.hello(None), build.hello([])):
        match = assert_identifies(https, records(hello))
        assert match.metadata == {"versions": ("1.2",)}


@pytest.mark.parametrize(
    ("version", "versions"),
    [(0x0300, "ssl3"), (0x0301, "1.0"), (0x0302, "1.1"), (0x0303, "1.2"), (0x0304, "1.2")],
)
def test_without_supported_versions_the_legacy_version_applies(version: int, versions: str) -> None:
    assert metadata_of(version=version)["versions"] == (versions,)


def test_an_encrypted_hello_is_reported_in_the_metadata() -> None:
    assert metadata_of(build.sni(b"public.example"), build.extension(ECH, bytes(40)))["ech"] is True


def test_odd_alpn_names_are_kept_as_they_are() -> None:
    assert metadata_of(build.alpn(b"\x8a\x8a", b"h2"))["alpn"] == ("\x8a\x8a", "h2")


def test_only_the_first_names_of_a_long_alpn_list_are_read() -> None:
    names = [f"n{number}" for number in range(1000)]
    for count in (MAX_ALPN_NAMES - 1, MAX_ALPN_NAMES, MAX_ALPN_NAMES + 1, 1000):
        alpn = build.alpn(*(name.encode() for name in names[:count]))
        match = assert_identifies(https, records(build.hello([build.sni(b"a.example"), alpn])))
        assert match.metadata["alpn"] == tuple(names[: min(count, MAX_ALPN_NAMES)])
        assert match.metadata["sni"] == "a.example"
        assert match.pending == ({"alpn"} if count > MAX_ALPN_NAMES else set())
        assert (match.pending_at > https.max_bytes) == (count > MAX_ALPN_NAMES)
    assert MAX_ALPN_NAMES >= 100, "a list of every registered name and of every GREASE value must fit"


def test_the_names_of_a_long_alpn_list_that_are_read_must_be_valid() -> None:
    names = [b"h2"] * (MAX_ALPN_NAMES - 1)
    assert_rejects(https, records(build.hello([build.alpn(*names, b"")])))
    assert isinstance(https.identify(records(build.hello([build.alpn(*names, b"h3", b"")]))), ProtocolMatch)


def test_unknown_extensions_may_come_twice() -> None:
    assert metadata_of(build.extension(0x7777, b"x"), build.extension(0x7777, b"y"))


def test_a_large_hello_that_comes_byte_by_byte_is_cheap() -> None:
    hello = build.hello([build.extension(21, bytes(16000))])
    for data in (records(hello), records(hello, *range(1, 64))):
        start = time.process_time()
        assert all(needs_more(https.identify(data[:end])) for end in range(1, len(data)))
        assert time.process_time() - start < 3


PARTS = {
    "sni": build.sni(b"www.example.com"),
    "alpn": build.alpn(b"h2", b"http/1.1"),
    "versions": build.versions(0x0304, 0x0303),
    "groups": build.groups(),
    "ech": build.extension(ECH, bytes(10)),
    "key share": build.extension(KEY_SHARE, bytes(38)),
}
GREASE = st.sampled_from([(high << 4 | 0xA) * 0x0101 for high in range(16)]).map(
    lambda kind: build.extension(kind, b"")
)
UNKNOWN = st.builds(build.extension, st.integers(0x4000, 0x5000), st.binary(max_size=8))


@settings(deadline=None)
@given(
    known=st.permutations(list(PARTS)).flatmap(lambda names: st.integers(0, 6).map(lambda n: names[:n])),
    others=st.lists(st.tuples(st.integers(0, 6), GREASE | UNKNOWN), max_size=6),
    cuts=st.lists(st.integers(1, 150), max_size=40, unique=True),
    session_id=st.binary(max_size=32),
)
def test_order_and_cuts_of_extensions_do_not_change_the_metadata(
    known: list[str], others: list[tuple[int, bytes]], cuts: list[int], session_id: bytes
) -> None:
    extensions = [PARTS[name] for name in known]
    for at, other in others:
        extensions.insert(at, other)
    hello = build.hello(extensions, session_id=session_id)
    data = records(hello, *(cut for cut in cuts if cut < len(hello)))
    match = https.identify(data)
    assert isinstance(match, ProtocolMatch)
    assert match.metadata.get("sni") == ("www.example.com" if "sni" in known else None)
    assert match.metadata.get("alpn") == (("h2", "http/1.1") if "alpn" in known else None)
    assert match.metadata["versions"] == (("1.3", "1.2") if "versions" in known else ("1.2",))
    assert match.metadata.get("ech") is (True if "ech" in known else None)
    assert_lawful(https, data)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(LENGTHS), st.integers(-300, 70_000), min_size=1), st.binary(max_size=20)
)
def test_a_damaged_hello_never_names_another_server(lies: dict[str, int], after: bytes) -> None:
    # If all three agree, the hello really has another name and is not damaged.
    of_the_name = {lies.get(length, 0) for length in ("sni", "sni list", "sni name")}
    assume(len(of_the_name) > 1 or of_the_name == {0})
    data = records(typical_hello(lies)) + after
    assert_lawful(https, data)
    match = https.identify(data)
    if isinstance(match, ProtocolMatch):
        assert match.metadata.get("sni") in (None, "www.example.com")


@settings(deadline=None)
@example(b"\x16")
@given(
    st.binary(max_size=100)
    | st.binary(max_size=100).map(lambda rest: b"\x16\x03\x01" + rest)
    | st.binary(max_size=100).map(lambda rest: b"\x16" + rest)
    | st.builds(
        lambda version, major, cuts: records(
            build.hello([build.sni(b"a.example")], version=version), *cuts, major=major
        ),
        st.integers(0, 0xFFFF),
        st.integers(0, 255),
        st.lists(st.integers(1, 60), max_size=6, unique=True),
    )
    | st.binary(max_size=100).map(lambda rest: b"\x16\x03\x01\x00\x60\x01\x00" + rest)
    | st.binary(min_size=41, max_size=100).map(
        lambda body: records(b"\x01" + build.vector(3, b"\3\3" + body))
    )
)
def test_any_bytes_keep_the_laws(data: bytes) -> None:
    assert_lawful(https, data)


def test_the_plugin_offers_https_over_tcp() -> None:
    assert [repr(protocol) for protocol in refractium_protocols()] == ["<Https https/tcp>"]
