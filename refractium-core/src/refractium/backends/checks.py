"""The built-in kinds of health check. Each opens a socket of its own, asks once, and closes it."""

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
from refractium.backends.health import Health
from refractium.contract import Endpoint, HealthCheck, Transport
from refractium.errors import ConfigError
from refractium.problems import Problem, unknown_name
from refractium.wire.text import text_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CHUNK: Final = 4096
_MAX_ANSWER: Final = 65_536
"""Bytes of an answer that are looked at."""
_MAX_STATUS_LINE: Final = 8_000
"""What a receiver should take of a start line at least (RFC 9112 section 3)."""


class HexBytes(Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes, written in hex."""

    hex: Annotated[str, Meta(description="Bytes as hex digits; blanks between bytes are ignored.")]


Bytes: TypeAlias = str | HexBytes


class NoSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What a kind takes that takes nothing."""


class SendExpectSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is sent, and what must be in the answer."""

    expect: Annotated[Bytes, Meta(description=r"What the answer must contain: text with \xHH, or hex.")]
    send: Annotated[Bytes, Meta(description=r"What is sent first: text with \xHH, or hex.")] = ""


class HttpSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for, and with which status it must be answered."""

    path: Annotated[str, Meta(description="What is asked for.")] = "/"
    host: Annotated[str, Meta(description="The Host of the request. Without it: the backend's address.")] = ""
    status: Annotated[
        int | tuple[int, ...],
        Meta(description="The status, or several, that mean it is well. Without it: 200 to 399."),
    ] = ()


class DnsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The question."""

    query: Annotated[str, Meta(description="The name that is asked for.")] = "."
    type: Annotated[
        Literal["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"],
        Meta(description="The type of record that is asked for."),
    ] = "NS"


class TcpCheck(HealthCheck[NoSettings]):
    """It is well if it takes a connection."""

    name = "tcp"
    settings = NoSettings
    summary = "takes a connection"

    async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del settings, timeout
        async with _connected(endpoint):
            return None


class SendExpectCheck(HealthCheck[SendExpectSettings]):
    """It is well if its answer, or what it says by itself, contains certain bytes."""

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
                # A datagram is an answer by itself, also an empty one; of a stream nothing means the end.
                answer = part if endpoint.transport is Transport.UDP else answer + part
                if expected in answer:
                    return None
                if not part and endpoint.transport is Transport.TCP:
                    break
        return "the answer is not the expected one" if answer else "no answer before the end"

    def problems(self, settings: SendExpectSettings) -> Iterator[tuple[str, str]]:
        for key, written in (("send", settings.send), ("expect", settings.expect)):
            try:
                found = _bytes(written)
            except ValueError as error:
                yield key, str(error)
            else:
                if key == "expect" and not found:
                    yield key, "is empty: every answer contains that; use kind 'tcp' for a mere connection"


class HttpCheck(HealthCheck[HttpSettings]):
    """It is well if it answers GET with a certain status."""

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
            return "the answer is not HTTP/1" if answer else "no answer before the end"
        status = int(line[1])
        return None if _is_good(status, settings.status) else f"status {status}"

    def problems(self, settings: HttpSettings) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"/[!-~]*", settings.path):
            yield "path", "begins with / and is printable ASCII without blanks"
        if not re.fullmatch(r"[!-~]*", settings.host):
            yield "host", "is printable ASCII without blanks"
        wanted = (settings.status,) if isinstance(settings.status, int) else settings.status
        if not all(100 <= status <= 599 for status in wanted):  # noqa: PLR2004 - RFC 9110 section 15
            yield "status", "is between 100 and 599"


class DnsCheck(HealthCheck[DnsSettings]):
    """It is well if it answers a query, with any outcome but SERVFAIL."""

    name = "dns"
    transports = frozenset(Transport)
    settings = DnsSettings
    summary = "answers a DNS query"

    async def check(self, endpoint: Endpoint, settings: DnsSettings, timeout: float) -> str | None:  # noqa: ASYNC109
        del timeout
        query = _query(settings)
        is_stream = endpoint.transport is Transport.TCP
        async with _connected(endpoint) as connection:
            # On TCP a length goes before each message (RFC 1035 section 4.2.2).
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
            yield "query", "is not a DNS name: labels of 1 to 63 ASCII characters, 255 bytes in all"


_DNS_HEADER: Final = 12
_QR: Final = 0x80
_RCODE: Final = 0x0F
_SERVFAIL: Final = 2
_MAX_NAME: Final = 255
"""RFC 1035 sections 4.1.1 and 2.3.4."""
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
"""RFC 1035 section 3.2.2, RFC 3596 section 2.1, RFC 2782."""


def _query(settings: DnsSettings) -> bytes:
    """One question, recursion desired (RFC 1035 section 4.1)."""
    labels = [label.encode("ascii") for label in settings.query.removesuffix(".").split(".") if label]
    name = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    header = secrets.token_bytes(2) + b"\x01\0" + b"\0\x01" + bytes(6)
    return header + name + _TYPES[settings.type].to_bytes(2, "big") + b"\0\x01"


def _bytes(written: Bytes) -> bytes:
    if isinstance(written, str):
        return text_bytes(written)
    try:
        return bytes.fromhex(written.hex)
    except ValueError:
        raise ValueError("hex is pairs of hex digits: 'ff 00'") from None


def _is_good(status: int, wanted: int | tuple[int, ...]) -> bool:
    if wanted == ():
        return 200 <= status <= 399  # noqa: PLR2004 - success and redirection (RFC 9110 section 15)
    return status == wanted if isinstance(wanted, int) else status in wanted


def _host(endpoint: Endpoint) -> str:
    """RFC 9112 section 3.2 wants a Host; a unix socket has none."""
    address = endpoint.target[1]
    return "localhost" if isinstance(address, str) else join_host_port(address[0], address[1])


class _Connection:
    """A connected socket, in coroutines."""

    def __init__(self, sock: socket.socket, preface: bytes) -> None:
        self._sock = sock
        self._preface = preface
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        if self._sock.type == socket.SOCK_DGRAM:
            self._sock.send(self._preface + data)  # at once or not at all, also where it is empty
        else:
            await self._loop.sock_sendall(self._sock, data)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self._sock, _CHUNK)

    async def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self._loop.sock_recv(self._sock, size - len(data))
            if not part:
                raise ConnectionResetError("no answer before the end")
            data += part
        return data


@asynccontextmanager
async def _connected(endpoint: Endpoint) -> AsyncIterator[_Connection]:
    """Connect while the block runs.

    Raises:
        OSError: it cannot be reached. A connection that meets itself counts as refused.
    """
    family, address = endpoint.target
    is_stream = endpoint.transport is Transport.TCP
    kind = socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM
    with socket.socket(family, kind | socket.SOCK_NONBLOCK) as sock:
        if is_stream and family != socket.AF_UNIX:
            await asyncio.get_running_loop().sock_connect(sock, address)
        else:
            # Done at once. A unix socket whose queue is full says EAGAIN: a loop would take it for progress.
            sock.connect(address)
        if is_self_connected(sock, endpoint.target):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        connection = _Connection(sock, endpoint.preface)
        if is_stream and endpoint.preface:
            await asyncio.get_running_loop().sock_sendall(sock, endpoint.preface)
        yield connection


CHECKS: Final[dict[str, HealthCheck[Any]]] = {
    check.name: check for check in (TcpCheck(), SendExpectCheck(), HttpCheck(), DnsCheck())
}
"""By what `kind` says."""
NONE: Final = "none"
"""The kind that checks nothing."""


def resolved(health: Health, transport: Transport) -> Health:
    """The same with a check in the place of its name.

    Raises:
        ConfigError: there is no such check, it is not for this transport, or its options are not valid.
    """
    if isinstance(health.kind, str) and health.kind != NONE:
        if health.kind not in CHECKS:
            message = unknown_name(health.kind, (*CHECKS, NONE))
            raise ConfigError([Problem(message, where="health.kind")])
        health = Health(**msgspec.structs.asdict(health) | {"kind": CHECKS[health.kind]})
    if health.check is not None and transport not in health.check.transports:
        message = f"a check of kind {health.check.name!r} is not for {transport}"
        raise ConfigError([Problem(message, where="health.kind")])
    return health
