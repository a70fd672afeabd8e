from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium_hooks_pcap.checksum import checksum, words


def by_the_book(data: bytes) -> int:
    """Compute the checksum as RFC 1071 section 4.1 describes it."""
    total = 0
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) & 1:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_the_example_of_the_rfc() -> None:
    assert checksum(words(bytes.fromhex("0001 f203 f4f5 f6f7"))) == ~0xDDF2 & 0xFFFF


def test_a_known_ipv4_header() -> None:
    header = bytes.fromhex("4500 0073 0000 4000 4011 0000 c0a8 0001 c0a8 00c7")
    assert checksum(words(header)) == 0xB861


@given(st.binary(max_size=1500))
def test_short_data_has_the_checksum_of_the_rfc(data: bytes) -> None:
    assert checksum(words(data)) % 0xFFFF == by_the_book(data) % 0xFFFF
    assert checksum(words(memoryview(data))) == checksum(words(data))


@pytest.mark.parametrize("size", [*range(597, 609), 1448, 65_495, 65_496, 65_497, 65_535, 200_003])
@pytest.mark.parametrize("fill", ["random", "ones"])
def test_long_data_has_the_checksum_of_the_rfc(size: int, fill: str) -> None:
    chance = random.Random(size)  # noqa: S311 - every run must have the same bytes
    data = chance.randbytes(size) if fill == "random" else b"\xff" * size
    assert checksum(words(data)) % 0xFFFF == by_the_book(data) % 0xFFFF
    odd_address = memoryview(b"x" + data)[1:]
    assert checksum(words(odd_address)) == checksum(words(data))


@given(st.lists(st.binary(max_size=700).map(lambda data: data + b"\0" * (len(data) & 1)), max_size=5))
def test_the_sums_of_parts_add_up(parts: list[bytes]) -> None:
    assert checksum(sum(map(words, parts))) == checksum(words(b"".join(parts)))


def test_only_zeros_have_the_checksum_of_a_zero_sum() -> None:
    assert checksum(words(bytes(40))) == 0
    assert checksum(words(bytes(4_000))) == 0


def test_numpy_is_imported_for_long_data_only() -> None:
    program = """
import sys
from refractium_hooks_pcap import checksum, formats, packets, reader
checksum.words(bytes(600))
assert "numpy" not in sys.modules
checksum.words(bytes(601))
assert "numpy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
