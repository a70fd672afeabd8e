"""Exact counts of clients that come and go."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium import Settings
from refractium.proxy.limiter import Limiter


def test_a_refused_client_gets_the_name_of_the_limit() -> None:
    limiter = Limiter(Settings(max_connections=3, max_connections_per_ip=2))
    assert [limiter.enter("a"), limiter.enter("a"), limiter.enter("a")] == [
        None,
        None,
        "max_connections_per_ip",
    ]
    assert [limiter.enter("b"), limiter.enter("b")] == [None, "max_connections"]
    limiter.leave("a")
    assert limiter.enter("b") is None


@pytest.mark.parametrize(
    ("first", "second", "prefix", "allowed"),
    [
        ("192.0.2.1", "192.0.2.1", 64, 1),
        ("192.0.2.1", "192.0.2.2", 64, 2),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", 64, 1),
        ("2001:db8::1", "2001:db8:0:1::1", 64, 2),
        ("2001:db8::1", "2001:db8:0:1::1", 56, 1),
        ("2001:db8::1", "2001:db8::2", 128, 2),
        ("fe80::1%lo", "fe80::2%lo", 64, 2),
        ("::ffff:0:1.2.3.4", "::ffff:0:1.2.3.5", 64, 1),
    ],
)
def test_clients_of_one_ipv6_network_count_as_one_address(
    first: str, second: str, prefix: int, allowed: int
) -> None:
    limiter = Limiter(Settings(max_connections_per_ip=1, ipv6_prefix_length=prefix))
    assert [limiter.enter(limiter.origin(ip)) for ip in (first, second)].count(None) == allowed


@given(st.ip_addresses(v=6), st.ip_addresses(v=6), st.integers(1, 128))
def test_an_origin_is_the_network_of_the_configured_prefix_length(
    one: IPv6Address, other: IPv6Address, prefix: int
) -> None:
    if one.is_link_local or other.is_link_local:
        return
    limiter = Limiter(Settings(ipv6_prefix_length=prefix))
    same = other in IPv6Network((one, prefix), strict=False)
    assert (limiter.origin(str(one)) == limiter.origin(str(other))) is same


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=100))
def test_after_any_comings_and_goings_the_counts_are_exact(steps: list[tuple[bool, str]]) -> None:
    limiter = Limiter(Settings(max_connections=5, max_connections_per_ip=3))
    inside: Counter[str] = Counter()
    for comes, ip in steps:
        if comes:
            fits = inside.total() < 5 and inside[ip] < 3
            assert (limiter.enter(ip) is None) == fits
            inside[ip] += fits
        elif inside[ip]:
            limiter.leave(ip)
            inside[ip] -= 1
        assert limiter.active == inside.total()
        assert limiter._by_origin == +inside
