"""The runner of a hook in a separate process, to which the runner sends events through a pipe.

The process is a new interpreter, not a fork, so it inherits no socket and no lock of the proxy. Events that
do not fit into the pipe stay in the queue. The process ends at the end of the pipe. If the proxy is killed,
the process first handles the events in the pipe, and then ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from refractium.contract import Direction, EventKind
from refractium.hooks.delivery import ITEM_BYTES
from refractium.hooks.frames import HEADER, HURRY, START, Receipt, Start, encode
from refractium.hooks.memory import keep_freed_memory
from refractium.hooks.runner import (
    EXTRA_SECONDS,
    FLUSH_SECONDS,
    LOOK_SECONDS,
    STOP_SECONDS,
    Runner,
    RunnerState,
)
from refractium.logs import style_in_use
from refractium.system.modules import source_of

if TYPE_CHECKING:
    from msgspec import Struct

    from refractium.contract import HookContext, PacketHook, SessionStats

log = logging.getLogger(__name__)

_PIPE_BYTES: Final = 1024 * 1024
"""Size of the events pipe (bytes): the largest size for an unprivileged user (pipe(7), pipe-max-size)."""
_BUFFERS_AT_ONCE: Final = 512
"""Largest number of buffers in one write: less than IOV_MAX (writev(2))."""
_BUFFER_BYTES: Final = ITEM_BYTES // 2
"""Bytes that the queue counts for a buffer in addition to the buffer's length. An event has two buffers:
header and body."""
_EVENT_BYTES: Final = ITEM_BYTES + HEADER.size
"""Bytes that the queue counts for an event in addition to the event's body."""
_ENOUGH: Final = 262_144
"""When the events since the last flush reach this size (bytes), the runner flushes the queue at once. One
turn of the data path can pass more bytes than fit into pipe and queue together. Besides, a flush at once
finds the bytes in the cache of the processor."""
_RESTARTS: Final = 5
"""Largest number of restarts in a row. If the process then dies once more, the runner detaches the hook."""
_FIRST_PAUSE: Final = 0.1
"""Seconds before the first restart. The pause doubles with each further restart."""
_STEADY: Final = 60.0
"""Lifetime of a process (s) after which its death starts a new count of deaths."""
_RECEIPTS_AT_ONCE: Final = 65_536

_RUNNABLE: Final = "R"
_TICKS: Final = os.sysconf("SC_CLK_TCK")

_pack: Final = HEADER.pack
_INBOUND: Final = Direction.INBOUND
_PACKET: Final = EventKind.PACKET
_END: Final = EventKind.END


