"""A separate network for each test, in which a client can have any address."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["network", "nothing_is_left_open", "uvloop_has_what_it_keeps"]

_CLONE_NEWNET: Final = 0x40000000
"""The constant of linux/sched.h. Python has it, and ``unshare`` and ``setns``, since 3.12."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def network(nothing_is_left_open: None) -> Iterator[Callable[..., None]]:  # noqa: ARG001 - its check runs after this fixture
    """Move this thread and everything it starts to a new network namespace; yield a function that runs
    the program ``ip``."""
    program = require_program("ip")
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.unshare(_CLONE_NEWNET):
            pytest.skip(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")

        def ip(*words: str) -> None:
            subprocess.run([program, *words], check=True, timeout=60)

        ip("link", "set", "lo", "up")
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("0")
        # Clients may use any address of a local route.
        Path("/proc/sys/net/ipv6/ip_nonlocal_bind").write_text("1")
        try:
            yield ip
        finally:
            assert _LIBC.setns(before, _CLONE_NEWNET) == 0
    finally:
        os.close(before)
