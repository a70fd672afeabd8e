"""Makes packets of the bytes of one stream, and passes these on."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from refractium.kit import RefractiumError
from refractium_hooks_pcap.reader import NotACaptureError, Reader

if TYPE_CHECKING:
    from typing import Self

    from refractium_hooks_pcap.reader import Captured

STDOUT: Final = "-"


class CaptureError(RefractiumError):
    """A capture cannot be read, or not be passed on; the message says which and why."""


class NobodyReadsError(Exception):
    """Who read what is passed on has left."""


class Copy:
    """Where packets are passed on to; at the end of the block, a file to which none were is removed.

    Args:
        target: the name of a file, which must not be there yet, or ``-`` for stdout.

    Raises:
        CaptureError: the file cannot be made.
    """

    def __init__(self, target: str) -> None:
        self._path = None if target == STDOUT else Path(target)
        self._is_empty = True
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            # What has passed is nobody else's business, as with the files that the hook writes.
            self._fd = 1 if target == STDOUT else os.open(target, flags, 0o600)
        except FileExistsError:
            raise CaptureError(f"{target} is there already, and is left as it is") from None
        except (OSError, ValueError) as error:
            raise CaptureError(f"cannot write {target}: {reason_of(error)}") from None

    def write(self, data: bytes | bytearray) -> None:
        """Pass bytes on.

        Raises:
            NobodyReadsError: it is a pipe that has no reader any more.
            CaptureError: they cannot be written.
        """
        try:
            with memoryview(data) as view:
                self._is_empty = False
                done = 0
                while done < len(view):
                    done += os.write(self._fd, view[done:])
        except BrokenPipeError:
            raise NobodyReadsError from None
        except OSError as error:
            raise CaptureError(f"cannot write {self._path or 'stdout'}: {reason_of(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            os.close(self._fd)
            if self._is_empty:
                with suppress(OSError):
                    self._path.unlink()


class Intake(Reader):
    """Reads one stream, and passes on the bytes that it consists of, up to its last whole record.

    Args:
        name: of the stream, for messages.
        copy: where it is passed on to.
    """

    def __init__(self, name: str, copy: Copy | None = None) -> None:
        super().__init__()
        self._name = name
        self._copy = copy
        self._held = bytearray()
        self._is_capture = False

    @property
    def pending(self) -> int:
        """Bytes that wait for the rest of their record."""
        return len(self._buffer)

    def take(self, data: bytes) -> list[Captured]:
        """Take further bytes, as `feed` does.

        Raises:
            CaptureError: nothing further can be read, or nothing be passed on.
            NobodyReadsError: as of `Copy.write`.
        """
        if self._copy is not None:
            self._held += data
        try:
            return self.feed(data)
        except NotACaptureError as error:
            raise CaptureError(f"{self._name}: {error}") from None
        finally:
            self._is_capture |= self.pending < len(data)
            self._pass_on()

    def _pass_on(self) -> None:
        if self._copy is not None and (whole := len(self._held) - self.pending):
            self._copy.write(self._held[:whole])
            del self._held[:whole]

    def forget_pending(self) -> int:
        """Forget the bytes that wait; how many these are. They will come again."""
        count = self.pending
        self._buffer.clear()
        self._held.clear()
        return count

    def finish(self) -> str | None:
        """The stream has ended. What was cut off is passed on as it is.

        Returns:
            What there is to be warned of, if there is anything.

        Raises:
            CaptureError: it was none, or its rest cannot be read.
        """
        self.take(b"")  # to come upon a fault behind the latest packets
        if not self._is_capture:
            raise CaptureError(f"{self._name}: this is {'no capture' if self.pending else 'empty'}")
        if not self.pending:
            return None
        if self._copy is not None:
            self._copy.write(self._held)
        return f"{self._name}: the last record is not whole, {self.pending} bytes of it are there"


def reason_of(error: Exception) -> str:
    """In words."""
    return getattr(error, "strerror", None) or str(error)
