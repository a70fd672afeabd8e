"""Creates, extends and rotates capture files, which contain whole records at any time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from refractium_hooks_pcap.formats import LINKTYPE_RAW
from refractium_hooks_pcap.outputs.ownership import why_not_ours
from refractium_hooks_pcap.outputs.records import MAX_ROOM
from refractium_hooks_pcap.reader import PcapHeader, examine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from refractium.contract import HookContext
    from refractium_hooks_pcap.outputs.names import FileNames
    from refractium_hooks_pcap.outputs.records import Form
    from refractium_hooks_pcap.packets import Packet

log = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_MAX_WRITE: Final = 1 << 18
"""Approximate size (bytes) of one write.

Writes of a fourth of this size take a tenth longer; writes of four times this size are no faster.
"""
_LARGE: Final = 4_096
"""Smallest payload (bytes) that is not copied into a record; with the copy, a write takes a tenth longer."""
_MAX_BUFFERS: Final = 256
"""Largest number of buffers in one writev(2), below IOV_MAX.

If there are more buffers, most buffers are small, and `flush` joins all buffers into one.
"""
_MAX_CUT: Final = 1 << 20
"""Largest number of bytes that an interrupted write can leave after the last whole record.

If more bytes follow the last whole record, `_claim` does not cut these bytes off: a file that is damaged in
the middle looks the same.
"""
_MAX_NAMES: Final = 1_000
"""Largest number of names to try for one file."""
_RETRY: Final = 1.0
"""Seconds from a failed write to the next attempt."""
_CALM: Final = 10.0
"""Seconds without a failed write after which the failure counts as over."""
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags of open(2): refuse a symbolic link, and do not block on a FIFO or on a device."""


class Rotation(NamedTuple):
    """The limits at which the next file begins.

    Attributes:
        max_bytes: the largest size of a file (bytes).
        max_seconds: a packet that comes at least this time (s) after the first packet of a file begins the
            next file.
        max_files: the largest number of files that one run keeps of one series.
    """

    max_bytes: int | None = None
    max_seconds: int | None = None
    max_files: int | None = None

    @property
    def is_wanted(self) -> bool:
        return self.max_bytes is not None or self.max_seconds is not None


class CaptureFiles:
    """The files of one hook.

    Args:
        names: the names of the files.
        form: the format of the files.
        rotation: the limits at which the next file begins.
    """

    def __init__(self, names: FileNames, form: Form, rotation: Rotation) -> None:
        self._names = names
        self._form = form
        self._rotation = rotation
        self._series: dict[FileNames, FileSeries] = {}

    def of(self, context: HookContext) -> FileSeries:
        """Return the series of files for the packets of a session."""
        names = self._names.of(context)
        if (series := self._series.get(names)) is None:
            series = self._series[names] = FileSeries(names, self._form, self._rotation)
        return series

    def close(self) -> None:
        """Close all files, which contain whole records at any time."""
        for series in self._series.values():
            series.close()


