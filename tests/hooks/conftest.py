"""Fixtures for packet hooks: each test must leave no thread, child process or descriptor behind."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps
from support.hooks import PATIENCE, RELEASE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["nothing_is_left_open", "uvloop_has_what_it_keeps"]


@pytest.fixture(autouse=True)
def blocked_threads_go_on(nothing_is_left_open: None) -> Iterator[None]:  # noqa: ARG001 - ends before that check
    RELEASE.clear()
    yield
    RELEASE.set()
    for thread in threading.enumerate():
        if thread.name.startswith("hook "):
            thread.join(PATIENCE)
