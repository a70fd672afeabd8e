"""Hooks that misbehave or record events, as classes of a module, so that a hook process can import them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from refractium.contract import HookContext, PacketHook, SessionStats, Transport
from refractium.hooks.clock import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from refractium.contract import Direction, Event

PATIENCE = 60.0
"""Seconds after which anything counts as hung."""

RELEASE = threading.Event()
"""The event that releases hooks that block in a thread."""


def context(session: int = 1, **changed: Any) -> HookContext:
    """Return the context of a session, as the data path makes it."""
    fields: dict[str, Any] = {
        "transport": Transport.TCP,
        "protocol": "http",
        "route": "http",
        "client": ("192.0.2.1", 40_000),
        "backend": ("127.0.0.1", 8000),
        "metadata": {"host": "example.com", "alpn": ("h2", "http/1.1"), "secure": False},
        "started": timestamp(),
    }
    return HookContext(session=session, **{**fields, **changed})


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until a condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - counters and files have no event for a change
            await asyncio.sleep(0.002)


class At(Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of a hook that writes to a file for the test."""

    path: str = ""


class Told(Struct, array_like=True):
    """A line that a recording hook writes for one call or event."""

    what: str
    session: int
    direction: str = ""
    data: bytes = b""
    offset: int = 0
    time: int = 0
    metadata: dict[str, Any] = {}
    ended: str = ""
    inbound: int = 0
    outbound: int = 0


def read(path: Path) -> list[Told]:
    """Return the whole lines that a hook has written."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Told) for line in lines]


class Ignoring(PacketHook[Any]):
    """A hook that receives packets and does nothing."""

    name = "ignoring"

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None: ...


class IgnoringApart(Ignoring):
    isolation = "process"


class _Writing(PacketHook[At]):
    settings_type = At

    def start(self) -> None:
        self._file = Path(self.settings.path).open("ab", buffering=0)  # noqa: SIM115 - closed in stop
        self.write(Told("start", 0))

    def write(self, told: Told) -> None:
        self._file.write(msgspec.json.encode(told) + b"\n")

    def stop(self) -> None:
        self.write(Told("stop", 0))
        self._file.close()


class Recording(_Writing):
    """A hook that records each single event in a file."""

    name = "recording"

    def on_open(self, context: HookContext) -> None:
        self.write(Told("open", context.session, metadata=context.metadata))

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        self.write(Told("packet", context.session, direction, data))

    def on_close(self, context: HookContext, stats: SessionStats) -> None:
        self.write(
            Told(
                "close",
                context.session,
                ended=stats.ended,
                inbound=stats.inbound,
                outbound=stats.outbound,
            )
        )


class RecordingBatches(_Writing):
    """A hook that records the events of batches in a file."""

    name = "recording-batches"

    def on_batch(self, events: Sequence[Event]) -> None:
        for event in events:
            stats = event.stats or SessionStats(0, 0, 0, "")
            self.write(
                Told(
                    event.kind.name.lower(),
                    event.context.session,
                    event.direction,
                    event.data,
                    event.offset,
                    event.time,
                    event.context.metadata,
                    stats.ended,
                    stats.inbound,
                    stats.outbound,
                )
            )


class Obeying(Recording):
    """A hook that obeys the commands in packets."""

    name = "obeying"
    queue_bytes = 65_536

    def on_packet(self, context: HookContext, direction: Direction, data: bytes) -> None:
        super().on_packet(context, direction, data)
        match data:
            case b"raise":
                raise ValueError("as told")
            case b"exit":
                sys.exit("as told")
            case b"interrupt":
                raise KeyboardInterrupt
            case b"die":
                os._exit(7)
            case b"kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"block":
                RELEASE.wait()
            case b"nap":
                time.sleep(0.02)
            case b"print":
                print("printed by the hook")  # noqa: T201 - what the hook is for
                sys.stdout.flush()


class Talking(Ignoring):
    """A hook that logs, prints or warns as packets command, with bytes that would control a terminal."""

    name = "talking"

    def on_packet(self, _context: HookContext, _direction: Direction, data: bytes) -> None:
        word = data.decode()
        getattr(self, word)(f"{word} \x9b2J")

    def logged(self, text: str) -> None:
        logging.getLogger("talking").warning("%s", text)

    def debugged(self, text: str) -> None:
        logging.getLogger("refractium.talking").debug("%s", text)

    def printed(self, text: str) -> None:
        print(text, file=sys.stderr)  # noqa: T201 - what the hook is for

    def half(self, text: str) -> None:
        sys.stderr.write(text)

    def bytes(self, text: str) -> None:
        sys.stderr.buffer.write(text.encode("latin-1") + b"\n")
        sys.stderr.flush()

    def warned(self, text: str) -> None:
        warnings.warn(text, stacklevel=1)

    def thread(self, _text: str) -> None:
        """Fail in a thread."""
        thread = threading.Thread(target=Raising.on_packet, args=(self,))
        thread.start()
        thread.join()

    def handled(self, text: str) -> None:
        """Configure logging, as some libraries do, and log."""
        logging.basicConfig(force=True)
        self.logged(text)

    def fork(self, text: str) -> None:
        pid = os.fork()
        if not pid:
            self.logged(text)
            os._exit(0)
        os.waitpid(pid, 0)


class NotStarting(Ignoring):
    name = "not-starting"

    def start(self) -> None:
        raise OSError(13, "Permission denied")


class NotReadable(Ignoring):
    """A hook that starts, but raises an exception when Refractium reads its method."""

    name = "not-readable"

    @property
    def on_packet(self) -> Any:
        raise SystemExit(4)


class NotMade(Ignoring):
    name = "not-made"

    def __init__(self, _settings: Any) -> None:
        sys.exit(3)


class NotStopping(Recording):
    """A hook that blocks when it is stopped."""

    name = "not-stopping"

    def stop(self) -> None:
        RELEASE.wait()
        super().stop()


class Blocking(Ignoring):
    """A hook that blocks at the first packet."""

    name = "blocking"
    queue_bytes = 1024 * 1024

    def on_packet(self, *_: object) -> None:
        RELEASE.wait()


class Sleeping(Ignoring):
    """A hook that takes a millisecond for each packet."""

    name = "sleeping"
    queue_bytes = 256 * 1024

    def on_packet(self, *_: object) -> None:
        time.sleep(0.001)


class Raising(Ignoring):
    """A hook that raises at every packet."""

    name = "raising"
    queue_bytes = 256 * 1024

    def on_packet(self, *_: object) -> None:
        raise ValueError("always")


class Computing(Ignoring):
    """A hook that takes milliseconds of processor time for each packet."""

    name = "computing"
    queue_bytes = 65_536

    def on_packet(self, *_: object) -> None:
        for _turn in range(200_000):
            pass


class Hoarding(Ignoring):
    """A hook that keeps all events."""

    name = "hoarding"
    queue_bytes = 65_536

    def start(self) -> None:
        self._kept: list[object] = []

    def on_batch(self, events: Sequence[Event]) -> None:
        self._kept.append(events)


class FailingToTellWhy(Ignoring):
    """A hook that raises an exception whose text cannot be made."""

    name = "failing"

    def on_packet(self, *_: object) -> None:
        raise _WithoutText


class _WithoutText(Exception):  # noqa: N818 - never leaves this module
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unnamed:
    """A maker of a class that cannot be found by its name."""

    @staticmethod
    def make() -> type[Ignoring]:
        class Local(Ignoring):
            isolation = "process"

        return Local
