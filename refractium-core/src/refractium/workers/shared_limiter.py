"""Limits that apply to all workers together. The connections of a dead worker no longer count.

Workers count connections in memory that all workers share. Each worker has its own cells, which no other
process writes while the worker lives. So the supervisor can clear the counts of a killed worker. A worker
compares a limit with the sum over all workers. A worker holds a record lock (fcntl(2), F_SETLK) while it
counts a new connection. The kernel releases the lock when the holder of the lock dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
from hashlib import blake2b
from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.proxy.limiter import NAMES, Limiter

if TYPE_CHECKING:
    from typing import Self

    from refractium.settings import Settings

_HEADER: Final = struct.Struct("=II16s")
"""The number of workers, the number of buckets, and the key for the digests of origins (`Limiter.origin`)."""
_HEADER_ROOM: Final = 64
_ROWS: Final = 16
"""Number of rows in a bucket. The digest of an origin selects the bucket that contains the origin's row."""
_ROOM: Final = 8
"""Number of rows for each possible connection. With so many rows, a bucket almost never becomes full."""
_FEWEST_BUCKETS: Final = 1 << 10
_MOST_BUCKETS: Final = 1 << 19
_DIGEST: Final = 16
"""Bytes of an origin's digest. The digest is keyed, so nobody can choose origins that share a bucket."""
_BUCKET: Final = _ROWS * _DIGEST
_LOCK: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_SPINS: Final = 50
"""Attempts to acquire the lock without a pause, 1 us each."""
_PAUSE: Final = 0.0005
"""Seconds between two later attempts to acquire the lock."""
_PATIENCE: Final = 1.0
"""Longest wait for the lock (s).

The wait is shorter than the time for which a worker may miss heartbeats. The wait is longer than the time for
which a busy machine pauses the holder of the lock.
"""
_HOPELESS: Final = 5.0
"""Seconds after a failed wait for which this process does not wait for the lock again."""
_CELL: Final = struct.calcsize("I")


