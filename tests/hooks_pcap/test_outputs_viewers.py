"""Live viewers at a port and at a FIFO: fast and slow ones, coming and going."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from hooks_pcap.capturing import PCAP, PCAPNG, datagrams_of, numbered, records_of
from refractium_hooks_pcap.outputs import Form, Viewers
from refractium_hooks_pcap.outputs import viewers as viewers_module
from refractium_hooks_pcap.reader import Reader
from support.clients import PATIENCE, connect
from support.programs import require_program
from support.proxy import eventually, open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from refractium_hooks_pcap.reader import Captured

forms = pytest.mark.parametrize("form", [PCAPNG, PCAP], ids=["pcapng", "pcap"])
LOOPBACK = ("127.0.0.1", 0)


@contextmanager
def viewers_of(form: Form = PCAPNG, **where: Any) -> Iterator[Viewers]:
    viewers = Viewers(form, **where)
    viewers.start()
    try:
        yield viewers
    finally:
        viewers.close()


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before, threads = open_descriptors(), threading.active_count()
    yield
    assert open_descriptors() <= before
    assert threading.active_count() <= threads


class Viewer:
    """A reader at a port, which has received the header once it exists."""

    def __init__(self, viewers: Viewers, **how: Any) -> None:
        assert viewers.port is not None
        self.sock = connect(("127.0.0.1", viewers.port), **how)
        self._reader = Reader()
        self._header = self.sock.recv(1 << 16)
        self.found: list[Captured] = self._reader.feed(self._header)

    def await_datagrams(self, count: int) -> list[bytes]:
        while len(self.found) < count:
            data = self.sock.recv(1 << 20)
            assert data, f"only {len(self.found)} packets arrived"
            self.found += self._reader.feed(data)
        return datagrams_of(self.found)

    def rest(self) -> list[bytes]:
        while data := self.sock.recv(1 << 20):
            self.found += self._reader.feed(data)
        assert not self._reader._buffer
        return datagrams_of(self.found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


# At a port


@forms
def test_each_viewer_gets_a_header_and_all_packets_from_then_on(form: Form) -> None:
    with viewers_of(form, address=LOOPBACK) as viewers:
        viewers.write(records_of(b"0"))
        with Viewer(viewers) as first:
            viewers.write(records_of(b"1"))
            with Viewer(viewers) as second:
                viewers.write(records_of(b"2"))
                assert second.await_datagrams(1) == [b"2"]
            assert first.await_datagrams(2) == [b"1", b"2"]
            viewers.write(records_of(b"3"))
            assert first.await_datagrams(3) == [b"1", b"2", b"3"]
            assert not viewers.lost


def test_a_viewer_that_leaves_at_the_end_does_not_end_the_thread_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = os.eventfd_write
    with ExitStack() as stack:
        viewers = stack.enter_context(viewers_of(PCAPNG, address=LOOPBACK))
        viewer = Viewer(viewers)
        stack.callback(viewer.sock.close)
        eventually(lambda: bool(viewers._viewers), "the viewer has connected")

        def late(fd: int, value: int) -> None:
            viewer.sock.close()  # wakes the thread, which then sees that it must end
            viewers._thread.join(0.2)
            write(fd, value)

        monkeypatch.setattr(os, "eventfd_write", late)


def test_a_viewer_is_connected_when_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there = []

    def info(text: str, *_: object) -> None:
        if "connected" in text:
            there.append(len(viewers._viewers))

    monkeypatch.setattr(viewers_module.log, "info", info)
    with viewers_of(PCAPNG, address=LOOPBACK) as viewers, Viewer(viewers):
        assert there == [1]


@forms
def test_tshark_is_a_viewer(form: Form) -> None:
    with viewers_of(form, address=LOOPBACK) as viewers:
        command = [require_program("tshark"), "-l", "-n", "-i", f"TCP@127.0.0.1:{viewers.port}"]
        fields = ["-c", "3", "-T", "fields", "-e", "udp.length", "-e", "frame.comment"]
        with subprocess.Popen(
            [*command, *fields], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as tshark:
            try:
                eventually(lambda: bool(viewers._viewers), "a viewer comes")
                for size in (10, 20, 30):
                    viewers.write(records_of(bytes(size)))
                out, err = tshark.communicate(timeout=PATIENCE)
            finally:
                tshark.kill()
        assert [line.split("\t")[0] for line in out.splitlines()] == ["18", "28", "38"], err


@pytest.mark.needs_ipv6
def test_a_viewer_may_come_over_ipv6() -> None:
    with viewers_of(address=("::1", 0)) as viewers, connect(("::1", viewers.port or 0)) as sock:
        assert sock.recv(1000) == PCAPNG.writer().begin()


def test_a_fast_viewer_gets_everything() -> None:
    sent = numbered(2000, 10_000)
    with viewers_of(address=LOOPBACK) as viewers, Viewer(viewers) as viewer:
        writing = threading.Thread(target=viewers.write, args=(records_of(*sent[:400]),))
        writing.start()
        assert viewer.await_datagrams(400) == sent[:400]
        writing.join(PATIENCE)
        for at in range(400, 2000, 100):
            viewers.write(records_of(*sent[at : at + 100]))
            viewer.await_datagrams(at + 100)
        assert datagrams_of(viewer.found) == sent
        assert viewers.lost == 0


def test_a_slow_viewer_loses_whole_packets_and_delays_nobody(caplog: pytest.LogCaptureFixture) -> None:
    sent = numbered(4000, 10_000)
    with (
        viewers_of(address=LOOPBACK) as viewers,
        Viewer(viewers, receive_buffer=4096) as slow,
        Viewer(viewers) as fast,
    ):
        for at in range(0, 4000, 100):
            viewers.write(records_of(*sent[at : at + 100], route=f"route{at // 1000}"))
            fast.await_datagrams(at + 100)
        assert datagrams_of(fast.found) == sent
        assert 0 < viewers.lost < 4000
        seen = slow.await_datagrams(4000 - viewers.lost)
        assert len(seen) == len(set(seen)) == 4000 - viewers.lost
        assert seen == [one for one in sent if one in set(seen)]
        viewers.write(records_of(b"last", route="another"))
        assert slow.await_datagrams(len(seen) + 1)[-1] == b"last"
        assert slow.found[-1].interface == "another"
    assert caplog.text.count("reads too slowly") == 1


def test_packets_that_do_not_fit_are_lost_only_if_the_viewer_reads_no_more() -> None:
    with viewers_of(address=LOOPBACK) as viewers, Viewer(viewers) as viewer:
        viewers.write(records_of(*numbered(2000, 10_000)))
        kept = 2000 - viewers.lost
        assert kept * 10_000 > viewers_module._MAX_BACKLOG + 50_000
        assert len(viewer.await_datagrams(kept)) == kept


def test_memory_for_a_viewer_that_reads_nothing_is_bounded() -> None:
    records = records_of(*numbered(100, 60_000))
    with viewers_of(address=LOOPBACK) as viewers, Viewer(viewers, receive_buffer=4096):
        for _ in range(10):
            viewers.write(records)
        [viewer] = viewers._viewers
        assert 3 << 20 < viewer._size <= viewers_module._MAX_BACKLOG
        assert viewer._size == sum(map(len, viewer._backlog))


def test_a_viewer_that_reads_nothing_is_cut_off_in_the_end() -> None:
    records = records_of(*numbered(1000, 60_000))
    with (
        viewers_of(address=LOOPBACK, patience=0.2) as viewers,
        Viewer(viewers, receive_buffer=4096) as stuck,
        Viewer(viewers) as idle,
    ):
        viewers.write(records[:300])
        eventually(lambda: len(viewers._viewers) < 2, "the stuck viewer is cut off")
        del stuck, idle


def test_a_viewer_without_packets_to_read_is_not_cut_off() -> None:
    with viewers_of(address=LOOPBACK, patience=0.05) as viewers, Viewer(viewers) as idle:
        time.sleep(0.2)
        with Viewer(viewers) as another:
            viewers.write(records_of(b"x"))
            assert idle.await_datagrams(1) == another.await_datagrams(1) == [b"x"]


@pytest.mark.parametrize("abruptly", [True, False])
def test_a_viewer_that_leaves_is_forgotten_even_without_traffic(abruptly: bool) -> None:  # noqa: FBT001 - a parameter of the test
    with viewers_of(address=LOOPBACK) as viewers, Viewer(viewers) as viewer:
        if abruptly:
            viewer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        viewer.sock.close()
        eventually(lambda: not viewers._viewers, "the viewer has left")
        viewers.write(records_of(b"x"))


def test_bytes_from_a_viewer_are_ignored() -> None:
    with viewers_of(address=LOOPBACK) as viewers, Viewer(viewers) as viewer:
        viewer.sock.sendall(bytes(1_000_000))
        viewers.write(records_of(b"x"))
        assert viewer.await_datagrams(1) == [b"x"]


def test_the_number_of_viewers_is_limited() -> None:
    with viewers_of(address=LOOPBACK) as viewers, ExitStack() as stack:
        inside = [stack.enter_context(Viewer(viewers)) for _ in range(viewers_module._MAX_VIEWERS)]
        with connect(("127.0.0.1", viewers.port or 0)) as outside:
            assert outside.recv(100) == b""
        inside.pop().sock.close()
        eventually(lambda: len(viewers._viewers) == len(inside), "one viewer has left")
        inside.append(stack.enter_context(Viewer(viewers)))
        viewers.write(records_of(b"x"))
        assert [viewer.await_datagrams(1) for viewer in inside] == [[b"x"]] * len(inside)


def test_a_port_in_use_is_retried(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers_module, "_RETRY", 0.05)
    with socket.create_server(LOOPBACK) as taken, viewers_of(address=taken.getsockname()) as viewers:
        assert viewers.port is None
        viewers.write(records_of(b"x"))
        taken.close()
        eventually(lambda: viewers.port is not None, "the port for viewers is open")
        with Viewer(viewers) as viewer:
            viewers.write(records_of(b"y"))
            assert viewer.await_datagrams(1) == [b"y"]
    assert caplog.text.count("cannot listen for viewers") == 1


def test_viewers_that_read_get_the_rest_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewers_module, "_LAST_WORDS", 2.0)
    sent = numbered(300, 10_000)
    viewers = Viewers(PCAPNG, address=LOOPBACK)
    viewers.start()
    with Viewer(viewers, receive_buffer=4096) as viewer, Viewer(viewers, receive_buffer=4096) as stuck:
        viewers.write(records_of(*sent))
        found: list[list[bytes]] = []
        reading = threading.Thread(target=lambda: found.append(viewer.rest()))
        reading.start()
        before = time.monotonic()
        viewers.close()
        assert time.monotonic() - before < 10
        reading.join(PATIENCE)
        assert found == [sent]
        del stuck


# At a FIFO


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return str(path)


class FifoReader:
    """A reader of a FIFO, which has received the header once it exists."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self.fd, True)
        self._reader = Reader()
        self.found: list[Captured] = []
        self.header = self._read()

    def _read(self) -> bytes:
        # Until the hook opens the FIFO for writing, reading reports an end (fifo(7)).
        deadline = time.monotonic() + PATIENCE
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        assert any(event & select.POLLIN for _, event in poll.poll((deadline - time.monotonic()) * 1000))
        data = os.read(self.fd, 1 << 20)
        self.found += self._reader.feed(data)
        return data

    def await_datagrams(self, count: int) -> list[bytes]:
        while len(self.found) < count:
            assert self._read()
        return datagrams_of(self.found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def has_none(viewers: Viewers) -> bool:
    """Return whether no viewer is left and the FIFO is closed. An earlier reader would see an end."""
    with viewers._lock:
        return not viewers._viewers


@forms
def test_readers_of_a_fifo_come_one_after_the_other(fifo: str, form: Form) -> None:
    with viewers_of(form, fifo=fifo) as viewers:
        viewers.write(records_of(b"0"))
        for one in (b"1", b"2"):
            with FifoReader(fifo) as reader:
                assert reader.header == form.writer().begin()
                viewers.write(records_of(one))
                assert reader.await_datagrams(1) == [one]
            eventually(lambda: has_none(viewers), "the viewer has left")
            viewers.write(records_of(b"lost"))


def test_a_slow_reader_of_a_fifo_loses_whole_packets(fifo: str) -> None:
    sent = numbered(2000, 10_000)
    with viewers_of(fifo=fifo, patience=0.01) as viewers, FifoReader(fifo) as reader:
        for at in range(0, 2000, 100):
            viewers.write(records_of(*sent[at : at + 100]))
        assert 0 < viewers.lost < 2000
        seen = reader.await_datagrams(2000 - viewers.lost)
        assert seen == [one for one in sent if one in set(seen)]
        viewers.write(records_of(b"last"))
        assert reader.await_datagrams(len(seen) + 1)[-1] == b"last"


def test_tshark_reads_a_fifo(fifo: str) -> None:
    command = [
        require_program("tshark"),
        "-l",
        "-n",
        "-i",
        fifo,
        "-c",
        "2",
        "-T",
        "fields",
        "-e",
        "udp.length",
    ]
    with viewers_of(fifo=fifo) as viewers:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as tshark:
            try:
                eventually(lambda: bool(viewers._viewers), "a viewer comes")
                viewers.write(records_of(bytes(10), bytes(20)))
                out, _ = tshark.communicate(timeout=PATIENCE)
            finally:
                tshark.kill()
        assert out.split() == ["18", "28"]


def test_a_fifo_that_is_replaced_by_a_link_is_not_followed(fifo: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "fifo").unlink()
    (tmp_path / "fifo").symlink_to(victim)
    with viewers_of(fifo=fifo) as viewers:
        viewers.write(records_of(b"x"))
        assert not viewers._viewers
    assert victim.read_bytes() == b""
