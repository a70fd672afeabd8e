"""ClientHellos built by hand (RFC 8446 section 4.1.2), with wrong length fields on request."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SNI, GROUPS, SIGNATURES, ALPN, VERSIONS, KEY_SHARE, ECH = 0, 10, 13, 16, 43, 51, 0xFE0D
LENGTHS = (
    "message",
    "session_id",
    "ciphers",
    "compressions",
    "extensions",
    "sni",
    "sni list",
    "sni name",
    "alpn",
    "alpn list",
    "alpn name",
    "versions",
    "versions list",
    "groups",
)
"""The names of the length fields that can be wrong."""


class Builder:
    """A builder of the parts of a hello.

    Args:
        lies: the differences from the true lengths, by the names of the length fields.
    """

    def __init__(self, lies: Mapping[str, int] | None = None) -> None:
        self._lies = lies or {}

    def vector(self, width: int, content: bytes, name: str = "") -> bytes:
        """Return `content` after its length, which has `width` bytes."""
        length = (len(content) + self._lies.get(name, 0)) % (1 << 8 * width)
        return length.to_bytes(width) + content

    def extension(self, kind: int, content: bytes, name: str = "") -> bytes:
        return kind.to_bytes(2) + self.vector(2, content, name)

    def sni(self, *names: bytes, kind: int = 0) -> bytes:
        entries = b"".join(bytes([kind]) + self.vector(2, name, "sni name") for name in names)
        return self.extension(SNI, self.vector(2, entries, "sni list"), "sni")

    def alpn(self, *names: bytes) -> bytes:
        entries = b"".join(self.vector(1, name, "alpn name") for name in names)
        return self.extension(ALPN, self.vector(2, entries, "alpn list"), "alpn")

    def versions(self, *versions: int) -> bytes:
        entries = b"".join(version.to_bytes(2) for version in versions)
        return self.extension(VERSIONS, self.vector(1, entries, "versions list"), "versions")

    def groups(self) -> bytes:
        return self.extension(GROUPS, self.vector(2, bytes.fromhex("001d 0017")), "groups")

    def hello(
        self,
        extensions: Iterable[bytes] | None,
        *,
        session_id: bytes = bytes(32),
        ciphers: bytes = bytes.fromhex("1301 1302 c02f"),
        compressions: bytes = b"\0",
        version: int = 0x0303,
    ) -> bytes:
        """Return the message; if `extensions` is None, the message has no length of extensions either."""
        body = version.to_bytes(2) + bytes(range(32)) + self.vector(1, session_id, "session_id")
        body += self.vector(2, ciphers, "ciphers") + self.vector(1, compressions, "compressions")
        if extensions is not None:
            body += self.vector(2, b"".join(extensions), "extensions")
        return b"\x01" + self.vector(3, body, "message")


def typical_extensions(builder: Builder, name: bytes = b"www.example.com") -> list[bytes]:
    """Return the extensions of a typical client with TLS 1.3, TLS 1.2 and HTTP/2."""
    return [
        builder.extension(0x0A0A, b""),
        builder.sni(name),
        builder.groups(),
        builder.alpn(b"h2", b"http/1.1"),
        builder.versions(0x3A3A, 0x0304, 0x0303),
        builder.extension(KEY_SHARE, builder.vector(2, bytes.fromhex("001d 0020") + bytes(32))),
        builder.extension(0xEAEA, b"\0"),
    ]


def typical_hello(lies: Mapping[str, int] | None = None, name: bytes = b"www.example.com") -> bytes:
    builder = Builder(lies)
    return builder.hello(typical_extensions(builder, name))


def records(message: bytes, *cuts: int, major: int = 3, minor: int = 1) -> bytes:
    """Return `message` in handshake records, split at the offsets `cuts`."""
    edges = [0, *sorted(cuts), len(message)]
    fragments = (message[start:end] for start, end in pairwise(edges))
    return b"".join(bytes([0x16, major, minor]) + len(one).to_bytes(2) + one for one in fragments)
