"""The scenes of the project's own protocols."""

from __future__ import annotations

import ftplib
import http.client
import struct
from typing import TYPE_CHECKING, Final

from refractium.contract import Scene
from refractium.demo import backends

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping


def _http(sock: socket.socket) -> str:
    return _get(sock, backends.HOST)


def _https(sock: socket.socket) -> str:
    return _get(sock, backends.TLS_NAME)


def _get(sock: socket.socket, host: str) -> str:
    connection = http.client.HTTPConnection(host)
    connection.sock = sock
    connection.request("GET", "/")
    response = connection.getresponse()
    return f"{response.status} {response.reason}: {_expect(response.read(), b'hello from')}"


def _ssh(sock: socket.socket) -> str:
    sock.sendall(b"SSH-2.0-RefractiumDemoClient\r\n")
    with sock.makefile("rb") as stream:
        return _expect(stream.readline(), b"SSH-2.0-")


def _dns(sock: socket.socket) -> str:
    name = b"".join(bytes((len(label),)) + label.encode() for label in backends.DNS_NAME.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 0x5265, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1)
    sock.sendall(struct.pack(">H", len(query)) + query)
    with sock.makefile("rb") as stream:
        answer = stream.read(*struct.unpack(">H", stream.read(2)))
    address = ".".join(map(str, answer[-4:]))
    if answer[:2] != query[:2] or address != backends.DNS_ANSWER:
        raise ValueError(f"unexpected answer: '{answer.decode('latin-1')}'")
    return f"{backends.DNS_NAME} is {address}"


class _FtpOverSocket(ftplib.FTP):
    """An FTP client whose control connection is a connected socket."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(timeout=sock.gettimeout())
        self.sock, self.af = sock, sock.family
        self.host, self.port = sock.getpeername()
        self.file = sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()


def _ftp(sock: socket.socket) -> str:
    with _FtpOverSocket(sock) as client:
        client.login()
        files = client.nlst()
        if files != list(backends.FTP_FILES):
            raise ValueError(f"unexpected listing: '{', '.join(files)}'")
        text: list[str] = []
        client.retrlines(f"RETR {files[0]}", text.append)
        return (
            f"{len(files)} files: {', '.join(files)}; {files[0]}: {_expect(text[0].encode(), b'hello from')}"
        )


def _expect(answer: bytes, start: bytes) -> str:
    if not answer.startswith(start):
        raise ValueError(f"unexpected answer: '{answer.decode('latin-1')}'")
    return answer.decode("ascii", "replace").strip()


_ALL: Final = (
    Scene("http", backends.http, _http, "curl http://127.0.0.1:{port}/"),
    Scene(
        "https",
        backends.https,
        _https,
        f"curl --insecure --resolve {backends.TLS_NAME}:{{port}}:127.0.0.1 https://{backends.TLS_NAME}:{{port}}/",
        {"sni": backends.TLS_NAME},
    ),
    Scene("ssh", backends.ssh, _ssh, "echo SSH-2.0-me | curl telnet://127.0.0.1:{port}"),
    Scene("dns", backends.dns, _dns, f"dig +tcp +short -p {{port}} @127.0.0.1 {backends.DNS_NAME}"),
    Scene("ftp", backends.ftp, _ftp, f"curl ftp://127.0.0.1:{{port}}/{backends.FTP_FILES[0]}"),
)
SCENES: Final[Mapping[str, Scene]] = {one.protocol: one for one in _ALL}
"""The scenes, by the name of the protocol."""
OVER_TLS: Final = frozenset({"https"})
"""The protocols whose backends and clients speak TLS with a certificate of the demo."""
