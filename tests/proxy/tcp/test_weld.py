"""Client and backend behave as if directly connected: ends, resets and backpressure."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from refractium.sockets import reactor
from support.backends import Backend, digest, duplex, echo, named, sink, source
from support.clients import MIB, PATIENCE, Received, ask, payload, receive, receive_all, reset, sending
from support.lateness import fair_seconds_since, seconds_since
from support.proxy import ProxyThread, eventually, quick, resident
from support.welds import welded

if TYPE_CHECKING:
    from refractium.proxy.weld import Flow
    from support.proxy import LoopKind

pytestmark = pytest.mark.usefixtures("data_path")

both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@both_loops
def test_an_upload_of_16_mib_is_answered_after_its_end(loop: LoopKind) -> None:
    data = payload("up", 16 * MIB)
    with Backend(sink) as backend, ProxyThread(fallback=backend.address, loop=loop) as proxy:
        with proxy.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == (digest(data), "eof")
        assert proxy.next_end().up == len(data)
    assert backend.result() == (data, "eof")


@both_loops
def test_a_client_goes_on_sending_after_the_backend_has_ended_its_side(loop: LoopKind) -> None:
    up, down = payload("up", 16 * MIB), payload("down", 16 * MIB)
    with Backend(source(down)) as backend, ProxyThread(fallback=backend.address, loop=loop) as proxy:
        with proxy.connect() as client:
            client.sendall(up[:1])
            assert receive_all(client) == (down, "eof")
            client.sendall(up[1:])
            client.shutdown(socket.SHUT_WR)
            assert backend.result() == (up, "eof")
        assert proxy.next_end().ended == "closed"


@both_loops
def test_the_directions_are_independent(loop: LoopKind) -> None:
    up, down = payload("up", 64 * MIB), payload("down", 64 * MIB)
    with (
        Backend(duplex(down)) as backend,
        ProxyThread(fallback=backend.address, loop=loop) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(up)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == (down, "eof")
    assert backend.result() == (up, "eof")


@pytest.mark.parametrize("end", ["client", "backend"])
def test_an_end_while_the_other_side_is_blocked_comes_after_the_last_byte(end: str) -> None:
    data = payload(end, 48 * MIB)
    reading = threading.Event()

    def read_late(sock: socket.socket) -> Received:
        reading.wait(PATIENCE)
        return receive_all(sock)

    with ExitStack() as stack:
        handler = read_late if end == "client" else source(data)
        backend = stack.enter_context(Backend(handler, receive_buffer=65_536))
        proxy = stack.enter_context(ProxyThread(fallback=backend.address))
        client = stack.enter_context(proxy.connect(receive_buffer=4096))
        if end == "client":
            with sending(client, data) as sent:
                proxy.await_idle()
                assert not sent.is_set()
                reading.set()
            assert backend.result() == (data, "eof")
        else:
            client.sendall(b"?")
            proxy.await_idle()
            assert receive_all(client) == (data, "eof")


@both_loops
@pytest.mark.parametrize("size", [20_000, 100_000])
@pytest.mark.parametrize("pace", ["fast", "slow"])
@pytest.mark.backend_resets
def test_bytes_of_a_backend_sent_before_its_reset_arrive_before_the_reset(
    pace: str, size: int, loop: LoopKind
) -> None:
    data = payload("before the reset", size)

    def send_and_reset(sock: socket.socket) -> None:
        sock.recv(1)
        sock.sendall(data)
        eventually(lambda: not unsent(sock), "the kernel of the peer has all bytes")
        reset(sock)

    with Backend(send_and_reset) as backend, ProxyThread(fallback=backend.address, loop=loop) as proxy:
        with proxy.connect(receive_buffer=4096 if pace == "slow" else 0) as client:
            client.sendall(b"?")
            if pace == "slow":
                backend.result()
            assert receive_all(client) == (data, "reset")
        assert proxy.next_end().ended == "backend reset"


@pytest.mark.backend_resets
def test_bytes_of_a_client_sent_before_its_reset_arrive_before_the_reset() -> None:
    data = payload("before the reset", 100_000)
    with Backend(receive_all) as backend, ProxyThread(fallback=backend.address) as proxy:
        client = proxy.connect()
        client.sendall(data)
        eventually(lambda: not unsent(client), "the kernel of the peer has all bytes")
        reset(client)
        assert backend.result() == (data, "reset")
        assert proxy.next_end().ended == "client reset"


@both_loops
@pytest.mark.backend_resets
def test_a_clients_reset_during_an_upload_reaches_the_backend_within_100_ms(loop: LoopKind) -> None:
    def until_reset(sock: socket.socket) -> tuple[str, float]:
        return receive_all(sock).end, time.monotonic()

    delays = []
    with Backend(until_reset) as backend, ProxyThread(fallback=backend.address, loop=loop) as proxy:
        for _ in range(5):
            client = proxy.connect()
            client.sendall(bytes(4 * MIB))
            reset_at = time.monotonic()
            reset(client)
            end, seen_at = backend.result()
            assert end == "reset"
            delays.append(seen_at - reset_at)
    assert min(delays) < 0.1, delays


@pytest.mark.parametrize("who", ["client", "backend"])
@pytest.mark.backend_resets
def test_a_reset_after_a_half_close_reaches_the_silent_other_side(who: str) -> None:
    ended, go_on = threading.Event(), threading.Event()

    def end_then_reset(sock: socket.socket) -> str:
        sock.recv(1)
        if who == "client":
            assert sock.recv(1) == b""
            ended.set()
            return receive_error(sock)
        sock.shutdown(socket.SHUT_WR)
        go_on.wait(PATIENCE)
        reset(sock)
        return "reset"

    with Backend(end_then_reset) as backend, ProxyThread(fallback=backend.address) as proxy:
        client = proxy.connect()
        client.sendall(b"?")
        if who == "client":
            client.shutdown(socket.SHUT_WR)
            assert ended.wait(PATIENCE)
            reset(client)
        else:
            assert client.recv(1) == b""
            go_on.set()
            assert receive_error(client) == "reset"
            client.close()
        assert backend.result() == "reset"
        assert proxy.next_end().ended == f"{who} reset"


def receive_error(sock: socket.socket) -> str:
    """Wait for an error on a socket whose peer has already ended its side."""
    poller = select.poll()
    poller.register(sock, 0)
    if not poller.poll(PATIENCE * 1000):
        return "nothing"
    return "reset" if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "end"


def test_a_half_closed_silent_connection_ends_at_the_idle_timeout() -> None:
    settings = quick(idle_timeout_ms=1_000)
    with (
        Backend(receive_all) as backend,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"?")
        client.shutdown(socket.SHUT_WR)
        assert backend.result() == (b"?", "eof")
    with Backend(wait_for_end) as backend, ProxyThread(fallback=backend.address, settings=settings) as proxy:
        with proxy.connect() as client:
            begun = time.monotonic()
            client.sendall(b"?")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client).end == "reset"
            assert seconds_since(begun) > 0.98
            assert fair_seconds_since(begun) < 3
        assert proxy.next_end().ended == "idle timeout"


def wait_for_end(sock: socket.socket) -> str:
    """Read until the client has ended its side, then wait for further events."""
    while sock.recv(MIB):
        pass
    return receive_error(sock)


def test_activity_either_way_postpones_the_idle_timeout() -> None:
    seconds = 0.8
    settings = quick(idle_timeout_ms=int(seconds * 1000))
    with Backend(echo) as backend, ProxyThread(fallback=backend.address, settings=settings) as proxy:
        # On a busy machine this thread may sleep longer than the timeout; such a run proves nothing.
        for _ in range(10):
            with proxy.connect() as client:
                if stay_active(client, 1.5 * seconds) < seconds:
                    assert receive_all(client).end == "reset"
                    return
    pytest.fail("the machine was too busy ten times")


def stay_active(client: socket.socket, seconds: float) -> float:
    """Send a byte now and then. Return the longest time (s) between two bytes; a reset after that time is
    accepted."""
    begun = last = time.monotonic()
    longest = 0.0
    while last - begun < seconds:
        reset = False
        try:
            client.sendall(b"?")
            reset = client.recv(1) != b"?"
        except ConnectionResetError:
            reset = True
        now = time.monotonic()
        last, longest = now, max(longest, now - last)
        if reset:
            return longest
        time.sleep(0.2)
    return longest


def test_each_of_many_connections_ends_at_its_own_idle_timeout() -> None:
    settings = quick(idle_timeout_ms=600)
    with (
        Backend(echo) as backend,
        ProxyThread(fallback=backend.address, settings=settings) as proxy,
        proxy.connect() as early,
        ExitStack() as others,
    ):
        early.sendall(b"?")
        time.sleep(0.1)
        early.sendall(b"?")
        assert receive(early, 2) == b"??"
        port, begun = early.getsockname()[1], time.monotonic()
        while not select.select([early], [], [], 0.01)[0]:  # while other clients keep coming
            assert time.monotonic() - begun < PATIENCE
            others.enter_context(proxy.connect()).sendall(b"?")
        assert receive_all(early).end == "reset"
        assert proxy.next_end().client.endswith(f":{port}")  # it ended before all later clients


def test_slow_readers_cost_bounded_memory_and_no_processor_time() -> None:
    data = payload("slow", 8 * MIB)
    with (
        Backend(source(data)) as backend,
        ProxyThread(fallback=backend.address) as proxy,
        ExitStack() as stack,
    ):
        before = resident()
        clients = [stack.enter_context(proxy.connect(receive_buffer=65_536)) for _ in range(200)]
        for client in clients:
            client.sendall(b"?")
        for client in clients:
            assert receive(client, 100) == data[:100]
        eventually(lambda: backend.accepted == 200, "every backend sends")
        proxy.await_idle(0.5)
        held = [len(one._weld.down.held) for one in proxy.service.connections if one._weld]
        assert len(held) == 200
        assert max(held) <= 65_536
        assert resident() - before < 60 * MIB
        assert receive(clients[0], len(data) - 100) == data[100:]
        assert backend.results.empty() or backend.results.qsize() == 1
        for client in clients:
            reset(client)


def test_a_bulk_stream_does_not_starve_the_others() -> None:
    stop = threading.Event()

    def pour(sock: socket.socket) -> None:
        block = bytes(MIB)
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sock.sendall(block)

    with (
        Backend(pour) as bulk,
        Backend(echo) as other,
        ProxyThread(fallback=[bulk.address, other.address]) as proxy,
        proxy.connect() as drinker,
        proxy.connect() as asker,
    ):
        drinker.sendall(b"?")
        receive(drinker, MIB)
        times = []
        taken = threading.Event()

        def drink() -> None:
            with contextlib.suppress(OSError):  # after the test the backend may close in any way
                while not stop.is_set() and drinker.recv(MIB):
                    taken.set()

        thread = threading.Thread(target=drink)
        thread.start()
        assert taken.wait(PATIENCE)
        for _ in range(50):
            begun = time.monotonic()
            asker.sendall(b"?")
            assert asker.recv(1) == b"?"
            times.append(time.monotonic() - begun)
        stop.set()
        thread.join()
        assert sorted(times)[25] < 0.1


def test_an_urgent_byte_in_bulk_does_not_hide_the_bytes_after_it() -> None:
    """At the mark of an urgent byte, the kernel's splice returns 0, as it does at the end
    (tcp_splice_read)."""
    bulk, tail = payload("bulk", 2 * MIB), payload("tail", 200_000)

    def take_slowly(sock: socket.socket) -> Received:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        assert receive(sock, 1) == b"?"
        begun.wait(PATIENCE)
        return receive_all(sock)

    with Backend(take_slowly) as backend, ProxyThread(fallback=backend.address) as proxy:
        for _ in range(8):
            begun = threading.Event()
            with proxy.connect() as client:
                client.sendall(b"?")
                with sending(client, bulk, shut=False):
                    begun.set()
                client.send(b"!", socket.MSG_OOB)
                client.sendall(tail)
                client.shutdown(socket.SHUT_WR)
                received = backend.result()
                assert (len(received.data), received.end) == (len(bulk) + 1 + len(tail), "eof")
                assert received.data == bulk + b"!" + tail


def test_urgent_data_delays_no_other_byte() -> None:
    held, go_on = threading.Event(), threading.Event()

    async def hold() -> None:
        held.set()
        go_on.wait(PATIENCE)

    def take(sock: socket.socket) -> bytes:
        return receive(sock, 7)

    with (
        Backend(take) as backend,
        ProxyThread(fallback=backend.address) as proxy,
        proxy.connect() as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"a")
        eventually(lambda: backend.accepted == 1, "the connection is joined")
        proxy.begin(hold())
        assert held.wait(PATIENCE)
        client.send(b"bcd", socket.MSG_OOB)
        client.sendall(b"efg")
        go_on.set()
        assert backend.result() == b"abcdefg"


def test_an_urgent_byte_of_a_backend_arrives_in_its_place() -> None:
    """Unix sockets have had urgent bytes since Linux 5.15; without SO_OOBINLINE, recv leaves them out."""

    def answer(sock: socket.socket) -> None:
        assert receive_all(sock) == (b"?", "eof")
        sock.sendall(b"before")
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"after")

    with Backend(answer) as backend, ProxyThread(fallback=backend.address) as proxy:
        assert ask(proxy.address, b"?") == (b"before!after", "eof")


def test_a_small_piece_does_not_wait_for_the_acknowledgement_of_the_one_before() -> None:
    with welded() as (weld, far_client, far_backend, run):
        weld.begin(b"", 0, client_ended=False)
        far_client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(1, 9):
            far_backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # delays acknowledgements
            far_client.sendall(b"p")
            weld.up.on_event(reactor.IN)
            assert len(far_backend.recv(9, socket.MSG_DONTWAIT | socket.MSG_PEEK)) == number
        assert receive(far_backend, 8) == b"p" * 8
        far_client.close()
        far_backend.close()
        assert run() == "closed"


def announced(flow: Flow) -> None:
    """Report bytes and the end behind them to a flow, as the epoll does when both have arrived."""
    flow.on_event(reactor.IN | reactor.RDHUP)


def test_the_last_bytes_go_out_with_the_end() -> None:
    with welded() as (weld, far_client, far_backend, run):
        weld.begin(b"", 0, client_ended=False)
        before = segments(far_client)
        far_backend.sendall(b"last words")
        far_backend.shutdown(socket.SHUT_WR)
        announced(weld.down)
        assert receive_all(far_client) == (b"last words", "eof")
        assert segments(far_client) - before == 1
        far_client.close()
        assert run() == "closed"


def test_bytes_announced_together_with_an_end_do_not_wait_for_the_end() -> None:
    with welded() as (weld, far_client, far_backend, run):
        weld.begin(b"", 0, client_ended=False)
        far_backend.sendall(b"not the last words")
        announced(weld.down)  # the announced end has not come; the bytes must not wait for it
        far_client.settimeout(0.1)
        assert receive(far_client, 18) == b"not the last words"
        far_backend.close()
        far_client.close()
        assert run() == "closed"


def test_bytes_announced_together_with_an_end_go_out_before_a_reset() -> None:
    with welded() as (weld, far_client, far_backend, run):
        weld.begin(b"", 0, client_ended=False)
        far_backend.sendall(b"last words")
        reset(far_backend)
        announced(weld.down)
        assert run() == "backend reset"
        assert receive_all(far_client) == (b"last words", "reset")


def test_a_reset_first_seen_by_a_send_is_passed_on_as_a_reset() -> None:
    with welded() as (weld, far_client, far_backend, run):
        weld.begin(b"", 0, client_ended=False)
        far_backend.sendall(b"last words")
        reset(far_backend)
        far_client.sendall(b"?")
        # The kernel reports a reset once, and here a send gets it.
        weld.up.run()
        assert run() == "backend reset"
        assert receive_all(far_client) == (b"last words", "reset")


@pytest.mark.parametrize("client", ["has ended", "is silent"])
@pytest.mark.parametrize("sent", [0, 1000])
def test_first_bytes_that_the_backend_does_not_take_at_once_are_sent_later(sent: int, client: str) -> None:
    data = payload("first", 16 * MIB)

    def take() -> bytes:
        taken = receive(far_backend, len(data) - sent)
        far_client.shutdown(socket.SHUT_WR)
        return taken + receive_all(far_backend).data

    with welded() as (weld, far_client, far_backend, run), ThreadPoolExecutor(1) as pool:
        far_backend.sendall(b"bye")
        far_backend.shutdown(socket.SHUT_WR)
        weld.begin(data, sent, client_ended=client == "has ended")
        assert weld.up.held
        taken = pool.submit(take)
        assert run() == "closed"
        assert taken.result(PATIENCE) == data[sent:]
        assert receive_all(far_client) == (b"bye", "eof")


def test_the_end_of_one_connection_does_not_affect_another() -> None:
    def misbehave(sock: socket.socket) -> None:
        sock.recv(1)
        reset(sock)

    data = payload("unhurt", 4 * MIB)
    with (
        Backend(misbehave) as bad,
        Backend(echo) as good,
        ProxyThread(fallback=[good.address, bad.address]) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(data[:1])
        assert client.recv(1) == data[:1]
        with sending(client, data[1:]):
            for _ in range(20):
                ask(proxy.address, b"?")
            assert receive(client, len(data) - 1) == data[1:]


def test_a_backend_may_send_first_once_it_is_reached() -> None:
    with (
        Backend(named("one")) as backend,
        ProxyThread(fallback=backend.address) as proxy,
        proxy.connect() as client,
    ):
        client.sendall(b"!")
        assert receive(client, 4) == b"one!"


def unsent(sock: socket.socket) -> int:
    """Return the number of bytes that the peer's kernel has not taken."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)


def segments(sock: socket.socket) -> int:
    """Return the number of segments that a socket has received."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SEGS_IN + 4)
    return int.from_bytes(info[_SEGS_IN:], sys.byteorder)


_SEGS_IN = 140
"""The offset of tcpi_segs_in in struct tcp_info (linux/tcp.h)."""
