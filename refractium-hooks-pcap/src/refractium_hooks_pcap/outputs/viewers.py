"""Viewers of live traffic: programs that connect to a port, and the program that reads a FIFO."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final

from refractium.kit import Address, Throttled
from refractium_hooks_pcap.outputs.ownership import why_not_ours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from refractium_hooks_pcap.outputs.records import Form
    from refractium_hooks_pcap.packets import Packet

log = logging.getLogger(__name__)

_MAX_VIEWERS: Final = 16
_MAX_BACKLOG: Final = 4 << 20
"""Largest size (bytes) of the queue for a viewer that reads more slowly than packets arrive."""
_MAX_BUFFERS: Final = 1024
"""Largest number of buffers in one writev(2): ``IOV_MAX`` of Linux."""
_PIPE_BYTES: Final = 1 << 20
"""Size (bytes) of a pipe's buffer: the largest size that users without privileges may set (pipe(7))."""
_PATIENCE: Final = 30.0
"""Seconds after which `Viewers` disconnects a viewer at the port.

The time counts while bytes wait in the queue and the viewer reads nothing.
"""
_RETRY: Final = 1.0
"""Seconds from a failed listen or accept to the next attempt."""
_LOOK: Final = 0.5
"""Seconds between attempts to find a reader of the FIFO; no event announces a reader."""
_LAST_WORDS: Final = 0.5
"""Longest time (s) that `close` waits for viewers to read the bytes in the queues."""
_READ: Final = selectors.EVENT_READ
_WRITE: Final = selectors.EVENT_WRITE


