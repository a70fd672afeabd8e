"""One scene for each protocol: a backend, an exchange with a real client, and a command to try by hand."""

from __future__ import annotations

import ftplib
import http.client
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.demo import backends

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

_TIMEOUT: Final = 10.0
"""Seconds that a client waits for a connection or an answer."""


@dataclass(frozen=True, slots=True)
class Said:
    """The result of an exchange, as the client saw it.

    Attributes:
        port: the client's own port, by which the stage finds the proxy's report on this client.
        answer: the answer of the backend, in a few words.
    """

    port: int
    answer: str


Exchange: TypeAlias = "Callable[[int, ssl.SSLContext], Said]"
"""A client that makes one exchange through the proxy's port, with a TLS context for the demo's certificates.

If the client does not get the backend's answer, the function raises `OSError`, `ValueError`, `EOFError` or an
error of the client library.
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """The backend, the client and the route of one protocol in the demo.

    Attributes:
        backend: the server.
        exchange: the client, which blocks.
        by_hand: a command that the user can try, with ``{port}`` in place of the port.
        is_tls: whether the backend speaks TLS.
        conditions: the conditions of the route to the backend.
    """

    backend: backends.Handler
    exchange: Exchange
    by_hand: str
    is_tls: bool = False
    conditions: Mapping[str, Any] = field(default_factory=dict)


def _http(port: int, _trust: ssl.SSLContext) -> Said:
    return _get(http.client.HTTPConnection(backends.HOST, port, timeout=_TIMEOUT))


def _https(port: int, trust: ssl.SSLContext) -> Said:
    with socket.create_connection((backends.HOST, port), _TIMEOUT) as plain:
        connection = http.client.HTTPConnection(backends.TLS_NAME)
        # The TLS handshake checks the certificate, so an answer from another backend raises an error.
        connection.sock = trust.wrap_socket(plain, server_hostname=backends.TLS_NAME)
        return _get(connection)


def _get(connection: http.client.HTTPConnection) -> Said:
    try:
        connection.request("GET", "/")
        port = connection.sock.getsockname()[1]
        response = connection.getresponse()
        return Said(port, f"{response.status} {response.reason}: {_expect(response.read(), b'hello from')}")
    finally:
        connection.close()


def _ssh(port: int, _trust: ssl.SSLContext) -> Said:
    with socket.create_connection((backends.HOST, port), _TIMEOUT) as sock:
        sock.sendall(b"SSH-2.0-RefractiumDemoClient\r\n")
        return Said(sock.getsockname()[1], _expect(sock.makefile("rb").readline(), b"SSH-2.0-"))


def _dns(port: int, _trust: ssl.SSLContext) -> Said:
    name = b"".join(bytes((len(label),)) + label.encode() for label in backends.DNS_NAME.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 0x5265, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1)
    with socket.create_connection((backends.HOST, port), _TIMEOUT) as sock:
        sock.sendall(struct.pack(">H", len(query)) + query)
        with sock.makefile("rb") as stream:
            answer = stream.read(*struct.unpack(">H", stream.read(2)))
        address = ".".join(map(str, answer[-4:]))
        if answer[:2] != query[:2] or address != backends.DNS_ANSWER:
            raise ValueError(f"unexpected answer: '{answer.decode('latin-1')}'")
        return Said(sock.getsockname()[1], f"{backends.DNS_NAME} is {address}")


def _ftp(port: int, _trust: ssl.SSLContext) -> Said:
    with ftplib.FTP(timeout=_TIMEOUT) as client:  # noqa: S321 - the demo shows FTP
        client.connect(backends.HOST, port)
        assert client.sock is not None  # noqa: S101 - connected
        own_port = client.sock.getsockname()[1]
        client.login()
        files = client.nlst()
        if files != list(backends.FTP_FILES):
            raise ValueError(f"unexpected listing: '{', '.join(files)}'")
        return Said(own_port, f"{len(files)} files: {', '.join(files)}")


def _expect(answer: bytes, start: bytes) -> str:
    if not answer.startswith(start):
        raise ValueError(f"unexpected answer: '{answer.decode('latin-1')}'")
    return answer.decode("ascii", "replace").strip()


SCENES: Final[Mapping[str, Scene]] = {
    "http": Scene(backends.http, _http, "curl http://127.0.0.1:{port}/"),
    "https": Scene(
        backends.https,
        _https,
        f"curl --insecure --resolve {backends.TLS_NAME}:{{port}}:127.0.0.1 https://{backends.TLS_NAME}:{{port}}/",
        is_tls=True,
        conditions={"sni": backends.TLS_NAME},
    ),
    "ssh": Scene(backends.ssh, _ssh, "echo SSH-2.0-me | curl telnet://127.0.0.1:{port}"),
    "dns": Scene(backends.dns, _dns, f"dig +tcp +short -p {{port}} @127.0.0.1 {backends.DNS_NAME}"),
    "ftp": Scene(backends.ftp, _ftp, "curl ftp://127.0.0.1:{port}/"),
}
"""The scenes, by the name of the protocol."""
