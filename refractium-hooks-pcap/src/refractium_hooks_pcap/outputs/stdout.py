"""Stdout as an output, for a program behind a pipe: ``refractium ... | wireshark -k -i -``."""

from __future__ import annotations

import logging
import os
import select
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium_hooks_pcap.outputs.records import Form
    from refractium_hooks_pcap.packets import Packet

log = logging.getLogger(__name__)

_STDOUT: Final = 1


class Stdout:
    """An output to stdout that waits for a slow reader.

    After a failed write, for example because the reader has closed the pipe, all further packets are lost.

    Args:
        form: the format of packets.
        fd: the descriptor to write to; stdout by default.

    Attributes:
        lost: number of packets that could not be written.
    """

    def __init__(self, form: Form, fd: int = _STDOUT) -> None:
        self.lost = 0
        self._fd = fd
        self._writer = form.writer()
        self._ahead = self._writer.begin()
        self._is_open = True

    def write(self, packets: Sequence[Packet]) -> None:
        """Write packets, in order."""
        if self._is_open:
            self._write(b"".join(map(self._writer.record, packets)))
        if not self._is_open:
            self.lost += len(packets)

    def close(self) -> None:
        """Write the header if no packet was written, so that the reader gets an empty capture."""
        if self._is_open:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        left = memoryview(self._ahead + data)
        self._ahead = b""
        try:
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # another process that shares stdout has made stdout non-blocking
                    select.select((), (self._fd,), ())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_open = False
        log.error("cannot write to stdout, all further packets are lost: %s", error.strerror)
