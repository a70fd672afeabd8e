"""Reads the packets of one stream, and copies the bytes of the stream to a target."""

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
    """An error of reading or copying a capture; the message names the capture and the reason."""


class NobodyReadsError(Exception):
    """An error about a copy to a pipe that the reader has closed."""


class Copy:
    """The target of a copy: a context manager that removes an empty file at the end of the block.

    Args:
        target: the name of a file that does not exist yet, or ``-`` for stdout.

    Raises:
        CaptureError: the file cannot be created.
    """

    def __init__(self, target: str) -> None:
        self._path = None if target == STDOUT else Path(target)
        self._is_empty = True
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            # Only the owner may read the traffic, as in the files that the hook writes.
            self._fd = 1 if target == STDOUT else os.open(target, flags, 0o600)
        except FileExistsError:
            raise CaptureError(f"{target} exists already: remove it, or write to another file") from None
        except (OSError, ValueError) as error:
            raise CaptureError(f"cannot write {target}: {reason_of(error)}") from None

    def write(self, data: bytes | bytearray) -> None:
        """Write bytes to the target.

        Raises:
            NobodyReadsError: the target is a pipe without a reader.
            CaptureError: the target cannot be written.
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
    """A reader of one stream that copies the bytes of the stream, up to the last whole record.

    Args:
        name: the name of the stream, for messages.
        copy: the target of the copy; None for no copy.
    """

    def __init__(self, name: str, copy: Copy | None = None) -> None:
        super().__init__()
        self._name = name
        self._copy = copy
        self._held = bytearray()
        self._is_capture = False

    @property
    def pending(self) -> int:
        """Number of received bytes that belong to an incomplete record."""
        return len(self._buffer)

    def take(self, data: bytes) -> list[Captured]:
        """Parse the next bytes of the stream, and return the packets that these bytes complete.

        Raises:
            CaptureError: the stream cannot be read any further, or the copy cannot be written.
            NobodyReadsError: the copy goes to a pipe without a reader.
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
        """Discard the bytes of the incomplete record, and return the number of these bytes.

        The caller reads these bytes again.
        """
        count = self.pending
        self._buffer.clear()
        self._held.clear()
        return count

    def finish(self) -> str | None:
        """End the stream, and copy the bytes of an incomplete last record.

        Returns:
            A warning about an incomplete last record; None if the last record is whole.

        Raises:
            CaptureError: the stream is not a capture, or the bytes after the latest packets are invalid.
        """
        self.take(b"")  # raises if the bytes after the latest packets are invalid
        if not self._is_capture:
            raise CaptureError(f"{self._name}: this is {'no capture' if self.pending else 'empty'}")
        if not self.pending:
            return None
        if self._copy is not None:
            self._copy.write(self._held)
        return f"{self._name}: the last record is incomplete: it has only {self.pending} bytes"


def reason_of(error: Exception) -> str:
    """Return the reason for an error, in words."""
    return getattr(error, "strerror", None) or str(error)
