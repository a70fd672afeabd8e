"""Signals that end the process although its event loop hangs."""

from __future__ import annotations

import ctypes
import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import signal

_SA_RESETHAND: Final = 0x8000_0000
"""The flag from linux/signal.h that restores the default action after the first signal (sigaction(2))."""
_MACHINES: Final = ("x86_64", "aarch64")
"""Machines on which the C library lays out its struct as in `_Action`."""


class _Action(ctypes.Structure):
    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_uint),
        ("restorer", ctypes.c_void_p),
    )


def default_after(number: signal.Signals) -> None:
    """Make the kernel take the default action at the second signal, unless the handler is set again.

    Python runs the handlers of signals between two instructions, and an event loop runs its handlers between
    two callbacks. So only the kernel can end a process whose code hangs. Call this function after each call
    that sets the handler.
    """
    if platform.machine() not in _MACHINES:
        return
    libc = ctypes.CDLL(None)
    action = _Action()
    if libc.sigaction(int(number), None, ctypes.byref(action)) == 0:
        action.flags |= _SA_RESETHAND
        libc.sigaction(int(number), ctypes.byref(action), None)
