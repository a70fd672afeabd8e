"""What one hook has been told, as plain integers that only grow."""

from __future__ import annotations

from dataclasses import dataclass, field

from refractium.contract import Direction


@dataclass(slots=True)
class Tally:
    """Packets and bytes of one direction. ``seen == delivered + dropped + queued``."""

    seen: int = 0
    """Packets that have passed."""
    seen_bytes: int = 0
    delivered: int = 0
    """Packets handed to the hook, whether or not it raised."""
    delivered_bytes: int = 0
    dropped: int = 0
    """Packets that the hook was not told of: they did not fit, or the hook was detached or stopped."""
    dropped_bytes: int = 0

    @property
    def queued(self) -> int:
        """Packets on their way to the hook."""
        return self.seen - self.delivered - self.dropped

    @property
    def queued_bytes(self) -> int:
        """The bytes of those."""
        return self.seen_bytes - self.delivered_bytes - self.dropped_bytes

    def drop(self, size: int) -> None:
        """Count a packet of `size` bytes that the hook is not told of."""
        self.dropped += 1
        self.dropped_bytes += size

    def drop_queued(self) -> None:
        """Count what is on its way as dropped: nobody takes it any more."""
        self.dropped += self.queued
        self.dropped_bytes += self.queued_bytes


@dataclass(slots=True)
class Counters:
    """Of one hook. Each integer has one writer: the data path, or where the hook runs."""

    inbound: Tally = field(default_factory=Tally)
    """From client to backend."""
    outbound: Tally = field(default_factory=Tally)
    """From backend to client."""
    failures: int = 0
    """Exceptions that the hook has raised."""

    def add(self, other: Counters) -> None:
        """Count what another has counted."""
        self.failures += other.failures
        for mine, its in ((self.inbound, other.inbound), (self.outbound, other.outbound)):
            for name in Tally.__slots__:
                setattr(mine, name, getattr(mine, name) + getattr(its, name))

    def tally(self, direction: Direction) -> Tally:
        """That of a direction."""
        return self.inbound if direction is Direction.INBOUND else self.outbound
