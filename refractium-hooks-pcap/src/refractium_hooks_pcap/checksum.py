"""The checksum of IP, TCP and UDP (RFC 1071), as a sum of which the parts can be made beforehand.

Ones' complement addition of 16-bit words is addition modulo 65,535, and there 65,536 is 1. So whatever is a
whole number of words (an address, a sequence number, all of a packet) counts as the one big-endian integer
that it is, carries need no care, and sums are plain integers that are added up and reduced once, at the end.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG: Final = 600
"""Bytes from which numpy is faster: it takes 1.2 us and 0.07 us for each KiB, int 0.1 us and 1.8 us."""


def words(data: bytes | memoryview) -> int:
    """What bytes add to a sum. To an odd number of them a zero byte is added, as RFC 1071 wants."""
    size = len(data)
    if size > _LONG:
        return _long()(data, size)
    return int.from_bytes(data, "big") << 8 if size & 1 else int.from_bytes(data, "big")


def checksum(total: int) -> int:
    """The field that stands for a sum: its ones' complement, 0 to 65,534."""
    return -total % 65_535


@cache
def _long() -> Callable[[bytes | memoryview, int], int]:
    """`words` of many bytes. numpy is imported when the first of these come: it takes 0.1 s."""
    import numpy as np  # noqa: PLC0415 - see above

    word, wide, frombuffer, add = np.dtype("<u4"), np.dtype("<u8"), np.frombuffer, np.add.reduce

    def long(data: bytes | memoryview, size: int) -> int:
        # Little-endian, because numpy adds that twice as fast: the sum of swapped words is the swapped sum
        # (RFC 1071 section 2 (B)), and to multiply by 256 modulo 65,535 swaps it back.
        whole = size & ~3
        total = int(add(frombuffer(data, word, whole >> 2), dtype=wide)) << 8
        return total + words(data[whole:]) if size & 3 else total

    return long
