"""Captures through a pipe to real readers, some of which leave."""

from __future__ import annotations

import fcntl
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from hooks_pcap.capturing import PCAP, PCAPNG, datagrams_of, numbered, read, records_of
from refractium_hooks_pcap.outputs import Form, Stdout
from support.clients import PATIENCE
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Callable

forms = pytest.mark.parametrize("form", [PCAPNG, PCAP], ids=["pcapng", "pcap"])


def through_a_pipe(form: Form, write: Callable[[Stdout], object], *, blocking: bool = True) -> bytes:
    """Return the bytes that come out of a pipe."""
    out, into = os.pipe()
    os.set_blocking(into, blocking)
    with ThreadPoolExecutor(1) as pool, os.fdopen(out, "rb") as reader:
        everything = pool.submit(reader.read)
        stdout = Stdout(form, into)
        write(stdout)
        stdout.close()
        os.close(into)
        assert not stdout.lost
        return everything.result(PATIENCE)


@forms
@pytest.mark.parametrize("blocking", [True, False])
def test_all_packets_pass_even_if_the_writer_has_to_wait(form: Form, blocking: bool) -> None:  # noqa: FBT001 - a parameter of the test
    sent = numbered(100, 60_000)
    data = through_a_pipe(form, lambda stdout: stdout.write(records_of(*sent)), blocking=blocking)
    assert datagrams_of(read(data)) == sent


@forms
def test_a_capture_without_packets_is_valid(form: Form) -> None:
    assert through_a_pipe(form, lambda _: None) == form.writer().begin()


@forms
def test_tshark_reads_a_pipe_live(form: Form) -> None:
    command = [require_program("tshark"), "-l", "-n", "-i", "-", "-T", "fields", "-e", "udp.length"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as tshark:
        assert tshark.stdin is not None
        assert tshark.stdout is not None
        try:
            stdout = Stdout(form, tshark.stdin.fileno())
            for size in (10, 20, 30):
                stdout.write(records_of(bytes(size)))
                assert tshark.stdout.readline().strip() == str(size + 8)
            stdout.close()
            tshark.stdin.close()
            assert tshark.wait(PATIENCE) == 0
        finally:
            tshark.kill()


def test_packets_are_lost_after_the_reader_has_left(caplog: pytest.LogCaptureFixture) -> None:
    out, into = os.pipe()
    stdout = Stdout(PCAPNG, into)
    stdout.write(records_of(b"1"))
    assert datagrams_of(read(os.read(out, 1000))) == [b"1"]
    os.close(out)
    for _ in range(3):
        stdout.write(records_of(b"2", b"3"))
    stdout.close()
    os.close(into)
    assert stdout.lost == 6
    assert caplog.messages == ["cannot write to stdout, all further packets are lost: Broken pipe"]


def test_a_full_pipe_is_waited_for() -> None:
    out, into = os.pipe()
    size = fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
    with ThreadPoolExecutor(1) as pool:
        stdout = Stdout(PCAPNG, into)
        sent = numbered(3, size)[:3]
        sent = [one[:60_000] for one in sent]
        writing = pool.submit(stdout.write, records_of(*sent))
        data = b""
        while len(data) < 180_000:
            data += os.read(out, 1 << 20)
        writing.result(PATIENCE)
    os.close(into)
    with os.fdopen(out, "rb") as rest:
        data += rest.read()
    assert datagrams_of(read(data)) == sent
