"""The tap: the interface through which the data path passes sessions and packets to hooks."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

from refractium.contract import Direction, SessionStats
from refractium.hooks.clock import EPOCH, timestamp
from refractium.hooks.process_runner import ProcessRunner
from refractium.hooks.thread_runner import ThreadRunner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from msgspec import Struct

    from refractium.contract import HookContext, PacketHook
    from refractium.hooks.runner import Runner

_INBOUND: Final = Direction.INBOUND


def make_runner(hook: type[PacketHook[Any]], settings: Struct) -> Runner:
    """Return a new runner of the kind that `PacketHook.isolation` names. The runner is not started yet.

    Args:
        hook: class of the hook, for which `problems_of_hook` yields nothing.
        settings: settings of the hook, for which `PacketHook.problems` returns nothing.

    Raises:
        ValueError: the hook cannot run in a process; the message says what to do.
    """
    return (ProcessRunner if hook.isolation == "process" else ThreadRunner)(hook, settings)


class RouteHooks:
    """The hooks that receive the sessions of one route.

    Args:
        runners: one runner for each hook. A runner may serve many routes.
    """

    def __init__(self, runners: Iterable[Runner]) -> None:
        self.runners = tuple(runners)

    def open(self, context: HookContext) -> Tap:
        """Begin a session, and return the tap of this session."""
        return Tap(self.runners, context)


class Tap:
    """The tap of one session, which passes each byte to the session's hooks once and in order.

    No method waits or raises, and after `close` no method has an effect.

    Args:
        runners: runners of the hooks.
        context: the session.
    """

    __slots__ = ("_context", "_feeds", "_inbound", "_outbound")

    def __init__(self, runners: Iterable[Runner], context: HookContext) -> None:
        time = timestamp()
        self._context = context
        self._feeds = [runner.open(time, context) for runner in runners]
        self._inbound = 0
        self._outbound = 0

    def packet(self, direction: Direction, data: bytes) -> None:
        """Report a piece of a stream, or a datagram, which may be empty."""
        time = monotonic_ns() + EPOCH
        if direction is _INBOUND:
            offset = self._inbound
            self._inbound = offset + len(data)
        else:
            offset = self._outbound
            self._outbound = offset + len(data)
        for feed in self._feeds:
            feed.packet(time, direction, data, offset)

    def end(self, direction: Direction) -> None:
        """Report that a direction has ended in an orderly way."""
        time = timestamp()
        offset = self._inbound if direction is _INBOUND else self._outbound
        for feed in self._feeds:
            feed.end(time, direction, offset)

    def close(self, ended: str) -> None:
        """Report that the session has ended.

        Args:
            ended: the way in which the session ended, as in `SessionStats.ended`.
        """
        time = timestamp()
        seconds = max(0, time - self._context.started) / 1e9
        stats = SessionStats(seconds, self._inbound, self._outbound, ended)
        feeds, self._feeds = self._feeds, []
        for feed in feeds:
            feed.close(time, stats)
