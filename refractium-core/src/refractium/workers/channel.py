"""A channel: a socket over which two processes exchange messages and file descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

Incoming = TypeVar("Incoming")

_LENGTH: Final = struct.Struct("!I")
_CHUNK: Final = 262_144
_FDS_AT_ONCE: Final = 64
_MOMENTARY: Final = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
"""Errors after which the same send may succeed a moment later."""
_RETRY: Final = 0.1
"""Seconds from an error in `_MOMENTARY` to the next attempt to send."""


class Channel(Generic[Incoming]):
    """One end of a channel. Messages and descriptors arrive in the order in which the other end sent them.

    Args:
        sock: a connected unix stream socket; the channel owns and closes it.
        incoming: the type of the messages that the other end sends.
        received: the function that the channel calls with each message.
        ended: the function that the channel calls once, when the other end is closed or the socket fails.

    Attributes:
        fds: received descriptors that nobody has removed yet, the oldest first.
    """

    def __init__(
        self,
        sock: socket.socket,
        incoming: Any,
        received: Callable[[Incoming], None],
        ended: Callable[[], None],
    ) -> None:
        sock.setblocking(False)  # noqa: FBT003 - takes no keyword
        self._sock = sock
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._received = received
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._input = bytearray()
        self._output: deque[tuple[memoryview, int | None]] = deque()
        self.fds: deque[int] = deque()
        self._loop.add_reader(sock, self._read)

    def send(self, message: msgspec.Struct, sock: socket.socket | None = None) -> None:
        """Send a message now, or as soon as the socket has room. Send nothing if the channel is closed.

        Args:
            message: a message of a type that the other end knows.
            sock: a socket whose descriptor to send with the message; the caller still owns the socket.

        Raises:
            OSError: no descriptor is left for a copy of `sock`; nothing is sent.
        """
        if self._sock.fileno() < 0:
            return
        body = msgspec.msgpack.encode(message)
        fd = None if sock is None else os.dup(sock.fileno())
        self._output.append((memoryview(_LENGTH.pack(len(body)) + body), fd))
        if len(self._output) == 1:
            self._write()

    def close(self) -> None:
        """Close the socket, the received descriptors in `fds`, and the descriptors that were not sent."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._drop_output()
        while self.fds:
            os.close(self.fds.popleft())

    def _write(self) -> None:
        if self._sock.fileno() < 0:
            return
        while self._output:
            data, fd = self._output[0]
            try:
                sent = self._sock.send(data) if fd is None else socket.send_fds(self._sock, [data], [fd])
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._write)
                return
            except OSError as error:
                if error.errno in _MOMENTARY:
                    self._loop.remove_writer(self._sock)
                    self._loop.call_later(_RETRY, self._write)
                    return
                # Later messages may depend on the lost message. So shut the channel down on both sides.
                self._drop_output()
                with suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                break
            if fd is not None:
                os.close(fd)
            if sent < len(data):
                self._output[0] = data[sent:], None
            else:
                self._output.popleft()
        self._loop.remove_writer(self._sock)

    def _drop_output(self) -> None:
        while self._output:
            _, fd = self._output.popleft()
            if fd is not None:
                os.close(fd)

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _CHUNK, _FDS_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003 - the flags of `recv_fds` do not reach the kernel
            self.fds.append(fd)
        self._input += data
        while self._sock.fileno() >= 0 and (message := self._next()) is not None:
            self._received(message)
        if not data and self._sock.fileno() >= 0:
            self.close()
            self._ended()

    def _next(self) -> Incoming | None:
        if len(self._input) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._input)
        end = _LENGTH.size + size
        if len(self._input) < end:
            return None
        body = bytes(self._input[_LENGTH.size : end])
        del self._input[:end]
        return self._decoder.decode(body)
