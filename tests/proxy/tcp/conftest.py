"""A check after each test that nothing is left open. Some tests run on every path that bytes may take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import paths
from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps
from support.paths import data_path

if TYPE_CHECKING:
    import pytest

__all__ = ["data_path", "nothing_is_left_open", "uvloop_has_what_it_keeps"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths.run_on(paths.TCP, metafunc)
