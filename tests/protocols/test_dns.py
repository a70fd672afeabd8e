from __future__ import annotations

import random
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.query
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, NO, ProtocolMatch
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium_proto_dns import DnsTcp, DnsUdp, refractium_protocols
from support import strangers
from support.capture import TIMEOUT, first_bytes, first_datagram, run
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Callable

udp = DnsUdp()
tcp = DnsTcp()


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2) + message


def is_whole_message(data: bytes) -> bool:
    return len(data) >= 2 and len(data) >= 2 + int.from_bytes(data[:2])


def query(name: str = "www.example.com", qtype: str = "A", **options: int) -> bytes:
    return dns.message.make_query(name, qtype, id=4660, **options).to_wire()  # type: ignore[arg-type]


def changed(message: bytes, at: int, *values: int) -> bytes:
    return message[:at] + bytes(values) + message[at + len(values) :]


def dig(*options: str) -> Callable[[int], None]:
    program = require_program("dig")
    return lambda port: run(program, "-r", "@127.0.0.1", "-p", str(port), "+tries=1", "+time=5", *options)


@pytest.mark.parametrize(
    ("options", "qname", "qtype"),
    [
        (["www.Example.com"], "www.example.com", "A"),
        (["+noedns", "example.com", "AAAA"], "example.com", "AAAA"),
        (["+dnssec", "+cd", "+bufsize=4096", "example.com", "HTTPS"], "example.com", "HTTPS"),
        (["+nocookie", "-x", "192.0.2.1"], "1.2.0.192.in-addr.arpa", "PTR"),
        (["+subnet=192.0.2.0/24", ".", "NS"], ".", "NS"),
        (["version.bind", "TXT", "CH"], "version.bind", "TXT"),
        (["example.com", "TYPE65280"], "example.com", "TYPE65280"),
        (["+opcode=notify", "example.com", "SOA"], "example.com", "SOA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_dig_is_recognised_on_both_transports(options: list[str], qname: str, qtype: str) -> None:
    metadata = {"qname": qname, "qtype": qtype}
    assert_identifies(udp, first_datagram(dig("+notcp", *options)), metadata=metadata)
    assert_identifies(tcp, first_bytes(dig("+tcp", *options), is_whole_message), metadata=metadata)


def test_dig_asking_for_a_zone_or_its_changes_is_recognised() -> None:
    for qtype in ("AXFR", "IXFR"):
        option = qtype if qtype == "AXFR" else "IXFR=7"
        data = first_bytes(dig("example.com", option), is_whole_message)
        assert_identifies(tcp, data, metadata={"qname": "example.com", "qtype": qtype})


def test_dnspython_is_recognised_on_both_transports() -> None:
    message = dns.message.make_query("example.com", "MX", use_edns=0)
    over_udp = first_datagram(lambda port: dns.query.udp(message, "127.0.0.1", TIMEOUT, port))
    over_tcp = first_bytes(lambda port: dns.query.tcp(message, "127.0.0.1", TIMEOUT, port), is_whole_message)
    assert over_tcp == framed(over_udp)
    assert_identifies(udp, over_udp, metadata={"qname": "example.com", "qtype": "MX"})
    assert_identifies(tcp, over_tcp, metadata={"qname": "example.com", "qtype": "MX"})


def test_update_and_notify_are_recognised() -> None:
    update = dns.update.UpdateMessage("example.com")
    update.present("a")
    update.add("b", 300, "A", "192.0.2.1")
    notify = dns.message.make_query("example.com", "SOA")
    notify.set_opcode(dns.opcode.NOTIFY)
    notify.flags |= dns.flags.AA
    soa = "ns.example.com. root.example.com. 8 1 1 1 1"
    notify.answer.append(dns.rrset.from_text("example.com.", 0, "IN", "SOA", soa))
    for message in (update.to_wire(), notify.to_wire()):
        assert_identifies(udp, message, metadata={"qname": "example.com", "qtype": "SOA"})
        assert_identifies(tcp, framed(message), metadata={"qname": "example.com", "qtype": "SOA"})


def test_a_unicast_question_of_multicast_dns_is_recognised() -> None:
    message = query("printer.local")
    assert_identifies(udp, changed(message, len(message) - 2, 0x80, 1), metadata={"qname": "printer.local"})


def test_characters_of_a_name_that_could_break_a_log_are_escaped() -> None:
    message = query(r"a\.b\\.\000\010\027[2J\255.\032X")
    assert_identifies(udp, message, metadata={"qname": r"a\.b\\.\000\010\027[2j\255.\032x"})


def test_the_longest_name_is_recognised() -> None:
    name = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
    assert_identifies(udp, query(name), metadata={"qname": name})
    match = assert_identifies(tcp, framed(query(name, use_edns=0)), metadata={"qname": name})
    assert tcp.identify(framed(query(name, use_edns=0))[: tcp.max_bytes - 1]) is NEED_MORE
    assert not match.pending


PLAIN = query()
EDNS = query(use_edns=0)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(changed(PLAIN, 2, 0x81), id="a response"),
        pytest.param(changed(PLAIN, 2, 0x03), id="truncated"),
        pytest.param(changed(PLAIN, 2, 0x11), id="opcode STATUS"),
        pytest.param(changed(PLAIN, 2, 0x31), id="opcode DSO"),
        pytest.param(changed(PLAIN, 3, 0x40), id="Z"),
        pytest.param(changed(PLAIN, 3, 0x02), id="RCODE"),
        pytest.param(changed(PLAIN, 4, 0, 0), id="no question"),
        pytest.param(changed(PLAIN, 4, 0, 2), id="two questions"),
        pytest.param(changed(PLAIN, 4, 1, 1), id="257 questions"),
        pytest.param(changed(EDNS, 6, 0, 1, 0, 0, 0, 0), id="an answer"),
        pytest.param(changed(EDNS, 8, 0, 1, 0, 0), id="an authority record though not IXFR"),
        pytest.param(changed(EDNS, 11, 2), id="one additional record is missing"),
        pytest.param(changed(EDNS + bytes(40), 11, 3), id="three additional records"),
        pytest.param(changed(EDNS, 11, 0), id="bytes after the question"),
        pytest.param(EDNS[:-1], id="additional record too short"),
        pytest.param(changed(PLAIN, len(PLAIN) - 3, 0), id="type 0"),
        pytest.param(changed(PLAIN, len(PLAIN) - 1, 2), id="class 2"),
        pytest.param(changed(PLAIN, 2, 0x28), id="UPDATE whose zone is not asked as SOA"),
        pytest.param(changed(PLAIN, 12, 0xC0, 12), id="compression pointer"),
        pytest.param(changed(PLAIN, 12, 64), id="label too long"),
        pytest.param(changed(PLAIN, 12, 63), id="label beyond the end"),
        pytest.param(PLAIN[:12] + b"\x01a" * 128 + bytes(5), id="name too long"),
        pytest.param(PLAIN[:-1], id="no whole question"),
        pytest.param(PLAIN[:11], id="no whole header"),
    ],
)
def test_a_message_that_is_not_a_query_is_rejected(message: bytes) -> None:
    assert_rejects(udp, message)
    assert_rejects(tcp, framed(message))


def netbios(flags: int, name: bytes, qtype: int, scope: bytes = b"") -> bytes:
    """Return a query of the NetBIOS name service (RFC 1002 sections 4.2.12 and 4.2.17)."""
    letters = b"".join(bytes((65 + (byte >> 4), 65 + (byte & 15))) for byte in name)
    header = b"\x80\xf0" + flags.to_bytes(2) + b"\0\1" + bytes(6)
    return header + b"\x20" + letters + scope + b"\0" + qtype.to_bytes(2) + b"\0\1"


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(netbios(0x0110, b"FILESERVER     \x20", 0x20), id="name query by broadcast"),
        pytest.param(netbios(0x0100, b"WORKGROUP      \x1c", 0x20), id="name query to a server"),
        pytest.param(netbios(0x0000, b"*" + bytes(15), 0x21), id="status of any node"),
        pytest.param(netbios(0x0010, b"*" + bytes(15), 0x21), id="status by broadcast"),
        pytest.param(netbios(0x0110, b"HOST           \0", 0x20, b"\5scope\3org"), id="name with a scope"),
        pytest.param(netbios(0x2910, b"HOST           \0", 0x20), id="registration"),
        pytest.param(netbios(0x3010, b"HOST           \0", 0x20), id="release"),
        pytest.param(netbios(0x4010, b"HOST           \0", 0x20), id="refresh"),
        pytest.param(netbios(0x0110, bytes(16), 0x20), id="smallest name"),
        pytest.param(netbios(0x0110, bytes([255] * 16), 0x21), id="largest name"),
    ],
)
def test_a_query_of_the_netbios_name_service_is_rejected(message: bytes) -> None:
    assert_rejects(udp, message)
    assert_rejects(tcp, framed(message))
    assert_rejects(tcp, framed(message) + framed(query()))


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("CK" + "A" * 30 + ".example", "A"),
        ("CK" + "A" * 29 + "Q.example", "SRV"),
        ("CK" + "A" * 29 + ".example", "SRV"),
        ("CK" + "A" * 31 + ".example", "SRV"),
        ("_sip._tcp.example.com", "SRV"),
        ("_sip." + "CK" + "A" * 30, "SRV"),
        ("example.com", "NIMLOC"),
    ],
)
def test_a_query_that_only_resembles_a_netbios_query_is_recognised(name: str, qtype: str) -> None:
    message = query(name, "TYPE32" if qtype == "NIMLOC" else qtype)
    assert_identifies(udp, message, metadata={"qname": name.lower()})
    assert_identifies(tcp, framed(message), metadata={"qname": name.lower()})


