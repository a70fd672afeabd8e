"""Clients that attack, or behave badly by mistake: they must cost little, and no other client must notice."""

from __future__ import annotations

import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from support.backends import Backend, named
from support.clients import ask, connect, payload, receive, reset
from support.process import serving
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.process import Running

HTTP = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
NO_DELAY = 15.0
"""Seconds: far more than a request takes on a busy machine, and far less than the peek timeout of these
tests."""
PEEK_TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Run a proxy with a route for every installed protocol, and a fallback for all other clients."""
    folder = tmp_path_factory.mktemp("abuse")
    with Backend(named("web")) as web, Backend(named("fallback")) as fallback:
        routes = "".join(
            f'[[protocols]]\nname = "{name}"\ntransport = "tcp"\nforward_to = "{web.address}"\n'
            for name in ("http", "https", "ssh", "dns", "ftp")
        )
        (folder / "refractium.toml").write_text(
            f'[server]\nbind = "127.0.0.1"\nport = 0\npeek_timeout_ms = {PEEK_TIMEOUT_MS}\n'
            f'max_connections_per_ip = 9999\nfallback_tcp = "{fallback.address}"\n{routes}'
        )
        with serving(cwd=folder) as proxy:
            assert served_in(proxy) < NO_DELAY
            eventually(proxy.watches_files, "everything that starts late has started")
            yield proxy
            assert proxy.terminate() == 0
            assert " error " not in proxy.err


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(proxy: Running) -> Iterator[None]:
    """Assert after every test that the process is idle and has as many descriptors as before."""
    eventually(proxy.is_idle, "idle before")
    before = proxy.descriptors()
    yield
    eventually(lambda: proxy.descriptors() == before, f"{before} descriptors, not {proxy.descriptors()}")
    eventually(proxy.is_idle, "idle after")


def served_in(proxy: Running) -> float:
    """Return the seconds that a well-behaved client waits for its answer."""
    began = time.monotonic()
    assert ask(proxy.address, HTTP).data == b"web" + HTTP
    return time.monotonic() - began


def test_clients_that_connect_and_close_are_gone_at_once(proxy: Running) -> None:
    before = proxy.cpu_seconds()
    for number in range(1000):
        client = connect(proxy.address)
        if number % 2:
            client.close()
        else:
            reset(client)
    assert served_in(proxy) < NO_DELAY
    assert proxy.cpu_seconds() - before < 2.0
    eventually(proxy.is_idle, "the proxy is idle")


@pytest.mark.parametrize(
    "first", [b"", b"G", b"\x16", b"S", b"\0"], ids=["nothing", "HTTP", "TLS", "SSH", "DNS"]
)
def test_clients_that_stop_after_their_first_bytes_cost_nothing_and_delay_nobody(
    proxy: Running, first: bytes
) -> None:
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(proxy.address)) for _ in range(200)]
        for client in waiting:
            client.sendall(first)
        assert served_in(proxy) < NO_DELAY
        eventually(proxy.is_idle, "idle while they wait")
        assert served_in(proxy) < NO_DELAY
        for client in waiting:  # no client has been routed yet
            client.setblocking(False)  # noqa: FBT003 - setblocking takes only positional arguments
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_garbage_goes_to_the_fallback_at_once_and_delays_nobody(proxy: Running) -> None:
    """The peek timeout is a minute, so an answer in time shows that the proxy did not wait for it."""
    before, memory = proxy.cpu_seconds(), proxy.memory()

    def send(seed: int) -> bool:
        data = payload(seed, random.Random(seed).randrange(64, 3000))  # noqa: S311 - test data
        with connect(proxy.address) as client:
            client.sendall(data)
            return receive(client, 8 + len(data)) == b"fallback" + data

    began = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        sent = pool.map(send, range(1000))
        delays = [served_in(proxy) for _ in range(20)]
        assert all(sent)
    assert time.monotonic() - began < PEEK_TIMEOUT_MS / 1000 / 2
    assert max(delays) < NO_DELAY
    assert proxy.cpu_seconds() - before < 4.0
    assert proxy.memory() - memory < 16 << 20


def test_a_request_sent_one_byte_at_a_time_is_recognised(proxy: Running) -> None:
    with connect(proxy.address) as client:
        for position in range(len(HTTP)):
            client.sendall(HTTP[position : position + 1])
        assert receive(client, 3 + len(HTTP)) == b"web" + HTTP
