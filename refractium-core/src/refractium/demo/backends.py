"""The backends of the demo. Each backend can make one complete exchange with a client through the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import struct
from typing import TYPE_CHECKING, Final

import trustme

if TYPE_CHECKING:
    from refractium.contract.scene import Backend

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
TLS_NAME: Final = "secure.example"
DNS_NAME: Final = "demo.example"
DNS_ANSWER: Final = "192.0.2.80"
"""The address of `DNS_NAME`, from the addresses for documentation (RFC 5737)."""
SSH_BANNER: Final = "SSH-2.0-RefractiumDemo"
FTP_FILES: Final = ("README.txt", "prism.png")

_running: set[asyncio.Task[object] | None] = set()
"""The tasks of all connections. The event loop alone keeps no task that waits for a lost event."""


class Certificates:
    """A new certificate authority, and its certificate for `TLS_NAME`."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._certificate = self._authority.issue_cert(TLS_NAME)

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._certificate.configure_cert(context)
        context.set_alpn_protocols(["http/1.1"])
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts only this authority, so that clients accept only the right backend."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._authority.configure_trust(context)
        return context


def until_closed(backend: Backend) -> Backend:
    """Return a handler that calls a backend and then closes the connection, even after an error."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        _running.add(task)
        # If the end of the demo cancelled the task, asyncio would print a traceback.
        with contextlib.suppress(asyncio.CancelledError):
            try:
                await backend(reader, writer)
            except Exception as error:  # the client left, or a plugin's backend is faulty
                log.debug("a backend of the demo failed", exc_info=error)
        _running.discard(task)
        writer.close()

    return handle


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer any HTTP request with a greeting."""
    await _answer_http(reader, writer, "hello from the HTTP backend\n")


async def https(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer any HTTP request over TLS with a greeting. The server that calls this handler decrypts TLS."""
    await _answer_http(reader, writer, f"hello from the TLS backend of {TLS_NAME}\n")


async def _answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: str) -> None:
    await reader.readuntil(b"\r\n\r\n")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
    writer.write(f"{head}\r\n\r\n{body}".encode())


async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Exchange only banners (RFC 4253 section 4.2), because the rest of SSH needs keys."""
    writer.write(f"{SSH_BANNER}\r\n".encode())
    await reader.readline()


async def dns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every question with `DNS_ANSWER` (RFC 1035 section 4.1; over TCP, section 4.2.2)."""
    query = await reader.readexactly(*struct.unpack(">H", await reader.readexactly(2)))
    question = query[12 : query.index(b"\0", 12) + 5]
    header = query[:2] + struct.pack(">HHHHH", 0x8580, 1, 1, 0, 0)
    record = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + bytes(map(int, DNS_ANSWER.split(".")))
    answer = header + question + record
    writer.write(struct.pack(">H", len(answer)) + answer)


async def ftp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, accept any login and serve two files (RFC 959, RFC 2428)."""
    writer.write(b"220 Refractium demo\r\n")
    listing = _Listing()
    replies = {
        b"USER": b"331 any password will do",
        b"PASS": b"230 welcome",
        b"TYPE": b"200 as you like",
        b"CWD": b"250 there is one directory only",
        b"PWD": b'257 "/"',
        b"QUIT": b"221 bye",
    }
    try:
        while line := await reader.readline():
            command, _, argument = line.strip().partition(b" ")
            command = command.upper()
            if command in {b"PASV", b"EPSV"}:
                reply = await listing.open(extended=command == b"EPSV")
            elif command in {b"LIST", b"NLST"} and listing.is_open:
                writer.write(b"150 here it comes\r\n")
                await listing.send("".join(f"{name}\r\n" for name in FTP_FILES).encode())
                reply = b"226 that was it"
            elif command == b"RETR" and argument.decode("latin-1") not in FTP_FILES:
                reply = b"550 no such file"
            elif command == b"RETR" and listing.is_open:
                writer.write(b"150 here it comes\r\n")
                await listing.send(b"hello from the FTP backend\r\n")
                reply = b"226 that was it"
            elif command in {b"LIST", b"NLST", b"RETR"}:
                reply = b"425 send PASV or EPSV first"
            else:
                reply = replies.get(command, b"502 not in the demo")
            writer.write(reply + b"\r\n")
            if command == b"QUIT":
                return
    finally:
        listing.close()


class _Listing:
    """The data connection of an FTP session, which clients open directly, not through the proxy."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._data = b""
        self._sent = asyncio.Event()
        self._wanted = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self, *, extended: bool) -> bytes:
        self.close()
        self._server = await asyncio.start_server(until_closed(self._give), HOST, 0)
        port = self._server.sockets[0].getsockname()[1]
        if extended:
            return f"229 Entering Extended Passive Mode (|||{port}|)".encode()
        numbers = ",".join((*HOST.split("."), str(port >> 8), str(port & 255)))
        return f"227 Entering Passive Mode ({numbers})".encode()

    async def send(self, data: bytes) -> None:
        self._data = data
        self._wanted.set()
        await self._sent.wait()
        self.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._sent.clear()
        self._wanted.clear()

    async def _give(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._wanted.wait()
        writer.write(self._data)
        self._sent.set()
