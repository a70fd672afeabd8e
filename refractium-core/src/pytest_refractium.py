"""The pytest plugin of Refractium: fixtures for the tests of plugins.

pytest imports this module whenever pytest starts. So the module is not a part of the package `refractium`,
and imports this package only when a test uses a fixture. Otherwise, a measurement of the coverage of
`refractium` would begin too late.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium import Route
    from refractium.contract import Protocol
    from refractium.testing import Proxy, Recorder, Serve


@pytest.fixture
def refractium_serve() -> Iterator[Serve]:
    """Return a function like `serve`; its proxies run until the test ends."""
    from refractium.testing import serve  # noqa: PLC0415 - the proxy, for tests that use the fixture

    with ExitStack() as stack:

        def start(*routes: Route | Protocol, **options: Any) -> Proxy:
            return stack.enter_context(serve(*routes, **options))

        yield start


@pytest.fixture
def refractium_recorder() -> Recorder:
    """Return a recorder, whose ``hook`` records the sessions of a proxy."""
    from refractium.testing import Recorder  # noqa: PLC0415 - for tests that use the fixture

    return Recorder()
