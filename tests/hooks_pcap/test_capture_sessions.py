"""The sessions that ``refractium capture`` recognises in packets."""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks_pcap.capturing import (
    NOON,
    PCAP,
    PCAPNG,
    SECOND,
    closing,
    context_of,
    opening,
    passing,
    read,
    session_of,
)
from hooks_pcap.connections import closed, connection, sent, tcp
from refractium.contract import Direction, Event, EventKind
from refractium_hooks_pcap.capture.sessions import Session, Sessions
from refractium_hooks_pcap.formats import LINKTYPE_RAW
from refractium_hooks_pcap.packets import SessionRenderer
from refractium_hooks_pcap.reader import Captured

if TYPE_CHECKING:
    from refractium_hooks_pcap.outputs import Form

GIB: Final = 1 << 30


def packets_of(events: list[Event], form: Form = PCAPNG) -> list[Captured]:
    """Return the packets of a capture of these events, read back from the capture."""
    renderers: dict[int, SessionRenderer] = {}
    writer = form.writer()
    data = writer.begin()
    for event in events:
        context = event.context
        renderer = renderers.setdefault(context.session, SessionRenderer(context))
        data += b"".join(map(writer.record, renderer.render(event)))
    return read(data)


def sessions_of(events: list[Event], form: Form = PCAPNG) -> list[Session]:
    sessions = Sessions()
    for packet in packets_of(events, form):
        sessions.add(packet)
    assert not sessions.skipped
    assert sessions.count == len(list(sessions))
    return list(sessions)


def sizes(session: Session) -> tuple[int, int, str]:
    return session.inbound.bytes, session.outbound.bytes, session.state


def test_a_session_has_the_properties_that_the_proxy_reports() -> None:
    context = tcp(
        session=0xABCDEF,
        client=("2001:db8::7", 4000),
        backend=("2001:db8::8", 443),
        metadata={"sni": "www.example.com", "alpn": ("h2", "http/1.1")},
    )
    [session] = sessions_of(connection(context))
    assert (session.id, session.protocol, session.route) == ("0000000000abcdef", "https", "web")
    assert (session.client, session.backend) == ("[2001:db8::7]:4000", "[2001:db8::8]:443")
    assert session.metadata == {"sni": "www.example.com", "alpn": "h2,http/1.1"}
    assert session.name == "www.example.com"
    assert sizes(session) == (2, 5, "closed")


def test_a_backend_at_a_unix_socket_is_named_by_its_path() -> None:
    [session] = sessions_of(connection(tcp(backend="/run/web.sock")))
    assert session.backend == "unix:/run/web.sock"


def test_an_address_that_became_ipv4_mapped_is_shown_in_its_original_form() -> None:
    [session] = sessions_of(connection(tcp(client=("10.0.0.1", 4000), backend=("::1", 443))))
    assert (session.client, session.backend) == ("10.0.0.1:4000", "[::1]:443")


@pytest.mark.parametrize("ended", ["client_reset", "backend_reset", "idle", "drained"])
def test_a_session_that_does_not_end_in_order_is_shown_as_reset(ended: str) -> None:
    context = tcp()
    [session] = sessions_of([*connection(context)[:-1], closed(context, 2, 5, ended)])
    assert sizes(session) == (2, 5, "reset")


def test_a_session_is_open_until_both_sides_have_ended() -> None:
    context = tcp()
    events = connection(context)[:-1]
    ends = [
        Event(EventKind.END, NOON, context, one, offset=size)
        for one, size in zip(Direction, (2, 5), strict=True)
    ]
    assert [one.state for one in sessions_of(events)] == ["open"]
    assert [one.state for one in sessions_of([*events, ends[0]])] == ["open"]
    assert [sizes(one) for one in sessions_of([*events, *ends, closed(context, 2, 5)])] == [(2, 5, "closed")]


