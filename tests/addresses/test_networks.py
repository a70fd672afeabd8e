from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.addresses.networks import AccessRules, Networks, parse_network, plain_ip

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
NETWORKS = (
    st.one_of(
        st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
        st.tuples(st.ip_addresses(v=6), st.integers(0, 128)),
    )
    .map(lambda of: ip_network(of, strict=False))
    .filter(lambda network: network.version == 4 or network.network_address.ipv4_mapped is None)
)


@given(st.lists(NETWORKS), ADDRESSES)
def test_a_list_of_networks_contains_an_address_that_one_of_them_contains(
    networks: list[object], ip: str
) -> None:
    found = ip in Networks(map(str, networks))
    assert found == any(ip_address(ip) in ip_network(str(network)) for network in networks)


@given(NETWORKS, st.data())
def test_every_address_of_a_network_is_found(network: object, data: st.DataObject) -> None:
    inside = ip_network(str(network))
    at = data.draw(st.integers(0, inside.num_addresses - 1))
    assert str(inside[at]) in Networks([str(network)])


@given(st.lists(NETWORKS), ADDRESSES, ADDRESSES)
def test_addresses_with_the_same_narrowest_network_are_in_the_same_networks(
    networks: list[object], one: str, other: str
) -> None:
    found = Networks(map(str, networks))
    places = [[ip_address(ip) in ip_network(str(network)) for network in networks] for ip in (one, other)]
    assert (found.narrowest(one) is None) == (not any(places[0]))
    assert found.narrowest(one) != found.narrowest(other) or places[0] == places[1]


@given(st.lists(NETWORKS, min_size=1), st.data())
def test_the_narrowest_network_tells_all_networks_apart(networks: list[object], data: st.DataObject) -> None:
    network = ip_network(str(data.draw(st.sampled_from(networks))))
    one, other = (str(network[data.draw(st.integers(0, network.num_addresses - 1))]) for _ in range(2))
    found = Networks(map(str, networks))
    places = [[ip_address(ip) in ip_network(str(network)) for network in networks] for ip in (one, other)]
    assert (found.narrowest(one) == found.narrowest(other)) == (places[0] == places[1])


@pytest.mark.parametrize(
    ("shown", "ip"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:0:192.0.2.1", "::ffff:0:192.0.2.1"),
        ("::ffff:0:102:304", "::ffff:0:102:304"),
        ("::ffff:1:2:3", "::ffff:1:2:3"),
        ("::ffff:1", "::ffff:1"),
        ("::192.0.2.1", "::192.0.2.1"),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.1"),
        ("fe80::1%lo", "fe80::1%lo"),
    ],
)
def test_only_an_ipv4_mapped_address_becomes_an_ipv4_address(shown: str, ip: str) -> None:
    assert plain_ip(shown) == ip


@given(st.ip_addresses(v=6))
def test_every_ipv6_address_in_the_form_of_the_kernel_keeps_its_value(address: IPv6Address) -> None:
    shown = socket.inet_ntop(socket.AF_INET6, address.packed)
    expected = address.ipv4_mapped or address
    assert ip_address(plain_ip(shown)) == expected
    assert AccessRules(["::/0", "0.0.0.0/0"], []).admits(plain_ip(shown))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1/8", "write 10.0.0.0/8"),
        ("10.0.0.0/33", "not an address or a network"),
        ("example.org", "not an address or a network"),
        ("::ffff:10.0.0.0/104", "IPv4 clients are known by their IPv4 addresses"),
        ("", "not an address or a network"),
    ],
)
def test_a_malformed_network_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_network(text)
    with pytest.raises(ValueError, match=message):
        Networks(["10.0.0.0/8", text])


@pytest.mark.parametrize(
    ("allow", "deny", "admitted", "kept_out"),
    [
        ((), (), ("10.0.0.1", "::1"), ()),
        (("10.0.0.0/8",), (), ("10.1.2.3",), ("11.0.0.1", "::1")),
        ((), ("10.0.0.0/8",), ("11.0.0.1", "::1"), ("10.1.2.3",)),
        (("10.0.0.0/8", "::1"), ("10.6.6.0/24",), ("10.6.7.1", "::1"), ("10.6.6.6", "::2", "11.0.0.1")),
        (("10.6.6.6",), ("0.0.0.0/0",), (), ("10.6.6.6",)),
    ],
)
def test_a_client_is_admitted_if_it_is_allowed_and_not_denied(
    allow: tuple[str, ...], deny: tuple[str, ...], admitted: tuple[str, ...], kept_out: tuple[str, ...]
) -> None:
    access = AccessRules(allow, deny)
    assert [ip for ip in (*admitted, *kept_out) if access.admits(ip)] == list(admitted)
