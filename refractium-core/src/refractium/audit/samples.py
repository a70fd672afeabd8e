"""The samples of a plugin: first messages of real clients, and bytes made from them."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.contract import Protocol

FOLDER: Final = "samples"
"""The folder of the samples, in the package of the plugin."""
_MAX_DATAGRAM: Final = 65_507
"""Bytes in the largest UDP datagram over IPv4 (RFC 768, RFC 791)."""
_FILLERS: Final = (b"\0", b"\xff", b"A", b" ", b"\r\n", b"/../", b"a=1;", b"\x01\x00\x00\x10")
_PIECE: Final = 64
_STARTS: Final = 8
"""Prefixes, or samples, to continue in other ways."""


def samples_of(value: str) -> dict[str, bytes]:
    """Return the samples of an imported plugin, by the names of their files.

    Args:
        value: value of the entry point.
    """
    module = sys.modules.get(value.partition(":")[0].strip())
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not hasattr(module, "__path__"):
        return {}  # a single file has no folder of its own
    folder = Path(file).parent / FOLDER
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*")) if file.is_file()}


def generated(protocol: Protocol, samples: Sequence[bytes]) -> Iterator[bytes]:
    """Yield short bytes that begin like first messages, and go on in another way."""
    rng = random.Random(protocol.name)  # noqa: S311 - chooses test data
    if protocol.transport is Transport.UDP:
        yield b""
    for start in _starts(protocol, samples, _PIECE):
        for filler in _FILLERS:
            yield start + filler * (_PIECE // len(filler))
        for _ in range(len(_FILLERS)):
            yield start + rng.randbytes(rng.randint(1, _PIECE))
    yield bytes(range(256))


def whole_buffers(protocol: Protocol, samples: Sequence[bytes]) -> Iterator[bytes]:
    """Yield bytes that fill the buffer of a protocol, and begin like first messages."""
    size = protocol.max_bytes if protocol.transport is Transport.TCP else _MAX_DATAGRAM
    for start in _starts(protocol, samples, size):
        for filler in _FILLERS:
            yield (start + filler * (size // len(filler) + 1))[:size]


def _starts(protocol: Protocol, samples: Sequence[bytes], size: int) -> dict[bytes, None]:
    """Return beginnings of messages: nothing, the prefixes, and the starts of samples up to a size."""
    starts = [b"", *protocol.prefixes[:_STARTS], *(sample[:size] for sample in samples[:_STARTS])]
    return dict.fromkeys(starts)
