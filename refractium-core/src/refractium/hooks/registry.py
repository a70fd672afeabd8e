"""The hooks of one engine: the running hooks, the hooks of each route, and the counts of stopped hooks."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from refractium.contract import PacketHook, problems_of_hook
from refractium.guard.faults import is_interrupt, problems_found, text_of
from refractium.guard.watchdog import WATCHDOG
from refractium.hooks.counters import HookCounters
from refractium.hooks.runner import Runner, RunnerState
from refractium.hooks.tap import RouteHooks, make_runner
from refractium.wire.text import brief, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from msgspec import Struct

log = logging.getLogger(__name__)

HookUse: TypeAlias = "type[PacketHook[Any]] | tuple[type[PacketHook[Any]], Struct]"
"""A hook as a route names it: the hook's class, or a pair of the class and the hook's settings."""

_LOOK_SECONDS = 1.0
"""Seconds between two checks whether hooks are stalled."""
_RETIRING_SECONDS = 5.0
"""Seconds that a hook may spend on the rest of its queue when no route uses the hook any more."""


class UsedHook(NamedTuple):
    """A hook and its settings."""

    hook: type[PacketHook[Any]]
    settings: Struct


def used(use: HookUse) -> UsedHook:
    """Return a hook with its settings: the given settings, or else the default settings of the hook.

    Raises:
        ValueError: `use` is not a hook, or the settings are not valid; the message says why.
    """
    hook, settings = use if isinstance(use, tuple) else (use, None)
    problems = list(problems_of_hook(hook))
    if not problems and settings is None:
        try:
            settings = hook.settings_type()
        except BaseException as error:
            if is_interrupt(error):
                raise
            problems = [f"hook {hook.name}: settings are missing: {brief(text_of(error))}"]
    if not problems and not isinstance(settings, hook.settings_type):
        wanted = hook.settings_type.__name__
        problems = [f"hook {hook.name}: settings are {type(settings).__name__}, not {wanted}"]
    if not problems:
        checked = problems_found(lambda: hook.problems(settings))
        problems = [": ".join(filter(None, (f"hook {hook.name}", *found))) for found in checked]
    if problems:
        raise ValueError("; ".join(problems))
    assert settings is not None  # noqa: S101 - None would have been a problem above
    return UsedHook(hook, settings)


def merged(for_all: Sequence[UsedHook], own: Sequence[UsedHook]) -> list[UsedHook]:
    """Return the hooks of a route. A hook in `own` replaces the hook in `for_all` with the same name."""
    return list(({one.hook.name: one for one in for_all} | {one.hook.name: one for one in own}).values())


def against_several(hooks: Iterable[UsedHook]) -> Iterator[str]:
    """Yield a message for each hook that cannot run in several worker processes."""
    reasons = {(one.hook.name, why_alone(one)): None for one in hooks}
    for name, reason in reasons:
        if reason:
            yield f"hook {name} can run in one process only, not in each worker: {reason}"


def why_alone(use: UsedHook) -> str:
    """Return the reason why a hook can run in one process only; empty if there is none.

    If the hook raises an exception instead of an answer, the exception is the reason.
    """
    try:
        return printable(str(use.hook.needs_one_process(use.settings) or ""))
    except BaseException as error:
        if is_interrupt(error):
            raise
        return f"its method needs_one_process raised {brief(text_of(error))}"


def takes_stdout(use: UsedHook) -> bool:
    """Return whether a hook writes to stdout; False if the hook raises an exception instead of an answer."""
    if WATCHDOG.wants_notice:
        WATCHDOG.notice()
    try:
        return bool(use.hook.takes_stdout(use.settings))
    except BaseException as error:
        if is_interrupt(error):
            raise
        log.error("hook %s: its method takes_stdout raised %s", use.hook.name, brief(text_of(error)))  # noqa: TRY400 - the plugin's fault
        return False


class HookSet:
    """The hooks of one configuration. Routes that use the same hook with equal settings share one runner.

    Args:
        former: hooks of the previous configuration. Hooks that are in both configurations keep running.

    Attributes:
        in_use: each hook with its runner.
    """

    def __init__(self, former: HookSet | None = None) -> None:
        self._former = former.in_use if former is not None else []
        self.in_use: list[tuple[UsedHook, Runner]] = []

    def of_route(self, hooks: Sequence[UsedHook]) -> RouteHooks | None:
        """Return the hooks of a route with their runners, or None if the route has no hooks.

        Raises:
            ValueError: a hook cannot run in a process (see `make_runner`).
        """
        return RouteHooks([self._runner(one) for one in hooks]) if hooks else None

    @property
    def runners(self) -> Iterator[Runner]:
        """Yield each runner once."""
        for _, runner in self.in_use:
            yield runner

    def _runner(self, wanted: UsedHook) -> Runner:
        for at, runner in self.in_use:
            if _are_equal(at, wanted):
                return runner
        for at, runner in self._former:
            if _are_equal(at, wanted) and runner.state is RunnerState.RUNNING:
                self.in_use.append((wanted, runner))
                return runner
        self.in_use.append((wanted, make_runner(*wanted)))
        return self.in_use[-1][1]


def _are_equal(one: UsedHook, other: UsedHook) -> bool:
    """Return whether two uses of hooks can share a runner; False if settings raise when they are compared."""
    try:
        return one.hook is other.hook and bool(one.settings == other.settings)
    except BaseException as error:
        if is_interrupt(error):
            raise
        return False


class Hooks:
    """The hooks of an engine. This object starts and stops the hooks.

    Attributes:
        running: runners of the present configuration, and earlier runners that have not stopped yet.
        past: counters of the stopped hooks, by name, so that no count is lost.
    """

    def __init__(self) -> None:
        self.running: list[Runner] = []
        self.past: dict[str, HookCounters] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def use(self, hooks: HookSet) -> None:
        """Start the hooks that do not run. Stop each hook that is not in `hooks`, once it has no session."""
        wanted = list(hooks.runners)
        for runner in wanted:
            runner.reinstate()
            if runner not in self.running:
                runner.start()
                self.running.append(runner)
        for runner in self.running:
            if runner not in wanted:
                runner.retire(self._retire)
        if self._timer is None:
            self._look_later()

    def _look(self) -> None:
        for runner in self.running:
            runner.look()
        self._timer = None
        self._look_later()

    def _look_later(self) -> None:
        if self.running:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def _retire(self, runner: Runner) -> None:
        task = asyncio.get_running_loop().create_task(self._stop_one(runner, _RETIRING_SECONDS))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _stop_one(self, runner: Runner, seconds: float) -> None:
        await runner.stop(seconds)
        if runner in self.running:
            self.running.remove(runner)
            self.past.setdefault(runner.name, HookCounters()).add(runner.counters)

    async def stop(self, seconds: float) -> None:
        """Stop all hooks. Each hook may first spend `seconds` on the rest of its queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*(self._stop_one(runner, seconds) for runner in list(self.running)))
        await asyncio.gather(*self._retiring, return_exceptions=True)
