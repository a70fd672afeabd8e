"""The hook as the proxy uses it: started, fed with batches of events, stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from hooks_pcap.capturing import (
    NOON,
    SECOND,
    closing,
    context_of,
    datagrams_of,
    files_in,
    numbered,
    opening,
    passing,
    read_file,
    session_of,
)
from refractium.contract import Direction, Event, EventKind, Transport, problems_of_hook
from refractium.testing import Backend, Recorder, run_hook, serve
from refractium_hooks_pcap import refractium_hooks
from refractium_hooks_pcap.hook import PcapHook
from refractium_hooks_pcap.outputs import Viewers
from refractium_hooks_pcap.reader import Reader
from refractium_hooks_pcap.settings import PcapSettings
from support.cleanliness import uvloop_has_what_it_keeps
from support.clients import PATIENCE, connect, payload
from support.process import able_to_import_tests
from support.programs import require_program
from support.proxy import open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["uvloop_has_what_it_keeps"]

CLIENT: Final = ("10.0.0.1", 40_000)


@contextmanager
def hook_of(**settings: Any) -> Iterator[PcapHook]:
    found = PcapSettings(**settings)
    assert list(PcapHook.problems(found)) == []
    hook = PcapHook(found)
    hook.start()
    try:
        yield hook
    finally:
        before = time.monotonic()
        hook.stop()
        assert time.monotonic() - before < 5


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before, threads = open_descriptors(), threading.active_count()
    yield
    assert open_descriptors() <= before
    assert threading.active_count() <= threads


def connection(session: int, upwards: bytes, downwards: bytes, **changed: Any) -> list[Event]:
    """Return the events of a TCP connection, in pieces of 5,000 bytes."""
    context = context_of(session=session, transport=Transport.TCP, **changed)
    events = [opening(context)]
    for at in range(0, max(len(upwards), len(downwards)), 5000):
        for direction, data in ((Direction.INBOUND, upwards), (Direction.OUTBOUND, downwards)):
            if piece := data[at : at + 5000]:
                events.append(Event(EventKind.PACKET, NOON, context, direction, piece, at))
    events += [Event(EventKind.END, NOON, context, one) for one in Direction]
    return [*events, closing(context)]


def test_the_plugin_hands_out_the_hook() -> None:
    assert refractium_hooks() == [PcapHook]
    assert list(problems_of_hook(PcapHook)) == []


def test_no_file_is_made_before_the_first_packet(tmp_path: Path) -> None:
    with hook_of(path=str(tmp_path / "a.pcapng")) as hook:
        hook.on_batch([])
        assert files_in(tmp_path) == []


def test_after_a_batch_its_packets_are_in_the_file(tmp_path: Path) -> None:
    with hook_of(path=str(tmp_path / "a.pcapng")) as hook:
        context = context_of()
        hook.on_batch([opening(context), passing(context, b"1", NOON + 1), passing(context, b"2", NOON + 2)])
        found = read_file(tmp_path / "a.pcapng")
        assert datagrams_of(found) == [b"1", b"2"]
        assert [one.time for one in found] == [NOON + 1, NOON + 2]
        assert {one.interface for one in found} == {"names"}
        assert f"session={context.session:016x}" in (found[0].comment or "")
        hook.on_batch([passing(context, b"3", NOON + SECOND), closing(context)])
        assert datagrams_of(read_file(tmp_path / "a.pcapng")) == [b"1", b"2", b"3"]


@pytest.mark.parametrize("name", ["a.pcapng", "a.pcap"])
def test_tshark_finds_the_sent_bytes_in_the_file(tmp_path: Path, name: str) -> None:
    tshark = require_program("tshark")
    path = tmp_path / name
    sent = [(payload(f"up{one}", 30_000 + one), payload(f"down{one}", 90_000 + one)) for one in range(3)]
    ways = [connection(one, *both, client=("10.0.0.1", 40_000 + one)) for one, both in enumerate(sent)]
    with hook_of(path=str(path)) as hook:
        while any(ways):
            hook.on_batch([way.pop(0) for way in ways if way])
    for number, (upwards, downwards) in enumerate(sent):
        shown = subprocess.run(
            [tshark, "-n", "-q", "-r", str(path), "-z", f"follow,tcp,raw,{number}"],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        ).stdout.splitlines()
        lines = [line for line in shown if line.strip() and not line.strip(" \t0123456789abcdef")]
        assert bytes.fromhex("".join(line for line in lines if not line.startswith("\t"))) == upwards
        assert bytes.fromhex("".join(line for line in lines if line.startswith("\t"))) == downwards


def test_files_are_by_protocol_if_the_name_says_so(tmp_path: Path) -> None:
    with hook_of(path=f"{tmp_path}/{{protocol}}-{{route}}.pcapng") as hook:
        events = [
            *session_of(context_of(protocol="dns", route="one"), b"1"),
            *session_of(context_of(protocol="dns", route="two"), b"2"),
            *session_of(context_of(protocol="fallback", route="fallback"), b"3"),
            *session_of(context_of(protocol="dns", route="one"), b"4"),
        ]
        hook.on_batch(events)
    contents = {name: datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)}
    assert contents == {
        "dns-one.pcapng": [b"1", b"4"],
        "dns-two.pcapng": [b"2"],
        "fallback-fallback.pcapng": [b"3"],
    }


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "abcdef"),
        ({"protocols": ["https"]}, "abc"),
        ({"protocols": ["https", "fallback"]}, "abcf"),
        ({"clients": ["10.0.0.0/8"]}, "ade"),
        ({"clients": ["2001:db8::/32", "192.0.2.7"]}, "bc"),
        ({"sni": ["example.org"]}, "a"),
        ({"sni": ["*.Example.org."]}, "b"),
        ({"sni": ["*.example.org", "example.org"]}, "ab"),
        ({"sni": ["*.www.example.org"]}, "c"),
        ({"sni": ["example.org"], "clients": ["192.0.2.7"]}, ""),
        ({"sni": ["*.example.org"], "clients": ["192.0.2.7"], "protocols": ["https"]}, "b"),
    ],
)
def test_only_sessions_that_the_filter_selects_are_written(
    tmp_path: Path, settings: dict[str, Any], wanted: str
) -> None:
    sessions: dict[str, dict[str, Any]] = {
        "a": {"protocol": "https", "metadata": {"sni": "example.org"}},
        "b": {"protocol": "https", "metadata": {"sni": "www.example.org"}, "client": ("192.0.2.7", 1)},
        "c": {"protocol": "https", "metadata": {"sni": "a.www.example.org"}, "client": ("2001:db8::1", 1)},
        "d": {"protocol": "dns"},
        "e": {"protocol": "http", "metadata": {"host": "example.org", "sni": ("example.org",)}},
        "f": {"protocol": "fallback", "client": ("127.0.0.1", 1)},
    }
    with hook_of(path=str(tmp_path / "a.pcapng"), **settings) as hook:
        for letter, how in sessions.items():
            hook.on_batch(session_of(context_of(**how), letter.encode()))
        assert not hook._recordings
    found = read_file(tmp_path / "a.pcapng") if wanted else []
    assert "".join(chr(one.data[-1]) for one in found) == wanted
    assert bool(files_in(tmp_path)) == bool(wanted)


def test_events_of_a_session_without_an_open_event_are_ignored(tmp_path: Path) -> None:
    with hook_of(path=str(tmp_path / "a.pcapng")) as hook:
        context = context_of()
        hook.on_batch([passing(context, b"x"), closing(context), *session_of(context_of(), b"y")])
        assert datagrams_of(read_file(tmp_path / "a.pcapng")) == [b"y"]
        assert not hook._recordings


def test_a_batch_of_many_mebibytes_is_written_in_parts(tmp_path: Path) -> None:
    sent = numbered(500, 60_000)
    settings = PcapSettings(path=str(tmp_path / "a.pcapng"), max_bytes=1_000_000)
    run_hook(PcapHook, inbound=sent, settings=settings, transport=Transport.UDP)
    found = [one for name in files_in(tmp_path) for one in datagrams_of(read_file(tmp_path / name))]
    assert found == sent


def test_packets_are_cut_at_the_snaplen(tmp_path: Path) -> None:
    settings = PcapSettings(path=str(tmp_path / "a.pcap"), snaplen=100)
    run_hook(PcapHook, inbound=[b"short", b"x" * 1000], settings=settings, transport=Transport.UDP)
    assert [(len(one.data), one.length) for one in read_file(tmp_path / "a.pcap")] == [(33, 33), (100, 1028)]


def test_file_and_viewer_get_the_same_packets(tmp_path: Path) -> None:
    sent = numbered(20)
    with hook_of(path=str(tmp_path / "a.pcapng"), listen=0) as hook:
        [viewers] = hook._streams
        assert isinstance(viewers, Viewers)
        with connect(("127.0.0.1", viewers.port or 0)) as viewer:
            reader = Reader()
            found = reader.feed(viewer.recv(1000))
            hook.on_batch(session_of(context_of(), *sent))
            while len(found) < 20:
                found += reader.feed(viewer.recv(1 << 16))
        assert found == read_file(tmp_path / "a.pcapng")
        assert datagrams_of(found) == sent


def test_the_file_has_the_packets_that_a_hook_of_a_proxy_sees(
    tmp_path: Path, refractium_recorder: Recorder
) -> None:
    path = tmp_path / "a.pcapng"
    with serve(
        fallback_udp=Backend.echo(Transport.UDP),
        hooks=[(PcapHook, PcapSettings(path=str(path))), refractium_recorder.hook],
    ) as proxy:
        proxy.ask(*numbered(20))
    recorded = [data for _, data in refractium_recorder.session().packets]
    assert Counter(recorded) == Counter(datagrams_of(read_file(path)))
    assert set(recorded) == set(numbered(20))


def test_an_output_that_fails_does_not_delay_the_others(tmp_path: Path) -> None:
    (tmp_path / "web.pcapng").symlink_to("elsewhere")
    with hook_of(path=f"{tmp_path}/{{protocol}}.pcapng") as hook:
        hook.on_batch([*session_of(context_of(protocol="web"), b"1"), *session_of(context_of(), b"2")])
    assert datagrams_of(read_file(tmp_path / "dns.pcapng")) == [b"2"]
    assert files_in(tmp_path) == ["dns.pcapng", "web.pcapng"]


def test_after_a_reload_the_old_hook_keeps_its_file_and_the_new_one_takes_another(tmp_path: Path) -> None:
    path = str(tmp_path / "a.pcapng")
    context = context_of()
    with hook_of(path=path) as old:
        old.on_batch([opening(context), passing(context, b"1")])
        with hook_of(path=path, snaplen=1000) as new:
            new.on_batch(session_of(context_of(), b"2"))
            old.on_batch([passing(context, b"3"), closing(context)])
    with hook_of(path=path) as later:
        later.on_batch(session_of(context_of(), b"4"))
    contents = [datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)]
    assert contents == [[b"1", b"3", b"4"], [b"2"]]


def test_the_hook_writes_to_a_fifo(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    run_hook(PcapHook, inbound=[b"1"], settings=PcapSettings(path=path), transport=Transport.UDP)
    with os.fdopen(reader, "rb") as file:
        assert datagrams_of(Reader().feed(file.read())) == [b"1"]


def test_the_hook_writes_to_stdout() -> None:
    script = """
