"""The number of free descriptors, and the connections that get them when few are free."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest

from refractium.sockets import descriptors
from refractium.sockets.descriptors import Descriptors
from refractium.sockets.pipes import Pipe, Pipes
from support.backends import Backend, echo
from support.clients import MIB, payload, receive
from support.datagrams import UdpBackend, ask, client
from support.datagrams import echo as echo_datagram
from support.proxy import ProxyThread, eventually, quick

if TYPE_CHECKING:
    import asyncio

LIMIT: Final = 1000
SPARE: Final = 50


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process appear to have a limit of 1,000 descriptors."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (LIMIT, LIMIT))
    monkeypatch.setattr(descriptors, "_TRUSTED", -1.0)
    monkeypatch.setattr(descriptors, "_SHARE", -1.0)


def with_open(monkeypatch: pytest.MonkeyPatch, number: int, *, is_told: bool = True) -> None:
    """Make this process appear to have `number` open descriptors, reported by the kernel or found by
    listing them."""
    names = [*map(str, range(number)), "the one that looks"]
    told = SimpleNamespace(st_size=number if is_told else 0)
    monkeypatch.setattr(descriptors, "os", SimpleNamespace(stat=lambda _: told, listdir=lambda _: names))


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("is_told", [True, False], ids=["kernel", "older kernel"])
def test_open_and_promised_descriptors_are_not_lent_and_a_few_are_kept_in_reserve(
    monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    promised = 0
    lender = Descriptors(lambda: promised)
    with_open(monkeypatch, 30, is_told=is_told)
    assert lender.left(LIMIT) == LIMIT - SPARE - 30
    promised = lender.lent = 100
    assert lender.left(LIMIT) == LIMIT - SPARE - 30 - 100
    promised = 20
    with_open(monkeypatch, 110, is_told=is_told)
    assert lender.left(LIMIT) == LIMIT - SPARE - 110 - 20


COUNTING = """
import os, resource, sys
from refractium.sockets import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
if sys.argv[1] == "older kernel":
    os.stat = lambda path: os.stat_result([0] * 10)
