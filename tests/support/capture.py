"""The first bytes of real clients, received on a loopback port before any answer."""

from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

from curl_cffi import CurlOpt, requests

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 20
"""Seconds after which a client has failed; no client needs that long."""


def first_bytes(client: Callable[[int], object], complete: Callable[[bytes], bool]) -> bytes:
    """Return the first bytes from a TCP client.

    Args:
        client: a function that connects to the given port. Its error after the hang-up does not matter.
        complete: a function that returns whether the client has sent everything that it sends unasked.
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
    """Return the first datagram from a DNS client, after an empty answer to the client."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, ThreadPoolExecutor(1) as pool:
        server.bind(("127.0.0.1", 0))
        server.settimeout(TIMEOUT)
        running = pool.submit(client, server.getsockname()[1])
        data, address = server.recvfrom(65536)
        server.sendto(data[:2] + bytes([data[2] | 0x80]) + data[3:], address)
        running.exception(TIMEOUT)
    return data


def run(*command: str) -> None:
    """Run a client. Its exit code does not matter, because the test hangs up on it."""
    subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)


def browser_hello(browser: str, host: str = "www.example.com") -> bytes:
    """Return the TLS hello of a browser (``chrome``, ``firefox``, ...), as curl_cffi imitates it."""

    def visit(port: int) -> None:
        requests.get(
            f"https://{host}:{port}/",
            impersonate=cast("Any", browser),
            timeout=TIMEOUT,
            curl_options={CurlOpt.RESOLVE: [f"{host}:{port}:127.0.0.1"]},
        )

    return first_bytes(visit, is_whole_record)


def is_whole_record(data: bytes) -> bool:
    """Return whether a TLS record is complete."""
    return len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[3:5])


def is_whole_line(data: bytes) -> bool:
    return data.endswith(b"\n")


def is_whole_header_section(data: bytes) -> bool:
    return b"\r\n\r\n" in data
