"""A packet hook that logs the first bytes of every packet in hexadecimal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from refractium.contract import Direction, HookContext, define_hook, hookimpl

if TYPE_CHECKING:
    from refractium.contract import NoSettings, PacketHook

log = logging.getLogger(__name__)

SHOWN = 64
"""Number of bytes that the hook logs from the start of each packet."""


@define_hook("hexdump", summary="logs the first 64 bytes of every packet")
def hexdump(context: HookContext, direction: Direction, data: bytes) -> None:
    """Log the first bytes of a packet, up to 16 in each line, as ASCII that cannot harm a terminal."""
    head = data[:SHOWN]
    for at in range(0, len(head) or 1, 16):  # an empty datagram gives a line, too
        row = head[at : at + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)  # noqa: PLR2004 - printable
        log.info("%016x %-8s %04x  %-47s  %s", context.session, direction, at, row.hex(" "), text)


@hookimpl
def refractium_hooks() -> list[type[PacketHook[NoSettings]]]:
    """Return the hook ``hexdump``."""
    return [hexdump]