class FileSeries:
    """A series of consecutive files. The first packet opens the first file.

    After `write`, the kernel has all packets, so that no packet is lost if the process is killed. Packets
    that cannot be written (the disk is full, the path is a symbolic link) are lost; a second later, the
    series tries again. The series logs one line when a failure begins, and one line when the failure is over.

    Args:
        names: the names of the files.
        form: the format of the files.
        rotation: the limits at which the next file begins.

    Attributes:
        lost: number of packets that could not be written.
    """

    def __init__(self, names: FileNames, form: Form, rotation: Rotation) -> None:
        self.lost = 0
        self._names = names
        self._form = form
        self._rotation = rotation
        self._is_rotated = rotation.is_wanted
        self._file: CaptureFile | None = None
        self._number = 0
        self._made: deque[Path] = deque()
        self._failed_at: float | None = None
        self._lost_before = 0

    def write(self, packets: Sequence[Packet]) -> None:
        """Write packets, in order."""
        left = len(packets)
        if self._failed_at is not None and time.monotonic() < self._failed_at + _RETRY:
            self.lost += left
            return
        try:
            for packet in packets:
                file = self._file
                if file is None or (self._is_rotated and self._is_full(file, packet)):
                    file = self._next_file(packet)
                left -= 1
                file.add(packet)
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self.lost += left
            self._failed(error)
        else:
            self._succeeded()

    def close(self) -> None:
        """Close the file."""
        if self._failed_at is not None:
            self._say_it_is_over()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self, packet: Packet) -> CaptureFile:
        """Close the current file, and open the next file for a packet.

        Raises:
            OSError: the next file cannot be opened, or the current file cannot be written.
        """
        if self._file is not None:
            self._file.flush()
            self._file.close()
            self._file = None
        self._file = self._open(packet.time)
        return self._file

    def _is_full(self, file: CaptureFile, packet: Packet) -> bool:
        max_bytes, max_seconds, _ = self._rotation
        if (
            max_bytes is not None
            and file.size + MAX_ROOM > max_bytes
            and file.size
            and file.size + self._form.room_for(packet) > max_bytes
        ):
            return True
        return (
            max_seconds is not None
            and file.started is not None
            and packet.time - file.started >= max_seconds * _NS
        )

    def _open(self, when: int) -> CaptureFile:
        is_numbered = self._names.is_numbered
        is_new = is_numbered or self._is_rotated
        if is_numbered and not self._number:
            self._number = self._names.next_number(when)
        taken = None
        for path in islice(self._names.paths(when, self._number), _MAX_NAMES):
            try:
                file = CaptureFile(path, self._form, is_new=is_new)
            except _TakenError as error:
                taken = taken or error
                self._number += 1
                continue
            self._number += 1
            if taken is not None and not is_new:
                log.warning("%s; writing packets to %s instead", taken, path)
            log.debug("writing packets to %s", path)
            if is_new:
                self._keep(path)
            return file
        raise OSError(errno.EEXIST, "this name and all similar names are taken", taken and taken.path)

    def _keep(self, path: Path) -> None:
        """Remember a new file of this run, and remove the oldest file if the run has too many files."""
        self._made.append(path)
        max_files = self._rotation.max_files
        while max_files is not None and len(self._made) > max_files:
            oldest = self._made.popleft()
            try:
                oldest.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cannot remove %s: %s", oldest, error.strerror)

    def _failed(self, error: OSError) -> None:
        path = error.filename
        if self._file is not None:
            path = path or self._file.path
            self.lost += self._file.discard()
            if not self._file.is_whole:
                self._file.close()
                self._file = None  # `_claim` cuts off the incomplete record when the file is opened again
        if self._failed_at is None:
            log.error("cannot write %s, packets are lost: %s", path, error.strerror)
        self._failed_at = time.monotonic()

    def _succeeded(self) -> None:
        if self._failed_at is not None and time.monotonic() >= self._failed_at + _CALM:
            self._say_it_is_over()

    def _say_it_is_over(self) -> None:
        path = self._file.path if self._file is not None else self._names.folder
        log.warning("%s: %d packets were lost", path, self.lost - self._lost_before)
        self._failed_at = None
        self._lost_before = self.lost


