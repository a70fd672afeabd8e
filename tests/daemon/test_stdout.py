"""Output on stdout while several threads load plugins."""

from __future__ import annotations

import contextlib
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from refractium.daemon import stdout
from refractium.plugins import load_plugins

if TYPE_CHECKING:
    import pytest


def test_threads_that_load_plugins_at_once_restore_stdout() -> None:
    before, interval = sys.stdout, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: load_plugins(), range(40)))
    finally:
        after, sys.stdout = sys.stdout, before
        sys.setswitchinterval(interval)
    assert after is before


def test_prints_while_plugins_are_loaded_go_to_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stdout.claimed_stdout(), contextlib.redirect_stdout(io.StringIO()) as of_plugins:
        stdout.say("Listening")
    assert (capsys.readouterr().out, of_plugins.getvalue()) == ("Listening\n", "")