@pytest.mark.parametrize("sample", strangers.UDP.values(), ids=strangers.UDP)
def test_datagrams_of_other_protocols_are_rejected(sample: bytes) -> None:
    assert_rejects(udp, sample)


@pytest.mark.parametrize("sample", strangers.TCP.values(), ids=strangers.TCP)
def test_streams_of_other_protocols_are_not_recognised(sample: bytes) -> None:
    assert_lawful(tcp, sample)
    assert not isinstance(tcp.identify(sample), ProtocolMatch)


def test_random_datagrams_are_rejected() -> None:
    rng = random.Random(1)  # noqa: S311 - chooses test data
    datagrams = [rng.randbytes(rng.randint(12, 600)) for _ in range(20_000)]
    assert {udp.identify(one) for one in datagrams} == {NO}
    assert {tcp.identify(one) for one in datagrams} == {NO}


def test_over_tcp_the_first_impossible_byte_is_answered_with_no() -> None:
    data = framed(PLAIN)
    for at, value in ((1, 16), (4, 0x81), (5, 2), (6, 1), (7, 2), (8, 1), (9, 1), (12, 1), (14, 64)):
        wrong = changed(data, at, value)
        assert tcp.identify(wrong[:at]) is NEED_MORE
        assert tcp.identify(wrong[: at + 1]) is NO