@pytest.mark.parametrize("ended", ["closed", "client_reset", "backend_reset"])
def test_dropped_bytes_count_as_well(ended: str) -> None:
    context = tcp()
    events = [
        opening(context),
        sent(context, Direction.INBOUND, b"after a hole", 1_000_000),
        sent(context, Direction.OUTBOUND, b"before a hole"),
        closed(context, 1_000_012, 3_000_000, ended),
    ]
    [session] = sessions_of(events)
    assert sizes(session)[:2] == (1_000_012, 3_000_000)


def test_bytes_are_counted_beyond_a_wrap_of_sequence_numbers() -> None:
    context = tcp(session=(1 << 64) - 1)
    offsets = [at * GIB for at in range(12)]
    events = [sent(context, one, b"12345", at) for at in offsets for one in Direction]
    [session] = sessions_of([opening(context), *events])
    assert sizes(session) == (11 * GIB + 5, 11 * GIB + 5, "open")


def test_retransmitted_bytes_count_once() -> None:
    context = tcp()
    again = [sent(context, Direction.INBOUND, b"12345", 0), sent(context, Direction.INBOUND, b"345678", 2)]
    [session] = sessions_of([opening(context), *again, *again])
    assert session.inbound.bytes == 8


@pytest.mark.parametrize("form", [PCAPNG, PCAP], ids=["pcapng", "pcap"])
def test_a_session_whose_beginning_is_missing_is_shown_from_there_on(form: Form) -> None:
    context = tcp(client=("10.0.0.1", 40_000), backend=("10.0.0.2", 443))
    events = [
        opening(context),
        sent(context, Direction.OUTBOUND, b"banner"),
        sent(context, Direction.INBOUND, b"answer", NOON),
    ]
    sessions = Sessions()
    for packet in packets_of(events, form)[3:]:
        sessions.add(packet)
    [session] = sessions
    assert (session.id, session.protocol) == (None, None)
    assert session.route == ("web" if form is PCAPNG else None)
    assert (session.client, session.backend) == ("10.0.0.1:40000", "10.0.0.2:443")
    assert sizes(session) == (6, 6, "open")


def test_late_packets_of_a_finished_session_do_not_start_another() -> None:
    sessions = Sessions()
    packets = packets_of(connection(tcp()))
    for packet in [*packets, packets[-1]]:
        sessions.add(packet)
    assert sessions.count == 1
    late = Sessions()
    late.add(packets[-1])
    assert late.count == 0


@pytest.mark.parametrize("last", ["closed", "reset", "not captured"])
def test_a_new_connection_between_the_same_addresses_is_another_session(last: str) -> None:
    one, two = tcp(), tcp()
    ends = {"closed": [closed(one, 2, 5)], "reset": [closed(one, 2, 5, "idle")], "not captured": []}[last]
    ended: list[Session] = []
    sessions = Sessions(ended.append)
    for packet in packets_of([*connection(one)[:-1], *ends, *connection(two)]):
        sessions.add(packet)
    states = ["reset" if last == "reset" else "closed", "closed"]
    assert [(one.id, *sizes(one)) for one in ended] == [
        (f"{context.session:016x}", 2, 5, state) for context, state in zip((one, two), states, strict=True)
    ]


def test_datagrams_belong_to_sessions_by_their_sender() -> None:
    context = context_of(metadata={"qname": "example.com"})
    [session] = sessions_of(
        [
            *session_of(context, b"1", b"22")[:-1],
            Event(EventKind.PACKET, NOON, context, Direction.OUTBOUND, b"333333"),
            closing(context),
        ]
    )
    assert (session.protocol, session.name) == ("dns", "example.com")
    assert sizes(session) == (3, 6, "open")


def test_a_udp_session_ends_by_silence_and_may_resume() -> None:
    ended: list[Session] = []
    sessions = Sessions(ended.append)
    context = context_of()
    times = [NOON, NOON + 59 * SECOND, NOON + 300 * SECOND]
    first, second, third = packets_of([opening(context), *(passing(context, b"12345", one) for one in times)])
    sessions.add(first)
    sessions.add(second)
    assert not ended
    sessions.wait(60 * SECOND)
    assert not ended
    sessions.wait(1)
    assert [sizes(one) for one in ended] == [(10, 0, "closed")]
    sessions.add(third)
    [session] = sessions
    assert (session.id, *sizes(session)) == (f"{context.session:016x}", 15, 0, "open")
    assert sessions.count == 1


