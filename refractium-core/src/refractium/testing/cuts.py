"""The ways in which a network can cut a message into pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cuts(data: bytes) -> Iterator[tuple[bytes, ...]]:
    r"""Yield the ways to cut bytes into pieces: whole, in two at each place, and byte by byte.

    TCP keeps no boundaries, so a packet hook and a backend must work for each cut::

        for pieces in cuts(b"KNOCK\n"):
            assert run_hook(CountLines, inbound=pieces).lines == 1

    For protocols, `assert_identifies` itself tries each cut.

    Args:
        data: the bytes; without bytes, there is no piece.

    Yields:
        The pieces, in order. No piece is empty.
    """
    if not data:
        yield ()
        return
    yield (data,)
    for at in range(1, len(data)):
        yield data[:at], data[at:]
    if len(data) > 2:  # noqa: PLR2004 - two bytes have one place for a cut
        yield tuple(data[at : at + 1] for at in range(len(data)))