def test_over_tcp_a_query_is_recognised_after_its_question_and_others_may_follow() -> None:
    data = framed(EDNS)
    question_end = 2 + len(PLAIN)
    assert tcp.identify(data[: question_end - 1]) is NEED_MORE
    assert isinstance(tcp.identify(data[:question_end]), ProtocolMatch)
    assert_identifies(tcp, data + framed(query("other.example")), metadata={"qname": "www.example.com"})


QUERIES = st.builds(
    lambda header, name, tail: header + name + tail,
    st.tuples(
        st.binary(min_size=2, max_size=2),
        st.sampled_from([b"\0\0", b"\1\x20", b"\x20\0", b"\x28\0", b"\x81\x80"]),
        st.just(b"\0\1"),
        st.lists(st.sampled_from([b"\0\0", b"\0\1", b"\0\2", b"\xff\xff"]), min_size=3, max_size=3).map(
            b"".join
        ),
    ).map(b"".join),
    st.lists(st.binary(max_size=66).map(lambda label: bytes([len(label)]) + label), max_size=6).map(b"".join),
    st.sampled_from([b"\0\0\1\0\1", b"\0\0\6\0\1", b"\0\0\xfb\0\1", b"\xc0\x0c\0\1\0\1", b""]),
)


@settings(deadline=None)
@given(st.binary(max_size=80) | st.tuples(QUERIES, st.binary(max_size=30)).map(b"".join))
def test_any_bytes_keep_the_laws(message: bytes) -> None:
    assert_lawful(udp, message)
    assert_lawful(tcp, message)
    assert_lawful(tcp, framed(message))


@settings(deadline=None)
@given(QUERIES, st.binary(max_size=30))
def test_both_transports_agree_on_a_whole_message(start: bytes, rest: bytes) -> None:
    message = start + rest
    assert isinstance(udp.identify(message), ProtocolMatch) == isinstance(
        tcp.identify(framed(message)), ProtocolMatch
    )


def test_the_plugin_offers_dns_over_udp_and_tcp() -> None:
    assert [repr(protocol) for protocol in refractium_protocols()] == ["<DnsUdp dns/udp>", "<DnsTcp dns/tcp>"]
