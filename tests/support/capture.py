"""What real clients send before they hear anything, caught on a loopback port."""

from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from curl_cffi import CurlOpt, requests

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 20
"""Seconds that no client needs."""


def first_bytes(client: Callable[[int], object], complete: Callable[[bytes], bool]) -> bytes:
    """The first bytes from a TCP client.

    Args:
        client: connects to the port it is given. What it thinks of being hung up on does not matter.
        complete: whether it has sent all that it sends unasked.
    """
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(TIMEOUT)
        running = pool.submit(client, server.getsockname()[1])
        try:
            connection, _ = server.accept()
        except TimeoutError:
            raise AssertionError("the client did not connect") from running.exception()
        data = b""
        with connection:
            connection.settimeout(TIMEOUT)
            while not complete(data):
                chunk = connection.recv(65536)
                assert chunk, f"the client left after {data!r}"
                data += chunk
        running.exception(TIMEOUT)
    return data


def first_datagram(client: Callable[[int], object]) -> bytes:
    """The first datagram from a DNS client, which is sent an empty answer."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, ThreadPoolExecutor(1) as pool:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TIMEOUT)
        running = pool.submit(client, server.getsockname()[1])
        data, address = server.recvfrom(65536)
        server.sendto(data[:2] + bytes([data[2] | 0x80]) + data[3:], address)
        running.exception(TIMEOUT)
    return data


def run(*command: str) -> None:
    """Run a client; it is about to be hung up on, so how it ends does not matter."""
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)


def browser_hello(browser: str, host: str = "www.example.com") -> bytes:
    """The TLS hello of a browser, as curl_cffi imitates it (`browser`: ``chrome``, ``firefox``, ...)."""

    def visit(port: int) -> None:
        requests.get(
            f"https://{host}:{port}/",
            impersonate=cast("Any", browser),
            timeout=TIMEOUT,
            curl_options={CurlOpt.RESOLVE: [f"{host}:{port}:127.0.0.1"]},
        )

    return first_bytes(visit, is_whole_record)


def is_whole_record(data: bytes) -> bool:
    """Whether a TLS record is complete."""
    return len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5])


def is_whole_line(data: bytes) -> bool:
    return data.endswith(b"\n")


def is_whole_header_section(data: bytes) -> bool:
    return b"\r\n\r\n" in data
