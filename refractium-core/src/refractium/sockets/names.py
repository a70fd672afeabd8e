"""Lookups of host names, outside of the event loops, by a bounded number of threads for the whole process.

getaddrinfo follows the whole configuration of the machine (nsswitch.conf(5), hosts(5), resolv.conf(5)). But
nothing can cancel getaddrinfo. If no name server answers, getaddrinfo takes from ten seconds to minutes. So
each name has one lookup at a time, and all callers that ask meanwhile share this lookup. The threads are
daemons: the process ends without waiting for the threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias
from weakref import WeakValueDictionary

from refractium.throttle import Throttled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

Found: TypeAlias = "tuple[tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]], ...]"
"""Addresses with port 0, in order of preference; `at` sets the port."""

_SLOW: Final = 5.0
"""Seconds after which a lookup is slow: the resolver then asks the next name server (resolv.conf(5))."""


class Standing(IntEnum):
    """The speed of the last lookup of a name, from the best to the worst."""

    PROMPT = 0
    NEW = 1
    """The name has not been looked up yet."""
    SLOW = 2


THREADS: Final[Mapping[Standing, int]] = {Standing.PROMPT: 64, Standing.NEW: 48, Standing.SLOW: 16}
"""Maximum number of lookups that run at once for names of a standing and of all worse standings.

