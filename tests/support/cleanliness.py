"""Fixtures that check that a test leaves nothing open, for the conftest of each folder of engine tests."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest
import uvloop

from support.proxy import eventually, open_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def uvloop_has_what_it_keeps() -> None:
    """Make the first uvloop of the process, which opens a pipe that stays open."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    before, threads = open_descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    assert open_descriptors() <= before
    eventually(lambda: set(threading.enumerate()) <= threads, "no thread is left")  # a lookup may still end
