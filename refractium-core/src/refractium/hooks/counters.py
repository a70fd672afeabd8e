"""Counters of one hook. In the proxy, each counter is an integer that only grows."""

from __future__ import annotations

from dataclasses import dataclass, field

from refractium.contract import Direction


@dataclass(slots=True)
class Tally:
    """Packets and bytes of one hook in one direction. ``seen == delivered + dropped + queued``."""

    seen: int = 0
    """Packets that have passed through the data path."""
    seen_bytes: int = 0
    delivered: int = 0
    """Packets passed to the hook, including packets for which the hook raised an exception."""
    delivered_bytes: int = 0
    dropped: int = 0
    """Packets that the hook did not receive, for example because the queue had no room or the hook was
    detached or stopped."""
    dropped_bytes: int = 0

    @property
    def queued(self) -> int:
        """Packets that wait for delivery to the hook."""
        return self.seen - self.delivered - self.dropped

    @property
    def queued_bytes(self) -> int:
        """Bytes of the packets that wait for delivery to the hook."""
        return self.seen_bytes - self.delivered_bytes - self.dropped_bytes

    def drop(self, size: int) -> None:
        """Count a packet of `size` bytes as dropped."""
        self.dropped += 1
        self.dropped_bytes += size

    def drop_queued(self) -> None:
        """Count all waiting packets as dropped, because the hook will not receive these packets."""
        self.dropped += self.queued
        self.dropped_bytes += self.queued_bytes


@dataclass(slots=True)
class HookCounters:
    """Counters of one hook. Only the data path, or only the hook's thread or process, writes each integer."""

    inbound: Tally = field(default_factory=Tally)
    """From client to backend."""
    outbound: Tally = field(default_factory=Tally)
    """From backend to client."""
    failures: int = 0
    """Exceptions that the hook has raised."""

    def add(self, other: HookCounters) -> None:
        """Add the counts of `other` to these counts."""
        self.failures += other.failures
        for mine, its in ((self.inbound, other.inbound), (self.outbound, other.outbound)):
            for name in Tally.__slots__:
                setattr(mine, name, getattr(mine, name) + getattr(its, name))

    def tally(self, direction: Direction) -> Tally:
        """Return the tally of a direction."""
        return self.inbound if direction is Direction.INBOUND else self.outbound