def test_any_later_packet_reveals_that_a_udp_session_was_silent() -> None:
    ended: list[Session] = []
    sessions = Sessions(ended.append)
    old, new = context_of(), context_of(client=("10.0.0.1", 50_000))
    for packet in packets_of([passing(old, b"1"), passing(new, b"2", NOON + 61 * SECOND)]):
        sessions.add(packet)
    assert [one.id for one in ended] == [f"{old.session:016x}"]


def test_memory_is_bounded_and_every_session_is_reported() -> None:
    ended: list[str | None] = []
    sessions = Sessions(lambda session: ended.append(session.id))
    number = 30_000
    for at in range(number):
        context = context_of(session=at, client=(f"10.0.{at >> 8}.{at & 255}", 40_000))
        for packet in packets_of([passing(context, b"1", NOON + at)]):
            sessions.add(packet)
    assert sessions.count == number
    assert len(list(sessions)) <= 6_000
    ended += [session.id for session in sessions.open]
    assert sorted(map(str, ended)) == [f"{at:016x}" for at in range(number)]


def test_the_rate_covers_the_last_seconds() -> None:
    context = tcp()
    steps = range(100)
    tenth = SECOND // 10
    sessions = Sessions()
    for packet in packets_of(
        [
            opening(context),
            *(sent(context, Direction.INBOUND, bytes(1000), 1000 * at, NOON + at * tenth) for at in steps),
        ]
    ):
        sessions.add(packet)
    [session] = sessions
    assert session.inbound.rate(sessions.now) == pytest.approx(10_000, rel=0.05)
    assert session.outbound.rate(sessions.now) == 0
    sessions.wait(60 * SECOND)
    assert session.inbound.rate(sessions.now) < 1


def test_a_malicious_comment_does_no_harm() -> None:
    [packet, *_] = packets_of([passing(context_of(), b"1")])
    comment = "protocol=\x1b[31m sni=\u202eabc\n= =x session " + "x=y" * 10_000
    sessions = Sessions()
    sessions.add(packet._replace(comment=comment))
    [session] = sessions
    assert (session.protocol, session.name, session.id) == (r"\x1b[31m", r"\u202eabc\n=", None)
    assert len(str(session)) < 10_000


@given(st.binary(max_size=80), st.sampled_from([b"", b"\x45", b"\x60", b"\x4f"]), st.integers(0, 300))
def test_no_packet_causes_an_exception(data: bytes, start: bytes, linktype: int) -> None:
    sessions = Sessions()
    for kind in (LINKTYPE_RAW, linktype):
        sessions.add(Captured(NOON, None, kind, start + data, len(data), None))
    assert sessions.count + sessions.skipped <= 2


def test_real_packets_that_are_cut_or_changed_cause_no_exception() -> None:
    chance = random.Random(7)  # noqa: S311 - test data
    sessions = Sessions()
    for packet in packets_of([*connection(tcp()), *session_of(context_of(), b"12345678")]) * 200:
        data = bytearray(packet.data[: chance.randrange(len(packet.data) + 1)])
        for _ in range(chance.randrange(3)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        sessions.add(packet._replace(data=bytes(data)))
    assert all(one.inbound.bytes >= 0 and one.outbound.bytes >= 0 for one in sessions)


def test_packets_that_cannot_be_shown_are_counted() -> None:
    sessions = Sessions()
    [packet] = packets_of([passing(context_of(), b"1")])
    data = packet.data
    fragment = data[:6] + struct.pack("!H", 0x2001) + data[8:]
    icmp = data[:9] + b"\1" + data[10:]
    for other in (packet._replace(linktype=1), packet._replace(data=fragment), packet._replace(data=icmp)):
        sessions.add(other)
    assert (sessions.count, sessions.skipped) == (0, 3)