class Viewers:
    """The viewers of one hook. Each viewer gets a header, then all packets that arrive later.

    A viewer that reads too slowly loses only whole packets, and does not delay the other viewers. If a viewer
    that has connected to the port reads nothing for some time (`patience`), `Viewers` disconnects the viewer.
    A thread serves the viewers, so that viewers can connect and disconnect while no packet arrives.

    Args:
        form: the format of packets.
        address: the IP address and port to listen on, with port 0 for any free port; None for no port.
        fifo: the path of a FIFO; None for no FIFO. `Viewers` writes packets while a program reads the FIFO.
        patience: seconds after which `Viewers` disconnects a viewer at the port. The time counts while bytes
            wait in the queue and the viewer reads nothing.

    Attributes:
        lost: number of packets that did not fit in the queues of viewers.
    """

    def __init__(
        self,
        form: Form,
        *,
        address: tuple[str, int] | None = None,
        fifo: str | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self.lost = 0
        self._form = form
        self._address = address
        self._fifo = fifo
        self._patience = patience
        self._lock = threading.Lock()
        self._viewers: list[_Viewer] = []
        self._listening_socket: socket.socket | None = None
        self._has_complained = False
        self._refusals = Throttled(log)
        self._next_listen = self._next_look = float("-inf")
        self._end: float | None = None
        self._selector = selectors.DefaultSelector()
        self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._alarm, _READ)
        self._thread = threading.Thread(target=self._serve, name="pcap-viewers", daemon=True)

    def start(self) -> None:
        """Listen, and start the thread."""
        self._seek(time.monotonic())
        self._thread.start()

    @property
    def port(self) -> int | None:
        """The port of the listener; None while no listener is open."""
        return None if self._listening_socket is None else int(self._listening_socket.getsockname()[1])

    def write(self, packets: Sequence[Packet]) -> None:
        """Send packets to all viewers."""
        if not self._viewers:
            return
        with self._lock:
            for viewer in self._viewers:
                self.lost += viewer.take(packets)
            needs_thread = any(viewer.is_gone or viewer.is_behind for viewer in self._viewers)
        if needs_thread:
            os.eventfd_write(self._alarm, 1)

    def close(self) -> None:
        """Send the rest of all queues, for half a second at the most, and disconnect all viewers."""
        with self._lock:
            self._end = time.monotonic() + _LAST_WORDS
            if is_running := self._thread.ident is not None:
                # Under the lock, so that the thread cannot close the alarm before this write.
                os.eventfd_write(self._alarm, 1)
        if is_running:
            self._thread.join()
        else:
            self._release()

    # The methods below run in the thread; `start` and `close` call two of them while no thread runs.

    def _serve(self) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                if self._is_over(now):
                    break
                self._seek(now)
                self._part(now)
                self._watch()
                timeout = self._timeout(now)
            ready = self._selector.select(timeout)
            with self._lock:
                for key, events in ready:
                    if isinstance(key.data, _Viewer):
                        key.data.handle(events)
                    elif key.fileobj is self._listening_socket:
                        self._accept()
                    else:
                        os.eventfd_read(self._alarm)
        self._release()

    def _is_over(self, now: float) -> bool:
        if self._end is None:
            return False
        return now >= self._end or not any(viewer.is_behind for viewer in self._viewers)

    def _seek(self, now: float) -> None:
        """Try to listen, and try to find a reader of the FIFO, if the next attempt is due."""
        if self._address is not None and self._listening_socket is None and now >= self._next_listen:
            self._next_listen = now + _RETRY
            self._listen(self._address)
        if self._fifo is not None and not self._has_reader and now >= self._next_look:
            self._next_look = now + _LOOK
            self._look(self._fifo)

    @property
    def _has_reader(self) -> bool:
        return any(viewer.is_fifo for viewer in self._viewers)

    def _listen(self, address: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listening_socket = socket.create_server(address, family=family)
        except OSError as error:
            if not self._has_complained:
                self._has_complained = True
                where = Address.of(address)
                log.warning("cannot listen for viewers on TCP@%s yet: %s", where, error.strerror)
            return
        self._has_complained = False
        self._listening_socket.settimeout(0)
        self._selector.register(self._listening_socket, _READ)
        log.info("listening for viewers on TCP@%s", Address.of(self._listening_socket.getsockname()))

    def _accept(self) -> None:
        assert self._listening_socket is not None  # noqa: S101 - the selector has reported the socket
        try:
            connection, address = self._listening_socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # if no descriptor is left, an immediate retry would fail again
            self._refusals.warning("cannot accept a viewer: %s", error.strerror)
            self._selector.unregister(self._listening_socket)
            self._listening_socket.close()
            self._listening_socket = None
            self._next_listen = time.monotonic() + _RETRY
            return
        if len(self._viewers) >= _MAX_VIEWERS:
            self._refusals.warning("refused a viewer: %d viewers are connected already", _MAX_VIEWERS)
            connection.close()
            return
        with suppress(OSError):  # the viewer may have disconnected already; then the next write fails
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(0)
        self._admit(_Viewer(connection.detach(), str(Address.of(address)), self._form))

    def _look(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO means that no program reads the FIFO
                self._refusals.warning("cannot write to %s: %s", path, error.strerror)
            return
        stat_result = os.fstat(fd)
        is_fifo = stat.S_ISFIFO(stat_result.st_mode)
        if fault := why_not_ours(stat_result) if is_fifo else "it is no longer a FIFO":
            os.close(fd)
            self._refusals.warning("cannot write to %s: %s", path, fault)
            return
        with suppress(OSError):  # the user may have reached the limit of pipe buffers
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._admit(_Viewer(fd, path, self._form, is_fifo=True))

    def _admit(self, viewer: _Viewer) -> None:
        self._viewers.append(viewer)
        self._selector.register(viewer.fd, _READ, viewer)
        # Log only now: `write` reads the list of viewers without the lock, and from now on finds the viewer.
        log.info("viewer %s connected", viewer.name)
        viewer.flush()

    def _part(self, now: float) -> None:
        """Remove the viewers that have disconnected, and the viewers that have read nothing for too long."""
        for viewer in [*self._viewers]:
            if viewer.is_gone or (not viewer.is_fifo and viewer.waiting(now) > self._patience):
                self._viewers.remove(viewer)
                self._selector.unregister(viewer.fd)
                viewer.close()

    def _watch(self) -> None:
        for viewer in self._viewers:
            wanted = _READ | _WRITE if viewer.is_behind else _READ
            if self._selector.get_key(viewer.fd).events != wanted:
                self._selector.modify(viewer.fd, wanted, viewer)

    def _timeout(self, now: float) -> float | None:
        times = [] if self._end is None else [self._end]
        if self._address is not None and self._listening_socket is None:
            times.append(self._next_listen)
        if self._fifo is not None and not self._has_reader:
            times.append(self._next_look)
        times += [now + self._patience - viewer.waiting(now) for viewer in self._viewers if viewer.is_behind]
        return max(0.0, min(times) - now) if times else None

    def _release(self) -> None:
        for viewer in self._viewers:
            viewer.close()
        self._viewers.clear()
        if self._listening_socket is not None:
            self._listening_socket.close()
        self._selector.close()
        os.close(self._alarm)


class _Viewer:
    """A viewer: a descriptor that never blocks, and a queue of bytes to send.

    Args:
        fd: the descriptor of a socket or a FIFO.
        name: the name of the viewer, for the log.
        form: the format of packets.
        is_fifo: whether the viewer reads the FIFO.

    Attributes:
        is_gone: whether the viewer has disconnected.
    """

    def __init__(self, fd: int, name: str, form: Form, *, is_fifo: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.is_fifo = is_fifo
        self.is_gone = False
        self._form = form
        self._writer = form.writer()
        self._backlog: deque[bytes | memoryview] = deque((self._writer.begin(),))
        self._size = len(self._backlog[0])
        self._moved = time.monotonic()
        self._lost = 0

    @property
    def is_behind(self) -> bool:
        """Whether the queue contains bytes to send."""
        return bool(self._backlog)

    def waiting(self, now: float) -> float:
        """Return for how many seconds the viewer has read none of the queued bytes; 0 without such bytes."""
        return now - self._moved if self._backlog else 0.0

    def take(self, packets: Sequence[Packet]) -> int:
        """Send packets, or queue them.

        Returns:
            The number of packets that did not fit in the queue.
        """
        lost = 0
        for packet in packets:
            room = self._form.room_for(packet)
            if self._size + room > _MAX_BACKLOG and not lost:
                self.flush()
            if self.is_gone:
                return lost
            if self._size + room > _MAX_BACKLOG:
                lost += 1
                continue
            if not self._backlog:
                self._moved = time.monotonic()
            record = self._writer.record(packet)
            self._backlog.append(record)
            self._size += len(record)
        self.flush()
        if lost and not self._lost:
            log.warning("viewer %s reads too slowly, dropping packets for it", self.name)
        self._lost += lost
        return lost

    def flush(self) -> None:
        """Send as many bytes of the queue as the descriptor accepts now."""
        try:
            while self._backlog:
                self._drop(os.writev(self.fd, [*islice(self._backlog, _MAX_BUFFERS)]))
                self._moved = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self._leave()

    def _drop(self, sent: int) -> None:
        self._size -= sent
        while sent:
            first = self._backlog.popleft()
            if sent < len(first):
                self._backlog.appendleft(memoryview(first)[sent:])
                return
            sent -= len(first)

    def handle(self, events: int) -> None:
        """Write, read or both, as the selector reports."""
        if events & _WRITE:
            self.flush()
        if events & _READ:
            self._listen()

    def _listen(self) -> None:
        """Read, to find out whether the viewer has disconnected. A viewer sends no bytes.

        A FIFO reports an error when the reader has closed the FIFO (poll(2), POLLERR).
        """
        try:
            if not os.read(self.fd, 65_536):
                self._leave()
        except BlockingIOError:
            pass
        except OSError:
            self._leave()

    def _leave(self) -> None:
        self.is_gone = True
        self._backlog.clear()
        self._size = 0

    def close(self) -> None:
        """Close the descriptor, and log whether the viewer left or was disconnected."""
        os.close(self.fd)
        how = "left" if self.is_gone else "disconnected, bytes unsent" if self._backlog else "disconnected"
        log.info("viewer %s %s; %d packets were dropped for it", self.name, how, self._lost)
