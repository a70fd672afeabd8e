"""Stdout, for a program behind a pipe: ``refractium ... | wireshark -k -i -``."""

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
    """Writes to stdout, and waits for whoever reads there. When nobody does any more, all the rest is lost.

    Args:
        form: of what is written.
        fd: instead of stdout.

    Attributes:
        lost: packets that could not be written.
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
        """If nothing was written, make it a capture of nothing."""
        if self._is_open:
            self._write(b"")

    def _write(self, data: bytes) -> None:
        left = memoryview(self._ahead + data)
        self._ahead = b""
        try:
            while left:
                try:
                    left = left[os.write(self._fd, left) :]
                except BlockingIOError:  # somebody who shares it has made it so
                    select.select((), (self._fd,), ())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._is_open = False
        log.error("cannot write to stdout any more, packets are lost: %s", error.strerror)
