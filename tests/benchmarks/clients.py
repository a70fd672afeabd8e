"""Clients that send requests to a proxy, and checks that the right backend answers."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Final

import dns.exception
import dns.message
import dns.query
import dns.rdatatype

from benchmarks.streams import MARK, NAME
from support.clients import PATIENCE
from support.hellos import Builder

WEB: Final = b"the web server\n"
"""The answer of the web server, see peers/backend.conf."""
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n"
DNS_NAME: Final = "www.web.example"
DNS_ADDRESS: Final = "192.0.2.53"


def hello(name: str) -> bytes:
    """Return a TLS record with a hello for a name (RFC 8446 section 4.1.2)."""
    build = Builder()
    message = build.hello([build.sni(name.encode()), build.versions(0x0304), build.groups()])
    return b"\x16\x03\x01" + build.vector(2, message)


def open_stream(port: int, letter: bytes, opening: bytes = hello("streams.example")) -> socket.socket:
    """Connect to the streams server, and send it a command letter, see `benchmarks.streams`."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(opening + MARK + letter)
    return sock


def open_keep_alive(port: int) -> socket.socket:
    """Connect to the web server, and receive one answer.

    Raises:
        ConnectionError: the web server sends another answer.
    """
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(REQUEST)
    answer = sock.recv(4096)
    if not answer.endswith(WEB):
        raise ConnectionError(f'not the web server: "{answer.decode(errors="replace")}"')
    return sock


def reaches_web(port: int) -> bool:
    """Return whether HTTP reaches the web server."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/")
            return connection.getresponse().read() == WEB
    return False


def reaches_streams(port: int) -> bool:
    """Return whether a TLS hello for ``streams.example`` reaches the streams server."""
    with contextlib.suppress(OSError), open_stream(port, b"N") as sock:
        return sock.recv(len(NAME), socket.MSG_WAITALL) == NAME
    return False


def reaches_dns(port: int) -> bool:
    """Return whether a query over UDP reaches the DNS server."""
    with contextlib.suppress(OSError, dns.exception.DNSException):
        query = dns.message.make_query(DNS_NAME, "A")
        answer = dns.query.udp(query, "127.0.0.1", timeout=0.2, port=port)
        return DNS_ADDRESS in [str(data) for rrset in answer.answer for data in rrset]
    return False