class _TakenError(Exception):
    """An error about a path that the series must not use; the next name may be free.

    Args:
        path: the path.
        reason: the rest of a sentence that begins with the path.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path


class CaptureFile:
    """A file that is open for writing, and locked against other writers of captures.

    Args:
        path: the path of the file. In an existing file, packets follow the last whole record.
        form: the format of the file.
        is_new: whether the file must not exist yet.

    Attributes:
        path: the path of the file.
        size: number of bytes in the file and in the packets that wait to be written.
        started: time of the first packet added (ns since the epoch); None before the first packet.

    Raises:
        OSError: the file cannot be written, or must not be written because another user controls the file.
        _TakenError: the file exists but must be new, another writer has locked the file, or the file is
            damaged or has another format.
    """

    def __init__(self, path: Path, form: Form, *, is_new: bool) -> None:
        self.path = path
        self.started: int | None = None
        self._form = form
        self._fd = _open(path, is_new=is_new)
        try:
            self._end = _claim(self._fd, path, form)
        except BaseException:
            os.close(self._fd)
            raise
        self._begin()

    def _begin(self) -> None:
        """Make the next record independent of the records before it: pcapng begins a new section."""
        self.size = self._end
        self._pending: list[bytes | memoryview] = []
        self._sizes: list[int] = []
        """Sizes (bytes) of the records in `_pending`."""
        self._writer = self._form.writer()
        self._ahead = b"" if self._form.is_classic and self._end else self._writer.begin()

    def add(self, packet: Packet) -> None:
        """Add a packet, and write all waiting packets once their size is large enough for one write.

        Raises:
            OSError: not all packets could be written, see `flush`.
        """
        if len(packet.payload) < _LARGE:
            record = self._writer.record(packet)
            self._pending.append(record)
            size = len(record)
        else:
            parts = self._writer.parts(packet)
            self._pending += parts
            size = sum(map(len, parts))
        if self._ahead:
            self._pending.insert(0, self._ahead)
            size += len(self._ahead)
            self._ahead = b""
        self.size += size
        self._sizes.append(size)
        if self.started is None:
            self.started = packet.time
        if self.size - self._end >= _MAX_WRITE:
            self.flush()

    def flush(self) -> None:
        """Write all waiting packets.

        Raises:
            OSError: some packets could not be written. Call `discard` to forget these packets. `is_whole`
                tells whether the file contains whole records only.
        """
        buffers = self._pending
        if len(buffers) > _MAX_BUFFERS:
            buffers = [b"".join(buffers)]
        done = 0
        try:
            while left := self.size - self._end - done:
                written = os.writev(self._fd, buffers)
                done += written
                if written < left:
                    buffers = [b"".join(buffers)[written:]]
        except OSError:
            self._keep_whole(done)
            raise
        self._end += done
        self._pending.clear()
        self._sizes.clear()

    def _keep_whole(self, written: int) -> None:
        whole = 0
        while written >= self._sizes[whole]:
            written -= self._sizes[whole]
            self._end += self._sizes[whole]
            whole += 1
        del self._sizes[:whole]
        with suppress(OSError):
            os.ftruncate(self._fd, self._end)

    def discard(self) -> int:
        """Forget the packets that could not be written, and return the number of these packets."""
        count = len(self._sizes)
        self._begin()
        return count

    @property
    def is_whole(self) -> bool:
        """Whether the file ends at the end of the last whole record."""
        try:
            return os.fstat(self._fd).st_size == self._end
        except OSError:
            return False

    def close(self) -> None:
        """Close the file, and release the lock."""
        with suppress(OSError):  # an error of a network file system: nothing more can be done
            os.close(self._fd)


def _open(path: Path, *, is_new: bool) -> int:
    try:
        return os.open(path, _FLAGS | (os.O_EXCL if is_new else 0), 0o600)
    except FileExistsError:
        raise _TakenError(path, "exists already") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, and links are not followed", path) from None
        raise


def _claim(fd: int, path: Path, form: Form) -> int:
    """Lock an open file, check that packets may be appended to it, and cut off an incomplete last record.

    Returns:
        The offset (bytes) of the end of the last whole record.
    """
    stat_result = os.fstat(fd)
    if not stat.S_ISREG(stat_result.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    if (fault := why_not_ours(stat_result)) is not None:
        raise OSError(errno.EPERM, fault, path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _TakenError(path, "is being written by another process") from None
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    with open(fd, "rb", closefd=False) as file:
        extent = examine(file)
    if extent is None:
        raise OSError(errno.EINVAL, "it exists and is not a capture, so it is not changed", path)
    if extent.pcap != (PcapHeader("little", _NS, form.snaplen, LINKTYPE_RAW) if form.is_classic else None):
        raise _TakenError(path, "is a capture of another format or snaplen")
    if (cut := size - extent.end) > _MAX_CUT:
        raise _TakenError(path, "is damaged")
    if cut:
        log.warning("%s: the last record is incomplete, cutting off its %d bytes", path, cut)
        os.ftruncate(fd, extent.end)
    return extent.end