from refractium.testing import run_hook
from refractium_hooks_pcap.hook import PcapHook
from refractium_hooks_pcap.settings import PcapSettings
run_hook(PcapHook, inbound=[b"1", b"2"], settings=PcapSettings(path="-"), transport="udp")
"""
    done = subprocess.run([sys.executable, "-c", script], **in_child(), check=True, capture_output=True)
    assert datagrams_of(Reader().feed(done.stdout)) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("name", "times"), [pytest.param("a.pcapng", 50, marks=pytest.mark.slow), ("a.pcap", 15)]
)
def test_a_capture_survives_the_death_of_its_writer(tmp_path: Path, name: str, times: int) -> None:
    """A writer killed at any moment has left all reported packets, in order; the next run repairs the end."""
    seed = str(time.time_ns())
    command = [sys.executable, "-m", "hooks_pcap.killing", str(tmp_path / name), str(times), seed]
    done = subprocess.run(command, **in_child(90), check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"seed {seed}\n{done.stderr}"
    count = done.stdout.split()[0]
    shown = subprocess.run(
        [require_program("capinfos"), "-M", "-c", str(tmp_path / name)],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert f"Number of packets:   {count}" in shown.stdout


def in_child(timeout: float = PATIENCE) -> dict[str, Any]:
    """Return arguments of `subprocess.run` with which a process can import the modules of the tests."""
    return {"env": able_to_import_tests(), "timeout": timeout}
