from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.addresses.address import Address, is_host_name, is_own_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:443", Address("10.0.0.1", 443)),
        ("[::1]:443", Address("::1", 443)),
        ("[2001:DB8:0:0::1]:1", Address("2001:db8::1", 1)),
        ("[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("Name.Example:80", Address("name.example", 80)),
        ("localhost:65535", Address("localhost", 65535)),
        ("my_service:8080", Address("my_service", 8080)),
        ("unix:/run/web.sock", Address("", 0, "/run/web.sock")),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("10.0.0.1", 443), "10.0.0.1:443"),
        (("::1", 443, 0, 0), "[::1]:443"),
        ("/run/web.sock", "unix:/run/web.sock"),
    ],
)
def test_an_address_that_a_socket_gave_is_written_as_in_the_configuration(
    given: str | tuple[str, int], text: str
) -> None:
    assert str(Address.of(given)) == text


def test_an_address_to_listen_on_may_have_port_0() -> None:
    assert Address.parse("[::1]:0", lowest_port=0) == Address("::1", 0)
    with pytest.raises(ValueError, match="between 0 and 65535"):
        Address.parse("[::1]:65536", lowest_port=0)


def test_only_a_name_needs_resolving() -> None:
    names = {text: Address.parse(text).is_name for text in ("a:1", "10.0.0.1:1", "[::1]:1", "unix:/a")}
    assert names == {"a:1": True, "10.0.0.1:1": False, "[::1]:1": False, "unix:/a": False}
    assert Address.parse("unix:/a").is_unix
    assert not Address.parse("a:1").is_unix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.1:65536", "port 65536 is not between 1 and 65535"),
        ("10.0.0.1:0", "port 0 is not between 1 and 65535"),
        ("10.0.0.1:" + "9" * 5000, "is not between 1 and 65535"),
        ("10.0.0.1:-1", "port '-1' is not a number"),
        ("10.0.0.1:8O", "port '8O' is not a number"),
        ("10.0.0.1:٤", "is not a number"),
        ("10.0.0.1: 80", "is not a number"),
        ("::1:443", "an IPv6 address needs brackets: [::1]:443"),
        ("::1", "an IPv6 address needs brackets: [::1]:443"),
        ("http://10.0.0.1:80", "not a URL"),
        ("10.0.0.1:80:90", "an IPv6 address needs brackets"),
        ("10.0.0.1", "no port: write HOST:PORT"),
        ("10.0.0.1:", "no port: write HOST:PORT"),
        ("[::1]", "no port: write HOST:PORT"),
        ("", "no port: write HOST:PORT"),
        (":80", "no host: write HOST:PORT"),
        ("[10.0.0.1]:80", "'10.0.0.1' is not an IPv6 address"),
        ("[]:80", "'' is not an IPv6 address"),
        ("10.0.0.256:80", "'10.0.0.256' is not an IPv4 address"),
        ("a b:80", "'a b' is not a host name"),
        ("-a:80", "'-a' is not a host name"),
        ("a..b:80", "'a..b' is not a host name"),
        ("\x1b[31m:80", r"'\x1b[31m' is not a host name"),
        ("unix:run/web.sock", "a unix socket needs its whole path"),
        ("unix:/a\0b", "a path cannot contain NUL"),
        ("unix:/" + "a" * 107, "at most 107 bytes"),
    ],
)
def test_a_malformed_address_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is tested below
        Address.parse(text)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 120


@given(st.text(st.sampled_from("0123456789abc.:[]%-_/unix")))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


def test_a_host_name_consists_of_labels_and_is_not_an_address() -> None:
    assert all(map(is_host_name, ["a", "a.b-c.example", "example.org.", "_x.a", "a" * 63, "1.a"]))
    assert not any(
        map(is_host_name, ["", ".", "a..b", "a-", "a" * 64, ".".join(["a" * 60] * 5), "1.2.3.4", "a:1", "é"])
    )


@pytest.mark.parametrize(
    ("text", "bind", "own"),
    [
        ("127.0.0.1:80", "0.0.0.0", True),
        ("127.9.9.9:80", "0.0.0.0", True),
        ("localhost:80", "0.0.0.0", True),
        ("0.0.0.0:80", "0.0.0.0", True),
        ("0.0.0.0:80", "127.0.0.1", True),
        ("[::ffff:127.0.0.1]:80", "0.0.0.0", True),
        ("[::1]:80", "0.0.0.0", False),
        ("[::1]:80", "::", True),
        ("127.0.0.1:80", "::", True),
        ("127.0.0.1:80", "localhost", True),
        ("web.localhost:80", "::1", True),
        ("10.0.0.1:80", "10.0.0.1", True),
        ("10.0.0.2:80", "10.0.0.1", False),
        ("10.0.0.1:80", "0.0.0.0", False),
        ("127.0.0.2:80", "127.0.0.1", False),
        ("127.0.0.1:81", "0.0.0.0", False),
        ("proxy.example:80", "Proxy.example", True),
        ("other.example:80", "proxy.example", False),
        ("unix:/run/a", "0.0.0.0", False),
    ],
)
def test_a_target_written_like_the_listener_is_recognised_without_resolving(
    text: str, bind: str, *, own: bool
) -> None:
    assert is_own_address(Address.parse(text), bind, 80) is own


def test_a_port_that_the_system_chooses_is_never_named() -> None:
    assert not is_own_address(Address.parse("unix:/run/a"), "0.0.0.0", 0)
    assert not is_own_address(Address("127.0.0.1", 0), "0.0.0.0", 0)