class ProcessRunner(Runner):
    """A runner that runs the hook in a child process, and starts a new child if the child dies.

    The new child receives no events of earlier sessions: a hook cannot use a stream without its beginning.

    Raises:
        ValueError: the child cannot import the class, or the settings cannot be sent to the child.
    """

    def __init__(self, hook: type[PacketHook[Any]], settings: Struct) -> None:
        super().__init__(hook, settings)
        _require_importable(hook)
        self._encoded_settings = _encode_settings(hook, settings)
        self._buffers: deque[bytes | memoryview] = deque()
        self._child: subprocess.Popen[bytes] | None = None
        self._events_fd = -1
        self._receipts_fd = -1
        self._flush_at = 0
        self._waits_for_room = False
        self._receipts = b""
        self._child_ended = asyncio.Event()
        self._finishing = asyncio.Event()
        self._may_use = STOP_SECONDS

    def start(self) -> None:
        keep_freed_memory()
        self._loop = asyncio.get_running_loop()
        self._ended.clear()
        self._begin()
        self._task = self._loop.create_task(self._serve())

    def put(
        self,
        kind: EventKind,
        time: int,
        context: HookContext,
        direction: Direction = _INBOUND,
        data: bytes = b"",
        offset: int = 0,
        stats: SessionStats | None = None,
    ) -> None:
        if kind is not _PACKET and kind is not _END:
            data = encode(context if stats is None else stats)
        size = len(data)
        self._buffers.append(_pack(kind, direction is not _INBOUND, size, context.session, time, offset))
        self._buffers.append(data)
        self.put_bytes += _EVENT_BYTES + size
        if self.put_bytes >= self._flush_at:
            self._flush()
        elif not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_later(FLUSH_SECONDS, self._flush)

    # Starts and ends of the children

    async def _serve(self) -> None:
        """Keep a child running until the hook is stopped or detached."""
        deaths = 0
        try:
            while True:
                began = time.monotonic()
                how = await self._run_child()
                self._shut()
                self._drop_queue()
                if self.state is not RunnerState.RUNNING:
                    return
                deaths = deaths + 1 if time.monotonic() - began < _STEADY else 1
                if deaths > _RESTARTS:
                    self._detach(f"its process {how}, for the {deaths}th time")
                    return
                pause = _FIRST_PAUSE * 2 ** (deaths - 1)
                log.warning("hook %s: its process %s; a new one in %.1f s", self.name, how, pause)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._finishing.wait()
                        return
                self._begin()
        finally:
            self._ended.set()

    def _begin(self) -> None:
        """Queue the `Start` frame for a new child, and accept events."""
        start = encode(
            Start(
                module=self._hook.__module__,
                qualname=self._hook.__qualname__,
                settings=self._encoded_settings,
                path=sys.path,
                levels={name: logging.getLogger(name).getEffectiveLevel() for name in ("root", "refractium")},
                style=style_in_use(),
                source=source_of(self._hook.__module__),
            )
        )
        self._buffers.extend((_pack(START, 0, len(start), 0, 0, 0), start))
        self.put_bytes += _EVENT_BYTES + len(start)
        self._is_flush_due = True  # `_run_child` flushes when the child runs
        self._is_accepting = True

    async def _run_child(self) -> str:
        """Start a child and wait for its end. Return how the child ended, in words for a log line."""
        self._receipts = b""
        self._child_ended.clear()
        try:
            # In a thread, because the start of a process takes milliseconds.
            child, events, receipts = await self._loop.run_in_executor(None, _spawn)
        except OSError as error:
            return f"cannot be started ({error.strerror or error})"
        self._child, self._events_fd, self._receipts_fd = child, events, receipts
        self._loop.add_reader(receipts, self._read_receipts)
        self._flush()
        try:
            await self._child_ended.wait()
        finally:
            self._close_events()
            self._loop.remove_reader(receipts)
            os.close(receipts)
        code = await self._loop.run_in_executor(None, _reap, child)
        return f"was killed by signal {-code}" if code < 0 else f"has exited with {code}"

    def _finish(self) -> None:
        self._finishing.set()
        self._allow_processor_time()
        self._flush()

    def _allow_processor_time(self) -> None:
        """Allow the child `STOP_SECONDS` of processor time, counted from now."""
        if self._child is not None:
            self._may_use = _usage(self._child.pid)[1] + STOP_SECONDS

    def _is_kept_waiting(self) -> bool:
        return self._child is not None and _waits_for_processor(self._child.pid, self._may_use)

    def _hurry(self) -> None:
        self._close_events()
        self._allow_processor_time()
        if self._child is not None:
            self._child.send_signal(HURRY)

    async def _give_up(self) -> None:
        self._kill()
        await self._task

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
        self._child_ended.set()

    # Events to the child

    def _flush(self) -> None:
        """Write as much of the queue as fits into the pipe. Write the rest when the pipe has room."""
        self._flush_at = self.put_bytes + _ENOUGH
        if self._events_fd < 0:
            return
        buffers = self._buffers
        if buffers:
            try:
                self._written(os.writev(self._events_fd, list(islice(buffers, _BUFFERS_AT_ONCE))))
            except BlockingIOError:
                pass
            except OSError:
                # The child has ended. `_read_receipts` notices the end of the child's receipts.
                self._wait_for_room(wait=False)
                return
        self._is_flush_due = bool(buffers)
        self._wait_for_room(wait=bool(buffers))
        if not buffers and self._finishing.is_set():
            self._close_events()

    def _written(self, count: int) -> None:
        """Remove the first `count` bytes from the queue."""
        buffers = self._buffers
        if count == self.put_bytes - self.taken_bytes - len(buffers) * _BUFFER_BYTES:  # all: the usual case
            buffers.clear()
            self.taken_bytes = self.put_bytes
            return
        while buffers:
            size = len(buffers[0])
            if size > count:
                buffers[0] = memoryview(buffers[0])[count:]
                self.taken_bytes += count
                return
            buffers.popleft()
            self.taken_bytes += size + _BUFFER_BYTES
            count -= size

    def _wait_for_room(self, *, wait: bool) -> None:
        if wait and not self._waits_for_room:
            self._loop.add_writer(self._events_fd, self._flush)
        elif self._waits_for_room and not wait:
            self._loop.remove_writer(self._events_fd)
        self._waits_for_room = wait

    def _close_events(self) -> None:
        """Close the events pipe, so that the child ends after it has read the rest of the pipe."""
        if self._events_fd >= 0:
            self._wait_for_room(wait=False)
            os.close(self._events_fd)
            self._events_fd = -1

    def _drop_queue(self) -> None:
        """Clear the queue. Count as dropped all packets without a receipt."""
        self.counters.inbound.drop_queued()
        self.counters.outbound.drop_queued()
        self._buffers.clear()
        self.taken_bytes = self.put_bytes

    # Receipts from the child

    def _read_receipts(self) -> None:
        try:
            chunk = os.read(self._receipts_fd, _RECEIPTS_AT_ONCE)
        except BlockingIOError:
            return
        *lines, self._receipts = (self._receipts + chunk).split(b"\n")
        for line in lines:
            try:
                self._take_receipt(msgspec.json.decode(line, type=Receipt))
            except msgspec.MsgspecError as error:
                log.warning("hook %s: its process sent a report that cannot be read: %s", self.name, error)
        if not chunk:
            self._loop.remove_reader(self._receipts_fd)
            self._child_ended.set()

    def _take_receipt(self, receipt: Receipt) -> None:
        counters = self.counters
        for tally, (packets, size) in (
            (counters.inbound, receipt.inbound),
            (counters.outbound, receipt.outbound),
        ):
            tally.delivered += packets
            tally.delivered_bytes += size
        counters.failures += receipt.failures
        if receipt.detached:
            self._detach(receipt.detached)
            self._close_events()
            self._drop_queue()
            self._loop.call_later(STOP_SECONDS, self._kill)


