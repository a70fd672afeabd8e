"""Settings of the whole test suite."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from support.ipv6 import ADDRESSES, HAS_IPV6

pytest_plugins = ["support.running"]

# The duration of an example says more about the load of the machine than about the code.
settings.register_profile("refractium", deadline=None)
settings.load_profile("refractium")

# A shell makes its background processes ignore Ctrl-C, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need IPv6 on a machine without it: tests with the marker, and tests with an IPv6
    address as a parameter."""
    if HAS_IPV6:
        return
    skip = pytest.mark.skip(reason="needs IPv6 on the loopback interface (::1)")
    for item in items:
        call = getattr(item, "callspec", None)  # only parametrised tests have it
        works_with = call.params.values() if call is not None else ()
        if item.get_closest_marker("needs_ipv6") or any(address in works_with for address in ADDRESSES):
            item.add_marker(skip)
