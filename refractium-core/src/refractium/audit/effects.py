"""The effects of code outside of itself: output, threads, files, network, programs and global settings."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import locale
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_EVENTS: Final = {
    "socket.connect": "uses the network",
    "socket.bind": "uses the network",
    "socket.sendto": "uses the network",
    "socket.getaddrinfo": "looks a host name up",
    "socket.gethostbyname": "looks a host name up",
    "subprocess.Popen": "starts a program",
    "os.system": "starts a program",
    "os.posix_spawn": "starts a program",
    "os.exec": "starts a program",
    "os.fork": "forks the process",
    "os.forkpty": "forks the process",
    "os.chdir": "changes the working directory",
    "os.putenv": "changes the environment",
    "os.unsetenv": "changes the environment",
    "os.remove": "changes the file",
    "os.rename": "changes the file",
    "os.rmdir": "changes the folder",
    "os.mkdir": "changes the folder",
    "os.chmod": "changes the file",
    "os.truncate": "changes the file",
    "shutil.rmtree": "changes the folder",
}
"""Audit events of Python (https://docs.python.org/3/library/audit_events.html), and what they show."""
_ON_FILES: Final = frozenset(name for name, what in _EVENTS.items() if what.endswith((" file", " folder")))
_TO_WRITE: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_STATES: Final[dict[str, Callable[[], Any]]] = {
    "the handler of a signal": lambda: [signal.getsignal(one) for one in sorted(signal.valid_signals())],
    "the handlers or the level of the root logger": lambda: (
        list(map(id, logging.getLogger().handlers)),
        logging.getLogger().level,
    ),
    "sys.excepthook": lambda: sys.excepthook,
    "sys.stdout or sys.stderr": lambda: (id(sys.stdout), id(sys.stderr)),
    "sys.path": lambda: list(sys.path),
    "the recursion limit": sys.getrecursionlimit,
    "the switch interval of threads": sys.getswitchinterval,
    "the garbage collector": lambda: (gc.isenabled(), gc.get_threshold()),
    "the default timeout of sockets": socket.getdefaulttimeout,
    "the policy of event loops": lambda: id(getattr(asyncio.events, "_event_loop_policy", None)),
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the tracing of calls": lambda: (sys.gettrace(), sys.getprofile()),
    "threading.excepthook": lambda: threading.excepthook,
    "faulthandler": faulthandler.is_enabled,
}
"""The state of the process that an import must not change, each with the function that reads the state."""


class Effects:
    """The effects of the code that runs in `watched`.

    Args:
        cache: folder for compiled code, which Python writes at an import.
        output: the file to which stdout and stderr of the process lead.
    """

    def __init__(self, cache: str, output: int) -> None:
        self._cache = cache
        self._output = output
        self._seen: dict[str, None] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def watched(self) -> Iterator[dict[str, str]]:
        """Watch the code of the context.

        Yields:
            After the context: what the code did, by the code of the rule; empty if the code did nothing.
        """
        found: dict[str, str] = {}
        before = {name: read() for name, read in _STATES.items()}
        threads, written = set(threading.enumerate()), os.fstat(self._output).st_size
        outer, self._seen = self._seen, {}
        try:
            yield found
        finally:
            seen, self._seen = self._seen, outer
            changed = [f"changes {name}" for name, read in _STATES.items() if read() != before[name]]
            if effects := [*seen, *changed]:
                found["effects"] = "; ".join(effects)
            if started := [one.name for one in threading.enumerate() if one not in threads]:
                found["threads"] = f"starts the threads {', '.join(started)}"
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if size := os.fstat(self._output).st_size - written:
                text = os.pread(self._output, min(size, 100), written).decode("utf-8", "replace")
                found["output"] = f'prints "{text.strip()}"'

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an audit event. This hook stays until the process ends, and must be fast."""
        if self._seen is None:
            return
        if event == "open":
            flags = arguments[2]
            if not (isinstance(flags, int) and flags & _TO_WRITE):
                return
            what = "writes the file"
        elif event in _EVENTS:
            what = _EVENTS[event]
        else:
            return
        if event == "open" or event in _ON_FILES:
            if isinstance(arguments[0], int):  # a file that is open already
                return
            path = os.fsdecode(arguments[0])
            if path == os.devnull or path.startswith(self._cache):
                return
            what = f"{what} {path}"
        self._seen.setdefault(what)