class LimitTable:
    """A table in shared memory that counts connections. Only pages that were written occupy real memory.

    Args:
        fd: the descriptor of memory that `create` has made; the table owns and closes this descriptor.

    Attributes:
        fd: the descriptor of the memory.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)
        self._workers: int
        self._buckets: int
        self._key: bytes
        self._workers, self._buckets, self._key = _HEADER.unpack_from(self._memory)
        self._is_locked = False
        self._hopeless_until = float("-inf")
        rows = self._buckets * _ROWS
        self._cells = memoryview(self._memory)[_HEADER_ROOM + self._buckets * _BUCKET :].cast("I")
        self._columns = [self._workers + worker * rows for worker in range(self._workers)]

    @classmethod
    def create_all(cls, workers: int, settings: Settings) -> dict[Transport, Self]:
        """Make the table of each transport."""
        most = {transport: getattr(settings, names.total) for transport, names in NAMES.items()}
        return {transport: cls.create(workers, count) for transport, count in most.items()}

    @classmethod
    def create(cls, workers: int, max_connections: int) -> Self:
        """Make a table.

        Args:
            workers: the number of workers that count in the table.
            max_connections: the limit at the start, from which the size of the table follows.
        """
        buckets = _FEWEST_BUCKETS
        while buckets * _ROWS < max_connections * _ROOM and buckets < _MOST_BUCKETS:
            buckets *= 2
        fd = os.memfd_create("refractium-limits", os.MFD_CLOEXEC)
        cells = workers + workers * buckets * _ROWS
        os.ftruncate(fd, _HEADER_ROOM + buckets * _BUCKET + cells * _CELL)
        os.pwrite(fd, _HEADER.pack(workers, buckets, secrets.token_bytes(16)), 0)
        return cls(fd)

    def close(self) -> None:
        """Release the memory in this process."""
        self._cells.release()
        self._memory.close()
        os.close(self.fd)

    @property
    def active(self) -> int:
        """The number of connections of all workers."""
        return sum(self._cells[: self._workers])

    def __enter__(self) -> None:
        """Lock the table. After a wait of `_PATIENCE`, continue without the lock.

        A process that is suspended while it holds the lock keeps the lock, until the supervisor kills the
        process for missed heartbeats. Meanwhile, the other processes count without the lock. The processes
        may then exceed a limit by a few connections, but they serve all clients.
        """
        self._is_locked = self._try(_LOCK) or (monotonic() >= self._hopeless_until and self._wait_for_lock())

    def __exit__(self, *_: object) -> None:
        if self._is_locked and not self._try(fcntl.LOCK_UN):
            # The other processes wait for the lock, so try again. After a second failure, the next block of
            # this process releases the lock: the kernel lets a process lock again what it has locked.
            self._try(fcntl.LOCK_UN)

    def _try(self, operation: int) -> bool:
        try:
            fcntl.lockf(self.fd, operation)
        except OSError:  # EAGAIN, or EACCES (fcntl(2)), or the kernel lacks memory
            return False
        return True

    def _wait_for_lock(self) -> bool:
        """Try to lock again and again, because a wait in the kernel (F_SETLKW) has no time limit."""
        for _ in range(_SPINS):  # holders nearly always release the lock within 10 us
            os.sched_yield()
            if self._try(_LOCK):
                return True
        end = monotonic() + _PATIENCE
        while monotonic() < end:
            sleep(_PAUSE)
            if self._try(_LOCK):
                return True
        self._hopeless_until = monotonic() + _HOPELESS
        return False

    def add(self, worker: int, amount: int) -> None:
        """Add `amount` to the number of all connections of a worker."""
        self._cells[worker] += amount

    def add_in(self, row: int, worker: int, amount: int) -> None:
        """Add `amount` to the number of a worker's connections from the origin in `row`."""
        self._cells[self._columns[worker] + row] += amount

    def count_of(self, row: int) -> int:
        """Return the number of connections from the origin in `row`, summed over all workers."""
        return sum([self._cells[column + row] for column in self._columns])

    def row_of(self, origin: str) -> int | None:
        """Return the row of an origin. Assign a free row to a new origin. Return None if no row is free.

        The caller must hold the lock. The origin keeps the row for as long as any worker counts in this row.
        """
        digest = blake2b(origin.encode(), digest_size=_DIGEST, key=self._key).digest()
        bucket = int.from_bytes(digest[:4]) % self._buckets
        start = _HEADER_ROOM + bucket * _BUCKET
        first = bucket * _ROWS
        found = self._memory.find(digest, start, start + _BUCKET)
        if found >= 0:
            return first + (found - start) // _DIGEST
        for index in range(_ROWS):
            if not self.count_of(first + index):
                at = start + index * _DIGEST
                self._memory[at : at + _DIGEST] = digest
                return first + index
        return None

    def forget(self, worker: int) -> None:
        """Set all counts of a worker to zero. The worker must be dead: a live worker continues to count."""
        with self:
            self._cells[worker] = 0
            start = _HEADER_ROOM + self._buckets * _BUCKET + self._columns[worker] * _CELL
            size = self._buckets * _ROWS * _CELL
            self._memory[start : start + size] = bytes(size)


class SharedLimiter(Limiter):
    """The `Limiter` of one worker, which compares the limits with the counts of all workers together.

    Args:
        table: the table that all workers share.
        worker: the number, from 0, of the worker whose cells this object writes.
        settings: see `Limiter`.
        transport: see `Limiter`.

    Attributes:
        active: the number of connections of this worker.
    """

    def __init__(
        self, table: LimitTable, worker: int, settings: Settings, transport: Transport = Transport.TCP
    ) -> None:
        super().__init__(settings, transport)
        self._table = table
        self._worker = worker
        self._rows: dict[str, int] = {}

    def enter(self, origin: str | None) -> str | None:
        with self._table:
            if self._table.active >= self._max:
                return self.names.total
            if origin is not None and (limit := self._assign(origin)) is not None:
                return limit
            self._table.add(self._worker, 1)
        self.active += 1
        return None

    def assign(self, origin: str) -> str | None:
        with self._table:
            return self._assign(origin)

    def leave(self, origin: str | None) -> None:
        super().leave(origin)
        # Only this worker writes these cells, so no lock is needed.
        self._table.add(self._worker, -1)
        if origin is not None:
            self._table.add_in(self._rows[origin], self._worker, -1)
            if origin not in self._by_origin:
                del self._rows[origin]

    def _assign(self, origin: str) -> str | None:
        row = self._rows.get(origin)
        if row is None and (row := self._table.row_of(origin)) is None:
            return self.names.total
        if self._table.count_of(row) >= self._max_per_ip:
            return self.names.per_ip
        self._table.add_in(row, self._worker, 1)
        self._rows[origin] = row
        self._by_origin[origin] = self._by_origin.get(origin, 0) + 1
        return None
