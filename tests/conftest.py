"""For the whole suite."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

from support.ipv6 import ADDRESSES, HAS_IPV6

pytest_plugins = ["support.running"]

# How long an example takes says more about what else the machine is doing than about the code.
settings.register_profile("refractium", deadline=None)
settings.load_profile("refractium")

# A shell has what it starts in the background ignore Ctrl-C, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs IPv6 where there is none: what says so, and what has such an address as a parameter."""
    if HAS_IPV6:
        return
    skip = pytest.mark.skip(reason="needs IPv6 on the loopback interface (::1)")
    for item in items:
        call = getattr(item, "callspec", None)  # of those with parameters
        works_with = call.params.values() if call is not None else ()
        if item.get_closest_marker("needs_ipv6") or any(address in works_with for address in ADDRESSES):
            item.add_marker(skip)
