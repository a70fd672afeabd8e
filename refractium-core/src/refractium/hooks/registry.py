"""The hooks of one engine: which run, for which routes, and what those have seen that run no more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from refractium.contract import PacketHook, problems_of_hook
from refractium.hooks.counters import Counters
from refractium.hooks.runner import Runner, State
from refractium.hooks.taps import Taps, make_runner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from msgspec import Struct

HookUse: TypeAlias = "type[PacketHook[Any]] | tuple[type[PacketHook[Any]], Struct]"
"""A hook as a route names it: its class, alone or with settings."""

_LOOK_SECONDS = 1.0
"""Between looks at whether a hook is stalled."""
_RETIRING_SECONDS = 5.0
"""How long a hook that nobody uses any more has for what is in its queue."""


class UsedHook(NamedTuple):
    """A hook and the settings it is used with."""

    hook: type[PacketHook[Any]]
    settings: Struct


def used(use: HookUse) -> UsedHook:
    """A hook with its settings, those by default if it has none.

    Raises:
        ValueError: it is no hook, or its settings are not valid; the message says why.
    """
    hook, settings = use if isinstance(use, tuple) else (use, None)
    problems = list(problems_of_hook(hook))
    if not problems and settings is None:
        try:
            settings = hook.settings_type()
        except TypeError as error:
            problems = [f"hook {hook.name}: it needs settings: {error}"]
    if not problems and not isinstance(settings, hook.settings_type):
        problems = [f"hook {hook.name}: {settings!r} is not a {hook.settings_type.__name__}"]
    if not problems:
        problems = [f"hook {hook.name}: {key}: {message}" for key, message in hook.problems(settings)]
    if problems:
        raise ValueError("; ".join(problems))
    assert settings is not None  # noqa: S101 - it would have been a problem
    return UsedHook(hook, settings)


def merged(for_all: Sequence[UsedHook], own: Sequence[UsedHook]) -> list[UsedHook]:
    """The hooks of a route: those for all, and its own, which come before one of the same name."""
    return list(({one.hook.name: one for one in for_all} | {one.hook.name: one for one in own}).values())


def against_several(hooks: Iterable[UsedHook]) -> Iterator[str]:
    """Why some hooks cannot be there several times, once in each worker process."""
    reasons = {(hook.name, hook.needs_one_process(settings)): None for hook, settings in hooks}
    for name, reason in reasons:
        if reason:
            yield f"hook {name} can be there once only, not in each worker: {reason}"


class HookSet:
    """The hooks of one configuration. Routes that use the same one with the same settings share its runner.

    Args:
        former: those of the configuration that this one takes the place of; what is used in both goes on.

    Attributes:
        in_use: each hook with its runner.
    """

    def __init__(self, former: HookSet | None = None) -> None:
        self._former = former.in_use if former is not None else []
        self.in_use: list[tuple[UsedHook, Runner]] = []

    def taps(self, hooks: Sequence[UsedHook]) -> Taps | None:
        """What the sessions of a route are told to; nothing where no hook wants to know.

        Raises:
            ValueError: a hook cannot be had where it wants to run.
        """
        return Taps([self._runner(one) for one in hooks]) if hooks else None

    @property
    def runners(self) -> Iterator[Runner]:
        """Each once."""
        for _, runner in self.in_use:
            yield runner

    def _runner(self, wanted: UsedHook) -> Runner:
        for at, runner in self.in_use:
            if at == wanted:
                return runner
        for at, runner in self._former:
            if at == wanted and runner.state is State.RUNNING:
                self.in_use.append((wanted, runner))
                return runner
        self.in_use.append((wanted, make_runner(*wanted)))
        return self.in_use[-1][1]


class Hooks:
    """Starts and stops the hooks of an engine.

    Attributes:
        running: those that are told something, or still have sessions of an earlier configuration.
        past: what those have been told that were stopped, by name, so that nothing is forgotten.
    """

    def __init__(self) -> None:
        self.running: list[Runner] = []
        self.past: dict[str, Counters] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def use(self, hooks: HookSet) -> None:
        """Start those that are new; stop the others when the last of their sessions has ended."""
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
            self.past.setdefault(runner.name, Counters()).add(runner.counters)

    async def stop(self, seconds: float) -> None:
        """Let all of them have what is in their queues, for so long; then stop them."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await asyncio.gather(*(self._stop_one(runner, seconds) for runner in list(self.running)))
        await asyncio.gather(*self._retiring, return_exceptions=True)