descriptors._TRUSTED = descriptors._SHARE = -1.0
lender = descriptors.Descriptors(lambda: 0)
before = lender.left(200)
opened = [open(os.devnull) for _ in range(80)]
print(before, before - lender.left(200))
"""


@pytest.mark.parametrize("kernel", ["kernel", "older kernel"])
def test_open_descriptors_are_counted_through_the_kernel(kernel: str) -> None:
    # In a process that opens no others: 200, less ten in reserve, the three standard streams, and a few
    # more.
    command = [sys.executable, "-c", COUNTING, kernel]
    before, difference = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert 180 <= before <= 187
    assert difference == 80


@pytest.mark.usefixtures("limited")
def test_no_descriptor_is_free_if_none_is_left_for_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> os.stat_result:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(descriptors, "os", SimpleNamespace(stat=fail, listdir=os.listdir))
    assert Descriptors(lambda: 0).left(LIMIT) == 0


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES], ids=["no /proc", "a forbidden one"])
def test_without_proc_the_lent_descriptors_are_counted(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first_free = 30

    def fail(_: str) -> os.stat_result:
        raise OSError(code, os.strerror(code))

    def first(*_: object) -> int:
        if first_free == LIMIT:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return first_free

    names = {"listdir": os.listdir, "O_PATH": os.O_PATH, "O_CLOEXEC": os.O_CLOEXEC}
    fake = SimpleNamespace(stat=fail, open=first, close=lambda _: None, **names)
    monkeypatch.setattr(descriptors, "os", fake)
    promised = 0
    lender = Descriptors(lambda: promised)
    assert lender.left(LIMIT) == LIMIT - SPARE - 30
    lender.lent, promised = 100, 50
    first_free = 70  # below 70 there are 20 of the 50 lent and open descriptors, and 50 others
    assert lender.left(LIMIT) == LIMIT - SPARE - 30 - 100
    first_free = 95  # further descriptors have been opened
    assert lender.left(LIMIT) == LIMIT - SPARE - 45 - 100
    first_free = 3
    assert lender.left(LIMIT) == LIMIT - SPARE - 45 - 100
    lender.lent, promised = 800, 0
    first_free = LIMIT
    assert lender.left(LIMIT) == 0


def test_descriptors_are_counted_when_few_seem_free_and_not_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lender = Descriptors(lambda: 0)
    counts = 0
    count = Descriptors._count

    def counting(of: Descriptors) -> None:
        nonlocal counts
        counts += 1
        count(of)

    monkeypatch.setattr(Descriptors, "_count", counting)
    monkeypatch.setattr(descriptors, "_TRUSTED", 3600.0)
    assert [lender.left(2) > 100 for _ in range(10)] == [True] * 10
    assert counts == 1
    lender.ran_out()
    assert [lender.left(2) for _ in range(10)] == [0] * 10
    assert counts == 1
    lender._trusted_until = 0.0
    assert lender.left(2) > 100
    assert counts == 2


def test_a_slow_count_is_repeated_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def slow(path: str) -> os.stat_result:
        time.sleep(0.01)
        return stat(path)

    monkeypatch.setattr(descriptors, "os", SimpleNamespace(stat=slow, listdir=os.listdir))
    lender = Descriptors(lambda: 0)
    began = time.monotonic()
    assert lender.left(2) > 100
    assert lender._trusted_until - began >= 20 * 0.01


@pytest.fixture
def lender() -> Descriptors:
    """Return a lender with as many descriptors as the test sets."""

    class Fixed(Descriptors):
        def left(self, wanted: int) -> int:
            del wanted
            return self._lendable - self.lent

    return Fixed(lambda: 0)


def test_no_pipe_is_made_of_promised_descriptors(lender: Descriptors) -> None:
    loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
    pipes = Pipes(loop, lender)
    lender._lendable = 3
    first = pipes.borrow()
    assert isinstance(first, Pipe)
    assert lender.lent == 2
    assert pipes.borrow() is None
    first.count = 1
    pipes.give_back(first)
    assert lender.lent == 0


def test_without_free_descriptors_a_session_begins_with_a_later_datagram(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(descriptors, "_TRUSTED", -1.0)
    monkeypatch.setattr(descriptors, "_SHARE", -1.0)
    settings = quick(udp_session_timeout_ms=500)
    with (
        UdpBackend(echo_datagram) as backend,
        ProxyThread(
            fallback_udp=backend.address, settings=settings, expected=["Too many open files"]
        ) as proxy,
        client(proxy.address) as sock,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(resource, "getrlimit", lambda _: (3, 3))
            sock.send(b"one")
            eventually(lambda: proxy.engine.udp_counters.dropped == 1, "the datagram is dropped")
        sock.send(b"two")
        assert sock.recv(9) == b"two"
        assert proxy.service.descriptors.lent == 1


def test_a_dialled_backend_has_its_descriptor_and_a_silent_client_a_promise() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        # The queue holds one connection; the kernel ignores further ones.
        socket.create_connection(full.getsockname()),
        ProxyThread(
            fallback=f"127.0.0.1:{full.getsockname()[1]}",
            settings=quick(connect_timeout_ms=500),
            expected=["cannot be reached"],
        ) as proxy,
    ):

        async def figures() -> tuple[int, int]:
            return proxy.engine.active, proxy.service.awaiting_socket

        with proxy.connect() as client, proxy.connect():
            eventually(lambda: proxy.call(figures()) == (2, 2), "both clients are accepted")
            client.sendall(b"?")
            eventually(lambda: proxy.call(figures()) == (2, 1), "the backend of one client is being dialled")


def test_all_descriptors_are_given_back() -> None:
    settings = quick(max_connections_per_ip=5, udp_session_timeout_ms=1000)
    with (
        Backend(echo) as backend,
        UdpBackend(echo_datagram) as answering,
        ProxyThread(
            fallback=backend.address,
            fallback_udp=answering.address,
            settings=settings,
            expected=["refused a connection"],
        ) as proxy,
        ExitStack() as stack,
    ):
        lent = proxy.service.descriptors
        clients = [stack.enter_context(proxy.connect()) for _ in range(5)]
        for one in clients[:4]:
            one.sendall(b"?")
            assert one.recv(1) == b"?"
        eventually(lambda: lent.lent == 10, "each client has two descriptors, the silent client too")
        with proxy.connect() as refused:
            assert refused.recv(1) == b""
        assert lent.lent == 10
        assert ask(proxy.address, b"?", source="127.0.0.2") == b"?"
        assert lent.lent == 11
        data = payload("bulk", MIB)
        clients[0].sendall(data)
        assert receive(clients[0], MIB) == data
        # At its end ProxyThread asserts that no descriptor is still lent.
