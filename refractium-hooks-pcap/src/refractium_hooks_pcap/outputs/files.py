"""Capture files: made, appended to, followed by others, and whole whatever happens."""

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
"""Bytes that are gathered for one write, about. A fourth of that is a tenth slower, four times no faster."""
_LARGE: Final = 4_096
"""Bytes of a payload that is written from where it is; a copy into a record would cost a tenth more."""
_MAX_BUFFERS: Final = 256
"""Less than IOV_MAX (writev(2)). More, which are small then, are joined."""
_MAX_CUT: Final = 1 << 20
"""What a write that was cut off can have left behind the last whole record (bytes). More is not ours to cut:
a file that is damaged in its middle looks the same."""
_MAX_NAMES: Final = 1_000
"""How many names are tried for one file."""
_RETRY: Final = 1.0
"""Seconds until what has failed is tried again."""
_CALM: Final = 10.0
"""Seconds without a failure after which it is over."""
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""A link is not followed, and a FIFO or a device that has taken the place of a file is not waited for."""


class Rotation(NamedTuple):
    """When a file is followed by another.

    Attributes:
        max_bytes: it would get larger.
        max_seconds: a packet is this much later than the first one in it.
        max_files: how many there are at the most of those that one run has made for the same sessions.
    """

    max_bytes: int | None = None
    max_seconds: int | None = None
    max_files: int | None = None

    @property
    def is_wanted(self) -> bool:
        return self.max_bytes is not None or self.max_seconds is not None


class CaptureFiles:
    """All the files of one hook.

    Args:
        names: what they are called.
        form: of what is in them.
        rotation: when they are followed by others.
    """

    def __init__(self, names: FileNames, form: Form, rotation: Rotation) -> None:
        self._names = names
        self._form = form
        self._rotation = rotation
        self._series: dict[FileNames, FileSeries] = {}

    def of(self, context: HookContext) -> FileSeries:
        """Where the packets of a session go."""
        names = self._names.of(context)
        if (series := self._series.get(names)) is None:
            series = self._series[names] = FileSeries(names, self._form, self._rotation)
        return series

    def close(self) -> None:
        """Close them; what has been written is whole already."""
        for series in self._series.values():
            series.close()


class FileSeries:
    """The files that the same sessions go to, one after the other. The first is opened when it is needed.

    After `write` nothing is left in this process: the kernel has it, and keeps it if the process is killed.
    What cannot be written (the disk is full, the name is that of a link) is lost, and a second later it is
    tried again. The log says once that it began, and once that it is over.

    Args:
        names: what they are called.
        form: of what is in them.
        rotation: when one is followed by the next.

    Attributes:
        lost: packets that could not be written.
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
        """Begin a file with a packet.

        Raises:
            OSError: that cannot be, or the file before it could not be written.
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
                log.warning("%s; %s is written instead", taken, path)
            log.debug("packets are written to %s", path)
            if is_new:
                self._keep(path)
            return file
        raise OSError(errno.EEXIST, "neither this nor a similar name is free", taken and taken.path)

    def _keep(self, path: Path) -> None:
        """Remove the oldest file, if with this one there are too many."""
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
                self._file = None  # to be mended when it is opened again
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
    """A name must not be used; the next one may be.

    Args:
        path: the name.
        reason: why.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path


class CaptureFile:
    """One file, open for writing and locked against others who write captures.

    Args:
        path: its name. If it is there, it is appended to, behind its last whole record.
        form: of what is in it.
        is_new: whether it must not be there yet.

    Attributes:
        path: its name.
        size: bytes that it has or is about to have.
        started: time of the first packet added (ns since the epoch).

    Raises:
        OSError: it cannot be written, or is none of ours to write.
        _TakenError: another writer has it, or it does not go together with the form.
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
        """What is written next does not rely on anything before: with pcapng, a section of its own."""
        self.size = self._end
        self._pending: list[bytes | memoryview] = []
        self._sizes: list[int] = []
        """Of the records that are pending."""
        self._writer = self._form.writer()
        self._ahead = b"" if self._form.is_classic and self._end else self._writer.begin()

    def add(self, packet: Packet) -> None:
        """Take a packet.

        Raises:
            OSError: as of `flush`.
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
        """Write what was added.

        Raises:
            OSError: not all could be written. The file holds whole records; `discard` what is left.
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
        """Forget what was added and could not be written; how many packets that is."""
        count = len(self._sizes)
        self._begin()
        return count

    @property
    def is_whole(self) -> bool:
        """Whether the file ends where its last record does."""
        try:
            return os.fstat(self._fd).st_size == self._end
        except OSError:
            return False

    def close(self) -> None:
        """Close it; others may write it then."""
        with suppress(OSError):  # of a network file system: nothing more can be done
            os.close(self._fd)


def _open(path: Path, *, is_new: bool) -> int:
    try:
        return os.open(path, _FLAGS | (os.O_EXCL if is_new else 0), 0o600)
    except FileExistsError:
        raise _TakenError(path, "is there already") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", path) from None
        raise


def _claim(fd: int, path: Path, form: Form) -> int:
    """Make sure that an open file may be appended to; where its last whole record ends."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    if (fault := why_not_ours(status)) is not None:
        raise OSError(errno.EPERM, fault, path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _TakenError(path, "is being written by somebody else") from None
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    with open(fd, "rb", closefd=False) as file:
        extent = examine(file)
    if extent is None:
        raise OSError(errno.EINVAL, "it is there already and no capture, so it is left as it is", path)
    if extent.pcap != (PcapHeader("little", _NS, form.snaplen, LINKTYPE_RAW) if form.is_classic else None):
        raise _TakenError(path, "is a capture of another form")
    if (cut := size - extent.end) > _MAX_CUT:
        raise _TakenError(path, "is damaged")
    if cut:
        log.warning("%s: the last record is not whole, its %d bytes are cut off", path, cut)
        os.ftruncate(fd, extent.end)
    return extent.end
