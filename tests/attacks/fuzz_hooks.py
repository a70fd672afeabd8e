"""The hooks of the fuzz: one ignores all packets, in a thread; the other reads every packet, in a process."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from refractium.contract import NoSettings, PacketHook, hookimpl

if TYPE_CHECKING:
    from refractium.contract import Direction, HookContext, SessionStats


class Passing(PacketHook[NoSettings]):
    """A hook in a thread of the proxy that receives all events and does nothing."""

    name = "passing"

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None: ...


class Reading(PacketHook[NoSettings]):
    """A hook in a process of its own that reads every byte."""

    name = "reading"
    isolation = "process"

    def start(self) -> None:
        self._digests: dict[int, hashlib._Hash] = {}

    def on_open(self, context: HookContext) -> None:
        self._digests[context.session] = hashlib.sha256()

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        del direction
        self._digests[context.session].update(data)

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        del stats
        del self._digests[context.session]


@hookimpl
def refractium_hooks() -> list[type[PacketHook[NoSettings]]]:
    return [Passing, Reading]
