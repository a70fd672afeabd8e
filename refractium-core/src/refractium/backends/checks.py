"""The built-in kinds of health check.

Each check opens a socket, sends at most one request, and closes the socket.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from refractium.addresses.address import join_host_port
from refractium.addresses.local import is_self_connected
from refractium.backends.health_settings import Health
from refractium.contract import Endpoint, HealthCheck, NoSettings, Transport
from refractium.errors import ConfigError
from refractium.problems import Problem, unknown_name
from refractium.wire.text import hex_bytes, text_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CHUNK: Final = 4096
_MAX_ANSWER: Final = 65_536
"""Maximum number of bytes of an answer in which a check searches for the expected bytes."""
_MAX_STATUS_LINE: Final = 8_000
"""Maximum bytes of a status line: as many as RFC 9112 section 3 recommends to support for a request line."""
_NO_ANSWER: Final = "the connection ended before an answer"


class HexBytes(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes, written in hex."""

    hex: Annotated[str, Meta(description="Bytes as hex digits; blanks between bytes are ignored.")]


Bytes: TypeAlias = str | HexBytes


class SendExpectSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the kind `send_expect`: bytes to send, and bytes that the answer must contain."""

    expect: Annotated[Bytes, Meta(description=r"Bytes that the answer must contain: text with \xHH, or hex.")]
    send: Annotated[Bytes, Meta(description=r"Bytes to send first: text with \xHH, or hex.")] = ""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the kind `http`: the request, and the statuses of a good answer."""

    path: Annotated[str, Meta(description="The path of the request.")] = "/"
    host: Annotated[str, Meta(description="The Host of the request. Without it: the backend's address.")] = ""
    status: Annotated[
        int | tuple[int, ...],
        Meta(description="The status or statuses of a good answer. Without it: 200 to 399."),
    ] = ()


class DnsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the kind `dns`: the query."""

    query: Annotated[str, Meta(description="The name to ask for.")] = "."
    type: Annotated[
        Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"],
        Meta(description="The type of record to ask for."),
    ] = "NS"


class TcpCheck(HealthCheck[NoSettings]):
    """A check that passes if the backend accepts a connection."""

    name = "tcp"
    settings = NoSettings
    summary = "accepts a connection"

    async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del settings, timeout
        async with _connected(endpoint):
            return None


class SendExpectCheck(HealthCheck[SendExpectSettings]):
    """A check that passes if the answer or the greeting of the backend contains the expected bytes."""

    name = "send_expect"
    transports = frozenset(Transport)
    settings = SendExpectSettings
    summary = "answers with certain bytes"

    async def check(self, endpoint: Endpoint, settings: SendExpectSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del timeout
        expected = _bytes(settings.expect)
        async with _connected(endpoint) as connection:
            if endpoint.transport is Transport.UDP or settings.send:
                await connection.send(_bytes(settings.send))
            answer = b""
            while len(answer) < _MAX_ANSWER:
                part = await connection.receive()
                # Over UDP each datagram is an answer, even an empty datagram. Over TCP, an empty part is the
                # end of the stream.
                answer = part if endpoint.transport is Transport.UDP else answer + part
                if expected in answer:
                    return None
                if not part and endpoint.transport is Transport.TCP:
                    break
        return "the answer lacks the expected bytes" if answer else _NO_ANSWER

    def problems(self, settings: SendExpectSettings) -> Iterator[tuple[str, str]]:
        for key, written in (("send", settings.send), ("expect", settings.expect)):
            try:
                found = _bytes(written)
            except ValueError as error:
                yield key, str(error)
            else:
                if key == "expect" and not found:
                    yield key, 'must not be empty; use kind = "tcp" to check only for a connection'


class HttpCheck(HealthCheck[HttpSettings]):
    """A check that passes if the backend answers a GET request with a good status."""

    name = "http"
    settings = HttpSettings
    summary = "answers an HTTP request with a certain status"

    async def check(self, endpoint: Endpoint, settings: HttpSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del timeout
        request = (
            f"GET {settings.path} HTTP/1.1\r\nHost: {settings.host or _host(endpoint)}\r\n"
            "User-Agent: refractium\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        async with _connected(endpoint) as connection:
            await connection.send(request.encode("ascii"))
            while b"\n" not in answer and len(answer) < _MAX_STATUS_LINE:
                part = await connection.receive()
                if not part:
                    break
                answer += part
        # RFC 9112 section 4
        line = re.match(rb"HTTP/1\.[0-9] ([0-9]{3})(?: [^\r\n]*)?\r?\n", answer)
        if line is None:
            return "the answer is not HTTP/1" if answer else _NO_ANSWER
        status = int(line[1])
        return None if _is_good(status, settings.status) else f"status {status}"

    def problems(self, settings: HttpSettings) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"/[!-~]*", settings.path):
            yield "path", "must begin with / and be printable ASCII without blanks"
        if not re.fullmatch(r"[!-~]*", settings.host):
            yield "host", "must be printable ASCII without blanks"
        wanted = (settings.status,) if isinstance(settings.status, int) else settings.status
        if not all(100 <= status <= 599 for status in wanted):  # noqa: PLR2004 - RFC 9110 section 15
            yield "status", "must be between 100 and 599"


class DnsCheck(HealthCheck[DnsSettings]):
    """A check that passes if the backend answers a DNS query with any response code except SERVFAIL."""

    name = "dns"
    transports = frozenset(Transport)
    settings = DnsSettings
    summary = "answers a DNS query"

    async def check(self, endpoint: Endpoint, settings: DnsSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del timeout
        query = _query(settings)
        is_stream = endpoint.transport is Transport.TCP
        async with _connected(endpoint) as connection:
            # Over TCP the length precedes each message (RFC 1035 section 4.2.2).
            await connection.send(len(query).to_bytes(2, "big") + query if is_stream else query)
            while True:
                if is_stream:
                    answer = await connection.exactly(int.from_bytes(await connection.exactly(2), "big"))
                else:
                    answer = await connection.receive()
                if len(answer) >= _DNS_HEADER and answer[:2] == query[:2] and answer[2] & _QR:
                    return "SERVFAIL" if answer[3] & _RCODE == _SERVFAIL else None
                if is_stream:
                    return "the answer is not DNS"

    def problems(self, settings: DnsSettings) -> Iterator[tuple[str, str]]:
        labels = settings.query.removesuffix(".").split(".")
        if settings.query != "." and not (
            all(re.fullmatch(r"[!-~]{1,63}", label) for label in labels)
            and sum(len(label) + 1 for label in labels) < _MAX_NAME
        ):
            yield "query", "must be a DNS name: labels of 1 to 63 ASCII characters, at most 255 bytes in all"


_DNS_HEADER: Final = 12
_QR: Final = 0x80
_RCODE: Final = 0x0F
_SERVFAIL: Final = 2
_MAX_NAME: Final = 255
"""Sizes, flags and codes of DNS messages (RFC 1035 sections 4.1.1 and 2.3.4)."""
_TYPES: Final = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
}
"""Numbers of the types of DNS records (RFC 1035 section 3.2.2, RFC 3596 section 2.1, RFC 2782)."""


def _query(settings: DnsSettings) -> bytes:
    """Return a DNS query with one question and a request for recursion (RFC 1035 section 4.1)."""
    labels = [label.encode("ascii") for label in settings.query.removesuffix(".").split(".") if label]
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    header = secrets.token_bytes(2) + b"\x01\0" + b"\0\x01" + bytes(6)
    return header + name + _TYPES[settings.type].to_bytes(2, "big") + b"\0\x01"


def _bytes(written: Bytes) -> bytes:
    return text_bytes(written) if isinstance(written, str) else hex_bytes(written.hex)


def _is_good(status: int, wanted: int | tuple[int, ...]) -> bool:
    if wanted == ():
        return 200 <= status <= 399  # noqa: PLR2004 - success and redirection (RFC 9110 section 15)
    return status == wanted if isinstance(wanted, int) else status in wanted


def _host(endpoint: Endpoint) -> str:
    """Return the Host of a request (RFC 9112 section 3.2): the address, or localhost for a unix socket."""
    address = endpoint.target[1]
    return "localhost" if isinstance(address, str) else join_host_port(address[0], address[1])


class _CheckConnection:
    """A connected socket with coroutines to send and receive."""

    def __init__(self, sock: socket.socket, preface: bytes) -> None:
        self._sock = sock
        self._preface = preface
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        if self._sock.type == socket.SOCK_DGRAM:
            self._sock.send(self._preface + data)  # the kernel sends a whole datagram or nothing
        else:
            await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, _CHUNK)

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self._loop.sock_recv(self._sock, size - len(data))
            if not part:
                raise ConnectionResetError(_NO_ANSWER)
            data += part
        return data


@asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncIterator[_CheckConnection]:
    """Connect to the backend, and close the connection at the end of the block.

    Raises:
        OSError: the backend cannot be reached. A self-connection counts as refused.
    """
    if endpoint.transport is Transport.TCP:
        with await endpoint.open_socket() as sock:
            yield _CheckConnection(sock, b"")
        return
    family, address = endpoint.target
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address)  # this connect returns at once
        if is_self_connected(sock, endpoint.target):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        yield _CheckConnection(sock, endpoint.preface)


CHECKS: Final[dict[str, HealthCheck[Any]]] = {
    check.name: check for check in (TcpCheck(), SendExpectCheck(), HttpCheck(), DnsCheck())
}
"""The built-in kinds of health check, by the value of the setting `kind`."""
NONE: Final = "none"
"""The value of the setting `kind` that switches the check off."""


def resolved(health: Health, transport: Transport) -> Health:
    """Return the settings with the check object in place of the name of its kind.

    Raises:
        ConfigError: the kind is unknown, the check is not for this transport, or an option is not valid.
    """
    if isinstance(health.kind, str) and health.kind != NONE:
        if health.kind not in CHECKS:
            message = unknown_name(health.kind, (*CHECKS, NONE))
            raise ConfigError([Problem(message, where="health.kind")])
        health = Health(**msgspec.structs.asdict(health) | {"kind": CHECKS[health.kind]})
    if health.check is not None and transport not in health.check.transports:
        message = f'a check of kind "{health.check.name}" is not for {transport}'
        raise ConfigError([Problem(message, where="health.kind")])
    return health
