"""Random programs for both ends of a connection; a seed and a number always give the same programs."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["exact", "regex", "http", "fallback", "silent", "reset", "gone", "dead"]
Reading = Literal["eager", "slow", "late", "never"]
Ending = Literal["shut", "leave", "close", "reset"]

PREFIXES: Final[dict[Kind, bytes]] = {
    "exact": b"\xf0\x0d\x01#%08d;",
    "regex": b"HELLO 1 #%08d;",
    "http": b"GET / HTTP/1.1\r\nHost: fuzz.example\r\nX-Number: #%08d;\r\n\r\n",
    "fallback": b"\xff\xfe#%08d;",
    "silent": b"\xf0\x0d\x05#%08d;",
    "reset": b"\xf0\x0d\x02#%08d;",
    "gone": b"\xf0\x0d\x03#%08d;",
    "dead": b"\xf0\x0d\x04#%08d;",
}
"""The first bytes of a client and the number of the connection, for each route that they lead to.

Three routes have bad backends: `reset` resets each connection when it accepts it, `gone` closes it, and at
`dead` nobody listens.
"""
_WEIGHTS: Final = (24, 24, 14, 20, 3, 5, 5, 5)
NUMBER: Final = re.compile(rb"#(\d{8});")
PEEK_MS: Final = 300
"""The peek timeout of the instance; silent clients wait a little longer before they send."""

_SIZES: Final = (1, 100, 1_500, 8_000, 40_000, 150_000, 500_000, 3_000_000)
_SIZE_WEIGHTS: Final = (16, 30, 20, 14, 10, 6, 3, 2)
_BULK: Final = 4_000_000
_MOST: Final = 4_000_000
_MOST_TO_SLOW: Final = 40_000
"""Most bytes that are sent to an end that reads slowly. A MiB would take minutes."""
_MOST_BY_WINDOW: Final = {1: 8_000, 4_096: 60_000}
"""Most bytes that are sent to an end, by its receive buffer (bytes). A closed window costs 200 ms."""
_BLOCK: Final = random.Random("block").randbytes(16 << 20)  # noqa: S311 - test data
"""The source of all streams. Two streams begin at different offsets of this block, so their bytes differ."""


@dataclass(frozen=True)
class Step:
    """One action of an end: send bytes, send bytes of which the last is urgent, or pause for `ms`."""

    what: Literal["send", "urgent", "pause"]
    amount: int

    def __str__(self) -> str:
        return f"{self.what} {self.amount}"


@dataclass(frozen=True)
class Program:
    """The behaviour of one end.

    Attributes:
        steps: its first actions, one after the other; it reads meanwhile.
        reading: when it reads: at once, in small pieces with pauses, after `reading_ms`, or never.
        reading_ms: delay (ms) before it reads, or pause (ms) between pieces.
        piece: most bytes of one read.
        ending: its action after the last step: `shut` ends the sending side and reads until the peer ends;
            `leave` ends the sending side and closes after `leave_ms`; `close` closes; `reset` resets.
        deadline_ms: time (ms) after which it ends, even with unsent bytes; 0: no deadline.
        leave_ms: time (ms) from the end of its sending side to its close.
        resets: whether it leaves by a reset.
        receive_buffer: SO_RCVBUF (bytes); 0: the kernel chooses.
        send_buffer: SO_SNDBUF (bytes); 0: the kernel chooses.
        inline: SO_OOBINLINE.
    """

    steps: tuple[Step, ...]
    reading: Reading
    reading_ms: int
    piece: int
    ending: Ending
    deadline_ms: int
    leave_ms: int
    resets: bool
    receive_buffer: int
    send_buffer: int
    inline: bool

    @property
    def total(self) -> int:
        """The number of bytes that this end sends."""
        return sum(step.amount for step in self.steps if step.what != "pause")

    @property
    def is_orderly(self) -> bool:
        """Whether the end sends everything, ends its sending side and reads until its peer has ended."""
        return self.ending == "shut"

    def __str__(self) -> str:
        reading: str = self.reading
        if self.reading == "slow":
            reading += f", {self.piece} bytes each {self.reading_ms} ms"
        elif self.reading == "late":
            reading += f", after {self.reading_ms} ms"
        words = [", ".join(map(str, self.steps)) or "send nothing", f"read {reading}", f"then {self.ending}"]
        if self.ending == "leave":
            words.append(f"{'reset' if self.resets else 'close'} after {self.leave_ms} ms more")
        if self.deadline_ms:
            words.append(f"at the latest after {self.deadline_ms} ms")
        if self.receive_buffer or self.send_buffer:
            words.append(f"buffers {self.receive_buffer} and {self.send_buffer}")
        return "; ".join(words)


@dataclass(frozen=True)
class Plan:
    """One connection: the route that the client asks for, and the programs of both ends.

    Attributes:
        number: the number of the connection.
        kind: the kind of the client's first bytes, which choose the route.
        client: the program of the client.
        backend: the program of the backend.
        up: the bytes that the client sends.
        down: the bytes that the backend sends.
    """

    number: int
    kind: Kind
    client: Program
    backend: Program
    up: bytes
    down: bytes

    @classmethod
    def random(cls, seed: object, number: int) -> Plan:
        """Draw the plan of a connection."""
        rng = random.Random(f"{seed} {number}")  # noqa: S311 - test data
        (kind,) = rng.choices(tuple(PREFIXES), _WEIGHTS)
        prefix = PREFIXES[kind] % number
        ours, theirs = _Habits(rng), _Habits(rng)
        if rng.random() < 0.06:
            rng.choice((ours, theirs)).tear(rng)
        client = _program(rng, ours, theirs, prefix, kind)
        backend = _program(rng, theirs, ours, b"", kind)
        return cls(
            number=number,
            kind=kind,
            client=client,
            backend=backend,
            up=(prefix + _stream(rng, client.total))[: client.total],
            down=_stream(rng, backend.total),
        )

    def __str__(self) -> str:
        return f"connection {self.number} ({self.kind})\n  client: {self.client}\n  backend: {self.backend}"


class _Habits:
    """The way in which an end reads and ends; the program of its peer depends on it."""

    def __init__(self, rng: random.Random) -> None:
        ending: tuple[Ending, ...] = ("shut", "leave", "close", "reset")
        (self.ending,) = rng.choices(ending, (70, 8, 11, 11))
        reading: tuple[Reading, ...] = ("eager", "slow", "late", "never")
        (self.reading,) = rng.choices(reading, (60, 13, 15, 12))
        if self.ending == "shut" and self.reading == "never":
            self.reading = "late"
        self.receive_buffer = rng.choice((0, 0, 0, 0, 1, 4_096, 65_536))
        self.is_torn = False

    def tear(self, rng: random.Random) -> None:
        """Receive bulk, and leave while the proxy holds some of it."""
        self.is_torn = True
        endings: tuple[Ending, ...] = ("close", "reset")
        readings: tuple[Reading, ...] = ("eager", "late", "never")
        self.ending, self.reading = rng.choice(endings), rng.choice(readings)
        self.receive_buffer = 0

    @property
    def most(self) -> int:
        """Most bytes that the peer sends to an end with these habits."""
        by_reading = _MOST_TO_SLOW if self.reading == "slow" else _MOST
        return min(by_reading, _MOST_BY_WINDOW.get(self.receive_buffer, _MOST))


def _program(rng: random.Random, mine: _Habits, peer: _Habits, prefix: bytes, kind: Kind) -> Program:
    steps = _steps(rng, prefix, peer.most)
    if peer.is_torn:
        steps.append(Step("send", _BULK))
    if kind == "silent" and prefix:
        steps.insert(0, Step("pause", PEEK_MS + 200))
        if rng.random() < 0.3:
            steps = steps[:1]
    may_be_early = mine.ending in {"close", "reset"} and (mine.is_torn or rng.random() < 0.5)
    return Program(
        steps=tuple(steps),
        reading=mine.reading,
        reading_ms=rng.choice((1, 2, 5)) if mine.reading == "slow" else rng.choice((5, 50, 200)),
        piece=rng.choice((1_000, 5_000, 20_000)) if mine.reading == "slow" else 262_144,
        ending=mine.ending,
        deadline_ms=rng.choice((1, 5, 20, 100, 300)) if mine.reading == "never" or may_be_early else 0,
        leave_ms=rng.choice((0, 1, 10, 100)),
        resets=rng.random() < 0.5,
        receive_buffer=mine.receive_buffer,
        send_buffer=rng.choice((0, 0, 0, 4_096, 65_536)),
        inline=rng.random() < 0.5,
    )


def _steps(rng: random.Random, prefix: bytes, most: int) -> list[Step]:
    """Draw the steps that send bytes; at least all bytes of a prefix, if there is one."""
    steps = []
    if prefix and rng.random() < 0.15:
        for _ in range(rng.randint(1, len(prefix))):
            steps.append(Step("urgent" if rng.random() < 0.1 else "send", 1))
            if rng.random() < 0.2:
                steps.append(Step("pause", 1))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        roll = rng.random()
        if roll < 0.2:
            steps.append(Step("pause", rng.choice((0, 1, 5, 20, 60))))
        elif roll < 0.3:
            size = rng.choice((1, 1, 1, 200, 70_000, 300_000))
            steps.append(Step("urgent", min(most, size)))
            most = max(1, most - size)
        else:
            (size,) = rng.choices(_SIZES, _SIZE_WEIGHTS)
            steps.append(Step("send", min(most, size)))
            most = max(1, most - size)
    missing = len(prefix) - sum(step.amount for step in steps if step.what != "pause")
    if missing > 0:
        steps.insert(rng.randint(0, len(steps)), Step("send", missing))
    return steps


def _stream(rng: random.Random, size: int) -> bytes:
    begin = rng.randrange(len(_BLOCK) - size)
    return _BLOCK[begin : begin + size]