def _spawn() -> tuple[subprocess.Popen[bytes], int, int]:
    """Start a child. Return the child, and the proxy's ends of the events pipe and of the receipts pipe.

    The two ends do not block.

    Raises:
        OSError: the child cannot be started.
    """
    with ExitStack() as ours, ExitStack() as childs:
        events_of_child, events = _pipe(reader=childs, writer=ours)
        receipts, receipts_of_child = _pipe(reader=ours, writer=childs)
        os.set_blocking(events, False)
        os.set_blocking(receipts, False)
        with suppress(OSError):  # the user's pipes may have reached their limit: a small pipe suffices
            fcntl.fcntl(events, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        child = subprocess.Popen(  # noqa: S603 - nothing of the command comes from outside
            [
                sys.executable,
                "-P",  # import no module from the working directory
                "-m",
                "refractium.hooks.child",
                str(events_of_child),
                str(receipts_of_child),
            ],
            stdin=subprocess.DEVNULL,
            pass_fds=(events_of_child, receipts_of_child),
            process_group=0,  # so that Ctrl-C reaches the proxy only
        )
        ours.pop_all()
        return child, events, receipts


def _pipe(*, reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Make a pipe, and let the stacks close its ends. Return the reading end and the writing end."""
    read, write = os.pipe()
    reader.callback(os.close, read)
    writer.callback(os.close, write)
    return read, write


def _reap(child: subprocess.Popen[bytes]) -> int:
    """Wait for the exit of a child that has closed its receipts pipe. Kill the child if it does not exit.

    A child that waits for a processor gets more time, because it still has to write its printed output.
    """
    may_use = _usage(child.pid)[1] + STOP_SECONDS
    latest = time.monotonic() + STOP_SECONDS + EXTRA_SECONDS
    seconds = STOP_SECONDS
    while True:
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= latest or not _waits_for_processor(child.pid, may_use):
                child.kill()
                return child.wait()
        seconds = LOOK_SECONDS


def _waits_for_processor(pid: int, may_use: float) -> bool:
    """Return whether a process is ready to run, and has used less than `may_use` s of processor time.

    The process of a hook has the lowest priority: beside two busy processes it gets 1 % of a processor.
    """
    state, used = _usage(pid)
    return state == _RUNNABLE and used < may_use


def _usage(pid: int) -> tuple[str, float]:
    """Return the state of a process and the processor time (s) that it has used (proc_pid_stat(5))."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _TICKS


def _require_importable(hook: type[PacketHook[Any]]) -> None:
    found: Any = sys.modules.get(hook.__module__)
    for name in hook.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not hook or hook.__module__ == "__main__":
        raise ValueError(
            f"hook {hook.name} must run in a process, which cannot import"
            f" {hook.__module__}:{hook.__qualname__}: define the class at the top of a module other than the"
            " program itself, or run the hook in a thread"
        )


def _encode_settings(hook: type[PacketHook[Any]], settings: Struct) -> bytes:
    try:
        encoded = encode(settings)
        msgspec.msgpack.decode(encoded, type=hook.settings_type)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(
            f"hook {hook.name} must run in a process, to which its settings {type(settings).__qualname__}"
            f" cannot be sent: {error}"
        ) from None
    return encoded
