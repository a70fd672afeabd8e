"""The servers behind the one port, and the configuration that routes to them."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
import threading
import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

import dns.flags
import dns.message
import dns.rrset

from support.clients import receive, receive_all
from support.process import TIMEOUT

# pyftpdlib imports asyncore, which is deprecated.
with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

if TYPE_CHECKING:
    import socket
    from pathlib import Path
    from typing import Self

    import trustme

    from integration.openssh import Sshd
    from support.backends import Handler
    from support.process import Running

BROWSERS: Final = ("chrome", "firefox", "safari")
FILES: Final = ("README.txt", "prism.png")
"""The files of the FTP server."""
ANSWER: Final = "192.0.2.53"
"""The address that the DNS server answers with, from a block reserved for documentation (RFC 5737)."""

CONFIGURATION: Final = """
[server]
bind = "{any_address}"
port = 0
peek_timeout_ms = 5000
max_connections_per_ip = 5000
fallback_tcp = "{fallback}"

[[protocols]]
name = "http"
forward_to = "{web}"

[[protocols]]
name = "http"
host = "unix.example"
forward_to = "{unix}"

[[protocols]]
name = "https"
forward_to = "{fallback}"

[[protocols]]
name = "https"
sni = "one.example"
forward_to = "{one}"

[[protocols]]
name = "https"
sni = ["two.example", "*.wild.example"]
forward_to = "{two}"

[[protocols]]
name = "https"
sni = "chrome.browsers.example"
forward_to = "{chrome}"

[[protocols]]
name = "https"
sni = "firefox.browsers.example"
forward_to = "{firefox}"

[[protocols]]
name = "https"
sni = "safari.browsers.example"
forward_to = "{safari}"

[[protocols]]
name = "ssh"
forward_to = "{ssh}"

[[protocols]]
name = "dns"
transport = "tcp"
forward_to = "{dns}"

[[protocols]]
name = "ftp"
on_timeout = true
forward_to = "{ftp}"

[[protocols]]
name = "my_app"
patterns = ["MY_PROTO_V1", {{ hex = "ca fe 00", offset = 4 }}, {{ regex = "^HELLO [0-9]+\\n" }}]
transport = "tcp"
forward_to = "{my_app}"
"""


class Stage(NamedTuple):
    """The proxy and the servers that tests talk to.

    Attributes:
        proxy: the running proxy.
        authority: the file of the certificate that signed the certificates of all TLS servers.
        sshd: the OpenSSH server; None if it is not installed.
    """

    proxy: Running
    authority: Path
    sshd: Sshd | None

    @property
    def port(self) -> int:
        return self.proxy.port


def answering(name: str) -> Handler:
    """Return a web server that answers with its name, in HTTP/1.1, or in HTTP/2 to clients that begin with it
    (RFC 9113 section 3.3)."""

    def handle(sock: socket.socket) -> None:
        request = _until(sock, b"\r\n\r\n")
        if request.startswith(b"PRI * HTTP/2.0"):
            _answer_http2(sock, request, name)
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(name))
            sock.sendall(name.encode())

    return handle


def _until(sock: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        part = sock.recv(65536)
        if not part:
            raise ConnectionResetError
        data += part
    return data


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_STATUS_200: Final = b"\x88"
"""The header ``:status 200`` in the static table of HPACK (RFC 7541 appendix A)."""


def _answer_http2(sock: socket.socket, data: bytes, name: str) -> None:
    """Answer the first request with the least that HTTP/2 requires (RFC 9113 sections 4.1 and 6)."""
    sock.sendall(_frame(_SETTINGS))
    data = data[len(_PREFACE) :]
    while True:
        data += receive(sock, max(0, 9 - len(data)))
        size, kind, flags, stream = 9 + int.from_bytes(data[:3]), data[3], data[4], int.from_bytes(data[5:9])
        data += receive(sock, max(0, size - len(data)))
        data = data[size:]
        if kind == _SETTINGS and not flags & _ACK:
            sock.sendall(_frame(_SETTINGS, _ACK))
        elif kind == _HEADERS:
            sock.sendall(_frame(_HEADERS, _END_HEADERS, stream, _STATUS_200))
            sock.sendall(_frame(_DATA, _END_STREAM, stream, name.encode()))
            receive_all(sock)
            return


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def by_inetd(*command: str | Path) -> Handler:
    """Return a handler that starts a program for each connection, as inetd does. It needs no port and no
    wait for a start."""

    def handle(sock: socket.socket) -> int:
        sock.setblocking(True)  # noqa: FBT003 - setblocking takes only positional arguments
        end = sock.fileno()
        done = subprocess.run(
            command, stdin=end, stdout=end, stderr=subprocess.DEVNULL, timeout=TIMEOUT, check=False
        )
        return done.returncode

    return handle


def over_tls(authority: trustme.CA, *names: str) -> Handler:
    """Return a web server that has a certificate for these names and answers with the first name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    answer = answering(names[0])

    def handle(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as wrapped:
            answer(wrapped)
            wrapped.unwrap()

    return handle


def recording(name: str) -> Handler:
    """Return a handler that reads until the client ends, then sends its name and the SHA-256 of the
    received bytes."""

    def handle(sock: socket.socket) -> None:
        received = receive_all(sock)
        if received.end == "eof":
            sock.sendall(f"{name} {hashlib.sha256(received.data).hexdigest()}".encode())

    return handle


def resolving(sock: socket.socket) -> None:
    """Run a DNS server that knows one answer (RFC 7766)."""
    while prefix := receive(sock, 2):
        query = dns.message.from_wire(receive(sock, int.from_bytes(prefix)))
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", ANSWER))
        wire = answer.to_wire()
        sock.sendall(len(wire).to_bytes(2) + wire)


class FtpBackend:
    """An FTP server (pyftpdlib) with a folder that anybody may read.

    Attributes:
        address: the address in the form that a route takes.
    """

    def __init__(self, folder: Path) -> None:
        make_files(folder)
        authorizer = DummyAuthorizer()
        authorizer.add_anonymous(str(folder))
        handler = type("Handler", (FTPHandler,), {"authorizer": authorizer})
        # By default, all servers share one loop, and the thread of another server could close the new socket.
        self._server = FTPServer(("127.0.0.1", 0), handler, ioloop=IOLoop())
        self.address = "{}:{}".format(*self._server.address)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._over.is_set():
            self._server.ioloop.loop(timeout=0.05, blocking=False)
        self._server.close_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(TIMEOUT)


def make_files(folder: Path) -> None:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(f"this is {name}\n")
