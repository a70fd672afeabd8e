"""A pytest plugin: several processes, slow tests only on request, and one line of progress."""

from __future__ import annotations

import gc
import os
from types import SimpleNamespace
from typing import Any, Final

import pytest

from support.process import RUNTIME

WORKERS_PER_PROCESSOR: Final = 3
"""Test processes for each processor: most tests wait, so a processor has time for several tests."""

_MARKS: Final = 50
"""Number of dots in the line of progress."""
_LEFT_OUT: Final = pytest.StashKey[int]()
_SENT: Final = "slow tests left out"
"""The key under which a worker sends the number of slow tests to the process that prints the summary."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that are marked slow as well")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return the number of test processes; 0 if a test is named, so that it can be debugged."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 0 if _are_named(config) else WORKERS_PER_PROCESSOR * len(os.sched_getaffinity(0))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = 0
    if config.option.dist != "no" and config.get_verbosity() == 0:
        config.pluginmanager.register(_Progress(), "refractium-progress")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, unless ``--slow``, ``-m`` or their names ask for them."""
    if config.option.slow or config.option.markexpr or _are_named(config):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.stash[_LEFT_OUT] = len(slow)
    config.hook.pytest_deselected(items=slow)


def _are_named(config: pytest.Config) -> bool:
    return any("::" in argument for argument in config.args)


def pytest_collection_finish() -> None:
    """Exempt the objects that exist now from garbage collection, with which tests find open resources."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    RUNTIME.cleanup()  # workers end without this clean-up
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_SENT] = session.config.stash[_LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the number of slow tests from one worker: all workers have collected the same tests."""
    config: pytest.Config = node.config
    if not config.stash[_LEFT_OUT]:
        config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get(_SENT, 0)
        config.hook.pytest_deselected(items=[SimpleNamespace()] * config.stash[_LEFT_OUT])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash[_LEFT_OUT]:
        terminalreporter.write_line(f"{count} slow tests left out; run them as well with --slow", yellow=True)


class _Progress:
    """One line for the whole run: a dot for each fiftieth of the tests, and a letter for each failure."""

    def __init__(self) -> None:
        self._session: pytest.Session
        self._ended = 0
        self._dots = 0

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Print nothing for a test that has passed or that was skipped."""
        if report.outcome == "failed" or (report.when != "call" and report.outcome == "passed"):
            return None
        return report.outcome, "", report.outcome.upper()

    def pytest_runtest_logfinish(self) -> None:
        self._ended += 1
        reporter = self._session.config.pluginmanager.get_plugin("terminalreporter")
        while reporter and self._dots * self._session.testscollected < self._ended * _MARKS:
            share = self._dots * 100 // _MARKS
            reporter.write("." if share % 10 else f"{share}%", flush=True)
            self._dots += 1
