"""The ways to cut bytes into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.testing import cuts


@pytest.mark.parametrize(
    ("data", "ways"),
    [
        (b"", [()]),
        (b"a", [(b"a",)]),
        (b"ab", [(b"ab",), (b"a", b"b")]),
        (b"abc", [(b"abc",), (b"a", b"bc"), (b"ab", b"c"), (b"a", b"b", b"c")]),
    ],
)
def test_the_ways_are_the_whole_each_place_and_each_byte(data: bytes, ways: list[tuple[bytes, ...]]) -> None:
    assert list(cuts(data)) == ways


@given(st.binary(max_size=40))
def test_every_way_has_all_bytes_in_order_and_no_empty_piece(data: bytes) -> None:
    ways = list(cuts(data))
    assert all(b"".join(pieces) == data and all(pieces) for pieces in ways)
    assert len(set(ways)) == len(ways)
