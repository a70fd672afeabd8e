"""Collects the first bytes of a client, and limits how often the protocols are asked about these bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

    from refractium.identify import Waiting

PAUSE: Final = 0.02
"""Seconds until the next question, if the bytes do not grow enough for an earlier question."""
_FREE: Final = 64
"""Number of first questions without a limit. A hello of 64 KiB in full segments needs 46 questions."""
_GROWTH: Final = 16
"""After the free questions, a question without a pause needs bytes that have grown by 1/`_GROWTH`."""


class FirstBytes:
    """The first bytes of a client, collected until they decide its route.

    Each question about the bytes costs time in proportion to their size. A client could send its bytes one by
    one, and each byte could cause a question. So after the first questions, `is_due` allows the next question
    only when the bytes have grown by a sixteenth. After less growth, the caller asks only when `PAUSE` has
    passed. The time for all questions is then proportional to the number of bytes and to the seconds.

    Args:
        data: the bytes so far.

    Attributes:
        size: number of the bytes.
        is_matched: `Waiting.is_matched` of the last answer.
        pause: timer of the pause before the next question; None outside of a pause.
        grace: timer of `Settings.peek_grace_ms`; None while no match waits for stronger protocols.
    """

    __slots__ = ("_asked", "_at", "_bytes", "_questions", "grace", "is_matched", "pause", "size")

    def __init__(self, data: bytes) -> None:
        self._bytes = bytearray(data)  # a list of small pieces would take twenty times as much memory
        self.size = len(data)
        self._asked = self._at = 0
        self._questions = 0
        self.is_matched = False
        self.pause: asyncio.TimerHandle | None = None
        self.grace: asyncio.TimerHandle | None = None

    def add(self, chunk: bytes) -> None:
        """Append bytes that the client has sent."""
        self._bytes += chunk
        self.size += len(chunk)

    def data(self) -> bytes:
        """Return all bytes."""
        return bytes(self._bytes)

    def asked(self, waiting: Waiting) -> None:
        """Record a question about all bytes, and its answer."""
        self._questions += 1
        self._asked = self.size
        self._at = waiting.at
        self.is_matched = waiting.is_matched

    @property
    def is_worth_a_question(self) -> bool:
        """Whether the bytes since the last question may allow a decision."""
        return self.size >= self._at

    @property
    def is_due(self) -> bool:
        """Whether the caller should ask now. If not, the caller should ask after a pause."""
        if self.size < self._at:
            return False
        return self._questions < _FREE or self.size >= self._asked + self._asked // _GROWTH

    def close(self) -> None:
        """Cancel the timers."""
        for timer in (self.pause, self.grace):
            if timer is not None:
                timer.cancel()
