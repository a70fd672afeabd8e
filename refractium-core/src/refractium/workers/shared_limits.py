"""Limits that hold over all workers, and are given back when one of them dies.

Connections are counted in memory that all workers share. Each worker has cells of its own, which nobody else
writes while it lives, and a limit is compared with the sum over all workers. So what a worker that was killed
had counted is known without asking it. Whoever lets a connection in holds a record lock meanwhile (fcntl(2),
F_SETLK), which the kernel releases when its holder dies.
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
from refractium.proxy.limits import NAMES, Limits

if TYPE_CHECKING:
    from typing import Self

    from refractium.settings import Settings

_HEADER: Final = struct.Struct("=II16s")
"""How many workers, how many buckets, and the key of the addresses' digests."""
_HEADER_ROOM: Final = 64
_ROWS: Final = 16
"""Rows of a bucket. An address has its row in the one bucket that its digest says."""
_ROOM: Final = 8
"""Rows for each connection that there may be: that a bucket is full does not happen, then."""
_FEWEST_BUCKETS: Final = 1 << 10
_MOST_BUCKETS: Final = 1 << 19
_DIGEST: Final = 16
"""Bytes of an address's digest: keyed, so that nobody can choose addresses that share a bucket."""
_BUCKET: Final = _ROWS * _DIGEST
_SPINS: Final = 50
"""Attempts to get the lock without a pause, 1 us each."""
_PAUSE: Final = 0.0005
"""Seconds between attempts after that."""
_PATIENCE: Final = 1.0
"""Seconds of attempts at the most: fewer than heartbeats may be missed, more than a busy holder is paused."""
_HOPELESS: Final = 5.0
"""Seconds for which nobody waits for the lock any more, after waiting was in vain."""
_CELL: Final = struct.calcsize("I")


class LimitTable:
    """The shared memory. Only what is written to is taken from the machine.

    Args:
        fd: of the memory, as `create` has made it; the table's to close.

    Attributes:
        fd: the same.
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
        """Make one.

        Args:
            workers: how many count in it.
            max_connections: how many there may be, about.
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
        """Let the memory go, in this process."""
        self._cells.release()
        self._memory.close()
        os.close(self.fd)

    @property
    def active(self) -> int:
        """Connections of all workers."""
        return sum(self._cells[: self._workers])

    def __enter__(self) -> None:
        """Keep all others out, for at most `_PATIENCE` of waiting.

        A process that was stopped inside keeps the lock until the supervisor misses its heartbeats and kills
        it. The others count without the lock meanwhile: a limit may be passed by a few, and all are served.
        """
        self._is_locked = self._try_lock() or (monotonic() >= self._hopeless_until and self._wait_for_lock())

    def __exit__(self, *_: object) -> None:
        if self._is_locked:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # EAGAIN, or EACCES (fcntl(2))
            return False
        return True

    def _wait_for_lock(self) -> bool:
        """Try again and again: waiting in the kernel (F_SETLKW) has no end."""
        for _ in range(_SPINS):  # held for 10 us, as nearly always
            os.sched_yield()
            if self._try_lock():
                return True
        end = monotonic() + _PATIENCE
        while monotonic() < end:
            sleep(_PAUSE)
            if self._try_lock():
                return True
        self._hopeless_until = monotonic() + _HOPELESS
        return False

    def add(self, worker: int, amount: int) -> None:
        """Count among all connections of a worker."""
        self._cells[worker] += amount

    def add_in(self, row: int, worker: int, amount: int) -> None:
        """Count among those of an address."""
        self._cells[self._columns[worker] + row] += amount

    def count_of(self, row: int) -> int:
        """Connections of an address with all workers."""
        return sum([self._cells[column + row] for column in self._columns])

    def row_of(self, ip: str) -> int | None:
        """The row of an address, which is given one; None if there is none left. The table is locked.

        It keeps the row for as long as anybody counts in it.
        """
        digest = blake2b(ip.encode(), digest_size=_DIGEST, key=self._key).digest()
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
        """Give back what a worker has counted. It is dead, or it would go on."""
        with self:
            self._cells[worker] = 0
            start = _HEADER_ROOM + self._buckets * _BUCKET + self._columns[worker] * _CELL
            size = self._buckets * _ROWS * _CELL
            self._memory[start : start + size] = bytes(size)


class SharedLimits(Limits):
    """One worker's share: `Limits` that counts for all workers.

    Args:
        table: the shared memory.
        worker: whose cells to count in, from 0.
        settings: as of `Limits`.
        transport: the same.

    Attributes:
        active: connections of this worker.
    """

    def __init__(
        self, table: LimitTable, worker: int, settings: Settings, transport: Transport = Transport.TCP
    ) -> None:
        super().__init__(settings, transport)
        self._table = table
        self._worker = worker
        self._rows: dict[str, int] = {}

    def enter(self, ip: str | None) -> str | None:
        with self._table:
            if self._table.active >= self._max:
                return self.names.total
            if ip is not None and (limit := self._assign(ip)) is not None:
                return limit
            self._table.add(self._worker, 1)
        self.active += 1
        return None

    def assign(self, ip: str) -> str | None:
        with self._table:
            return self._assign(ip)

    def leave(self, ip: str | None) -> None:
        super().leave(ip)
        # These cells are this worker's alone, so nobody need be kept out.
        self._table.add(self._worker, -1)
        if ip is not None:
            self._table.add_in(self._rows[ip], self._worker, -1)
            if ip not in self._by_ip:
                del self._rows[ip]

    def _assign(self, ip: str) -> str | None:
        row = self._rows.get(ip)
        if row is None and (row := self._table.row_of(ip)) is None:
            return self.names.total
        if self._table.count_of(row) >= self._max_per_ip:
            return self.names.per_ip
        self._table.add_in(row, self._worker, 1)
        self._rows[ip] = row
        self._by_ip[ip] = self._by_ip.get(ip, 0) + 1
        return None