So slow names leave threads for new names, and slow and new names leave threads for prompt names. A thread
that waits for a name server takes 36 KiB and a socket.
"""


class HostName:
    """A host name. While a caller holds this object, `name` returns the same object to every caller.

    Attributes:
        host: the name as text.
        found: the last good answer; empty before the first good answer.
        asked: monotonic time (s) at which a caller first asked for the name.
        looked_up: monotonic time (s) at which the last lookup succeeded or failed; minus infinity before.
        failures: the rate-limited log of problems with the name.
    """

    __slots__ = (
        "__weakref__",
        "asked",
        "begun",
        "failures",
        "found",
        "host",
        "looked_up",
        "standing",
        "waiters",
    )

    def __init__(self, host: str) -> None:
        self.host = host
        self.found: Found = ()
        self.asked = time.monotonic()
        self.looked_up = float("-inf")
        self.failures = Throttled(log)
        # `_Lookups` owns the following attributes.
        self.standing = Standing.NEW
        self.begun: float | None = None
        self.waiters: set[asyncio.Future[str]] = set()

    async def look_up(self, what: str) -> Found:
        """Wait for the lookup in progress, or start a lookup, and return the addresses.

        Args:
            what: the owner of the name, such as a listener, for the log line about a lookup that hangs.

        Raises:
            OSError: the name cannot be resolved.
        """
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        begun = _LOOKUPS.ask(self, waiter)
        try:
            pause = max(0.0, begun + _SLOW - time.monotonic())
            while not (await asyncio.wait((waiter,), timeout=pause))[0]:
                seconds = time.monotonic() - begun
                self.failures.warning("%s: the name has not been answered for %d s", what, seconds)
                pause = max(_SLOW, seconds)
            error = waiter.result()
        finally:
            _LOOKUPS.leave(self, waiter)
        if error:
            raise OSError(error)
        return self.found

    def __repr__(self) -> str:
        return f"<HostName {self.host}>"


def name(host: str) -> HostName:
    """Return the only object of this process for a name. The object is freed once no caller holds it."""
    return _LOOKUPS.name(host)


async def addresses(host: str, what: str, timeout: float | None = None) -> Found:  # noqa: ASYNC109
    """Return the addresses of a host.

    Args:
        host: a name or an IP address.
        what: the owner of the host, such as a listener, for the log line about a lookup that hangs.
        timeout: the longest wait for an answer (s); by default the wait ends when getaddrinfo returns.

    Raises:
        OSError: the lookup of the name failed or took too long.
    """
    # This question asks no name server. For a str, Python would import the codec idna.
    is_plain = host.isascii() and "\0" not in host
    found, _ = _resolve(host.encode() if is_plain else host, socket.AI_NUMERICHOST)
    if found:
        return found
    try:
        async with asyncio.timeout(timeout):
            return await name(host).look_up(what)
    except TimeoutError:
        raise OSError(f"no name server has answered within {timeout:g} s") from None


def told(
    host: str, found: Sequence[tuple[int, Sequence[str | int]]], asked: float, looked_up: float
) -> HostName:
    """Return the object for a name, with the answer of another process if that answer is newer.

    Args:
        host: the name.
        found: `HostName.found` in the other process.
        asked: `HostName.asked` in the other process.
        looked_up: `HostName.looked_up` in the other process.
    """
    known = name(host)
    known.asked = min(known.asked, asked)
    if known.looked_up < looked_up:
        addresses = ((socket.AddressFamily(family), tuple(address)) for family, address in found)
        known.found = tuple(addresses) or known.found  # type: ignore[arg-type]
        known.looked_up = looked_up
    return known


def at(port: int, found: Found) -> Found:
    """Return the same addresses with the given port."""
    return tuple((family, (address[0], port, *address[2:])) for family, address in found)


class _Lookups:
    """The lookup threads of this process, and the names that wait for a thread."""

    def __init__(self) -> None:
        # Reentrant: while a thread holds the lock, garbage collection in this thread may close a coroutine,
        # which then calls `leave`.
        self._lock = threading.RLock()
        self._names: WeakValueDictionary[str, HostName] = WeakValueDictionary()
        self._queued: dict[Standing, dict[HostName, None]] = {standing: {} for standing in Standing}
        self._running = dict.fromkeys(Standing, 0)

    def name(self, host: str) -> HostName:
        with self._lock:
            found = self._names.get(host)
            if found is None:
                found = self._names[host] = HostName(host)
            return found

    def ask(self, name: HostName, waiter: asyncio.Future[str]) -> float:
        """Start a lookup of a name, or join the lookup in progress; return the time of the start.

        At the end, the lookup sets the result of `waiter`: an error message, or an empty text.
        """
        with self._lock:
            name.waiters.add(waiter)
            if name.begun is None:
                name.begun = time.monotonic()
                self._queued[name.standing][name] = None
                self._start_threads()
                return name.begun or time.monotonic()
            return name.begun

    def leave(self, name: HostName, waiter: asyncio.Future[str]) -> None:
        """Remove a waiter, and remove a queued lookup that has no waiter left."""
        with self._lock:
            name.waiters.discard(waiter)
            if not name.waiters and name in self._queued[name.standing]:
                del self._queued[name.standing][name]
                name.begun = None

    def _start_threads(self) -> None:
        while (following := self._next()) is not None:
            name, standing = following
            thread = threading.Thread(
                target=self._run, args=following, name=f"resolve {name.host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the machine has no thread left
                self._ended(name, standing, str(error))

    def _next(self) -> tuple[HostName, Standing] | None:
        """Remove and return the next name in the queue, if the process may start another lookup now."""
        for standing, queued in self._queued.items():
            if queued and all(
                sum(self._running[worse] for worse in Standing if worse >= better) < THREADS[better]
                for better in Standing
                if better <= standing
            ):
                name = next(iter(queued))
                queued.pop(name, None)
                self._running[standing] += 1
                return name, standing
        return None

    def _run(self, name: HostName, standing: Standing) -> None:
        following: tuple[HostName, Standing] | None = (name, standing)
        while following is not None:
            name, standing = following
            threading.current_thread().name = f"resolve {name.host}"
            begun = time.monotonic()
            found, error = _resolve(name.host)
            with self._lock:
                if not error:
                    name.found = found
                took = time.monotonic() - begun
                name.standing = Standing.PROMPT if took < _SLOW else Standing.SLOW
                self._ended(name, standing, error)
                following = self._next()

    def _ended(self, name: HostName, standing: Standing, error: str) -> None:
        self._running[standing] -= 1
        name.begun = None
        name.looked_up = time.monotonic()
        waiters, name.waiters = name.waiters, set()
        for waiter in waiters:
            with contextlib.suppress(RuntimeError):  # the waiter's loop is closed
                waiter.get_loop().call_soon_threadsafe(_tell, waiter, error)


_LOOKUPS: Final = _Lookups()


def _tell(waiter: asyncio.Future[str], error: str) -> None:
    if not waiter.done():
        waiter.set_result(error)


def _resolve(host: str | bytes, flags: int = 0) -> tuple[Found, str]:
    """Return the addresses of a host and an empty text, or no address and the reason."""
    try:
        answers = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        return (), error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - such as UnicodeError, for the waiters
        return (), str(error) or type(error).__name__
    return tuple(dict.fromkeys((family, address) for family, *_, address in answers)), ""  # type: ignore[misc]
