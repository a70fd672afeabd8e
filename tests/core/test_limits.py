"""Counting in and out, exactly."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from refractium import Settings
from refractium.net.limits import Limits


def test_it_says_which_limit_keeps_a_client_out() -> None:
    limits = Limits(Settings(max_connections=3, max_connections_per_ip=2))
    assert [limits.enter("a"), limits.enter("a"), limits.enter("a")] == [None, None, "max_connections_per_ip"]
    assert [limits.enter("b"), limits.enter("b")] == [None, "max_connections"]
    limits.leave("a")
    assert limits.enter("b") is None


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=100))
def test_whoever_comes_and_goes_the_counts_are_those_of_who_is_in(steps: list[tuple[bool, str]]) -> None:
    limits = Limits(Settings(max_connections=5, max_connections_per_ip=3))
    inside: Counter[str] = Counter()
    for comes, ip in steps:
        if comes:
            fits = inside.total() < 5 and inside[ip] < 3
            assert (limits.enter(ip) is None) == fits
            inside[ip] += fits
        elif inside[ip]:
            limits.leave(ip)
            inside[ip] -= 1
        assert limits.active == inside.total()
        assert limits._by_ip == +inside
