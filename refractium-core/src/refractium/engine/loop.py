"""The event loop on which each process of Refractium runs."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

from refractium.watchdog import WATCHDOG

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine on uvloop, or on asyncio's own event loop where uvloop is not installed."""
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        new_event_loop = asyncio.new_event_loop
    # Loaded modules stay for the life of the process, so the garbage collector need not look at them.
    gc.freeze()
    WATCHDOG.start()
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
    finally:
        WATCHDOG.stop()
