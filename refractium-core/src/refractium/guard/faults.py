"""The faults of plugins: their counts and their log lines.

All code that calls a plugin in the event loop catches `BaseException`, and notes the fault here: a plugin
that raises `SystemExit` or `KeyboardInterrupt` must not end the proxy.
"""

from __future__ import annotations

import logging
import opcode
import signal
import sys
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Final

from refractium.guard.origins import origin_of, plugin_in
from refractium.throttle import Throttled
from refractium.wire.text import brief, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

PROTOCOL: Final = "protocol "
"""The first word of the description of a protocol. The keys of `Faults` leave out this word."""

_RAISE: Final = opcode.opmap["RAISE_VARARGS"]


class Faults(Counter[str]):
    """Counts of faults by object: the name of a protocol, ``balancer NAME`` or ``check NAME``.

    Clients can cause many faults, so the log contains only the first fault of each object.
    """

    def note(self, what: str, given: object, error: BaseException, effect: str) -> None:
        """Count a fault, and log the first fault of the object.

        Args:
            what: the object, such as ``protocol ssh`` or ``balancer fair``.
            given: the object itself, for `origin_of`.
            error: the exception that the object raised.
            effect: the consequence of the fault.

        Raises:
            KeyboardInterrupt: `error` comes from the user, not from the plugin.
        """
        if is_interrupt(error):
            raise error
        key = what.removeprefix(PROTOCOL)
        self[key] += 1
        if self[key] > 1:
            return
        origin = origin_of(given)
        log.error(
            "%s%s failed: %s; %s; later faults are only counted",
            brief(what),
            brief(f" ({origin})") if origin else "",
            brief(text_of(error)),
            effect,
            exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
        )


_unraisable: Final = Throttled(log)


def log_unraisable(given: sys.UnraisableHookArgs) -> None:
    """Log an exception of a plugin that Python cannot raise, such as an exception in ``__del__``.

    This function is a `sys.unraisablehook`. Python prints the exceptions of other code as usual.
    """
    plugin = plugin_in(given.exc_traceback)
    if not plugin or given.exc_value is None:
        sys.__unraisablehook__(given)
        return
    text = brief(text_of(given.exc_value))
    _unraisable.warning("%s failed where Python cannot raise the exception: %s", printable(plugin), text)


def text_of(error: BaseException) -> str:
    """Return the type and text of any exception in one line, with the place of a `SyntaxError`.

    If the code of the exception itself raises when it makes the text, the result is only the type.
    """
    try:
        return " ".join("".join(traceback.format_exception_only(error)).split())
    except BaseException:  # noqa: BLE001 - the attributes of an exception can be any objects
        return type(error).__name__


def is_interrupt(error: BaseException) -> bool:
    """Return whether SIGINT caused an exception: the user has pressed Ctrl-C.

    Only two handlers of SIGINT raise `KeyboardInterrupt`: the handler of asyncio, and the default handler of
    Python. The default handler raises at any instruction. A plugin that raises `KeyboardInterrupt` itself
    does so by a raise statement, and this function returns False.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None and trace.tb_frame.f_globals.get("__name__") == "asyncio.runners":
        return True
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    return trace is None or trace.tb_frame.f_code.co_code[trace.tb_lasti] != _RAISE


def is_ours(error: BaseException) -> bool:
    """Return whether an exception in a coroutine comes from Refractium or the user, not from the plugin."""
    import asyncio  # noqa: PLC0415 - most commands need no event loop, and the import is slow

    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        try:
            task = asyncio.current_task()
        except RuntimeError:  # the event loop has ended, and Python closes the coroutine
            return True
        return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
    return is_interrupt(error)


def problems_found(find: Callable[[], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Return the keys and messages of the problems that a plugin finds in its settings.

    If the code of the plugin raises an exception, the result is one problem with an empty key.
    """
    try:
        return [(printable(str(key)), printable(str(message))) for key, message in find()]
    except BaseException as error:
        if is_interrupt(error):
            raise
        return [("", f"the plugin failed when it checked its settings: {brief(text_of(error))}")]
