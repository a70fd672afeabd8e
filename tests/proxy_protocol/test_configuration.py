"""The keys of the PROXY protocol in the file: valid values, and the errors for invalid ones."""

from __future__ import annotations

import jsonschema
import pytest
import tomli

from refractium import Route
from refractium.cli import render
from refractium.config import Source, decode, json_schema
from support.configurations import assembled, problems_of

SERVED = """
[server]
proxy_protocol_from = ["10.0.0.0/8", "::1", "2001:db8::/32"]

[[protocols]]
name = "http"
forward_to = "127.0.0.1:80"
proxy_protocol = "v1"

[[protocols]]
name = "dns"
forward_to = "127.0.0.1:53"
proxy_protocol = "v2"

[[protocols]]
name = "ssh"
forward_to = "127.0.0.1:22"
"""


def test_the_keys_of_the_file_reach_routes_and_settings() -> None:
    served = assembled(SERVED)
    assert served.server.proxy_protocol_from == ("10.0.0.0/8", "::1", "2001:db8::/32")
    assert [route.proxy_protocol for route in served.tcp] == ["v1", "v2", None]
    assert [route.proxy_protocol for route in served.udp] == ["v2"]


def test_the_schema_accepts_and_refuses_the_same_values() -> None:
    document = tomli.loads(SERVED)
    jsonschema.validate(document, json_schema())
    document["protocols"][0]["proxy_protocol"] = "v3"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json_schema())


@pytest.mark.parametrize(
    ("written", "where", "message"),
    [
        ('["10.0.0.1/8"]', "server.proxy_protocol_from[0]", "write 10.0.0.0/8"),
        ('["::1", "lb.example"]', "server.proxy_protocol_from[1]", "not an address or a network"),
        ('["10.0.0.1:80"]', "server.proxy_protocol_from[0]", "not an address or a network"),
        ('["::ffff:10.0.0.0/104"]', "server.proxy_protocol_from[0]", "IPv4 addresses"),
        ('["10.0.0.0/33"]', "server.proxy_protocol_from[0]", "not an address or a network"),
        ('["10.0.0.1", 7]', "server.proxy_protocol_from[1]", "expected str, got int"),
        ('"10.0.0.1"', "server.proxy_protocol_from", "expected array, got str"),
        ("[]", "server.proxy_protocol_from", "is empty"),
    ],
)
def test_trusted_proxies_must_be_addresses_or_networks(written: str, where: str, message: str) -> None:
    (problem,) = decode(Source(f"[server]\nproxy_protocol_from = {written}\n", "file.toml")).problems
    assert (problem.where, problem.line) == (where, 2)
    assert message in problem.message


@pytest.mark.parametrize("written", ['"v3"', '"V1"', "2", "true"])
def test_only_the_versions_v1_and_v2_are_accepted(written: str) -> None:
    text = f'[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:22"\nproxy_protocol = {written}\n'
    (problem,) = decode(Source(text, "file.toml")).problems
    assert (problem.where, problem.line) == ("protocols[0].proxy_protocol", 4)
    assert "write 'v1' or 'v2'" in problem.message


@pytest.mark.parametrize("transport", ["", 'transport = "udp"'])
def test_version_1_is_refused_for_routes_of_datagrams(transport: str) -> None:
    text = f'[[protocols]]\nname = "dns"\nforward_to = "127.0.0.1:53"\nproxy_protocol = "v1"\n{transport}\n'
    (problem,) = problems_of(text)
    assert (problem.where, problem.line) == ("protocols[0].proxy_protocol", 4)
    assert 'write "v2", or transport = "tcp"' in problem.message


def test_the_error_for_a_key_in_the_wrong_table_names_the_right_one() -> None:
    text = '[server]\nproxy_protocol = "v1"\n[[protocols]]\nname = "ssh"\nforward_to = "a:1"\n'
    (problem,) = decode(Source(text + 'proxy_protocol_from = ["::1"]\n', "")).problems[:1]
    assert problem.message == "unknown key: it belongs in [[protocols]]"


def test_check_shows_the_version_of_routes() -> None:
    with_it, without = (route for route in assembled(SERVED).tcp if route.name in {"http", "ssh"})
    assert isinstance(with_it, Route)
    assert render.route_as_dict(with_it)["proxy_protocol"] == "v1"
    assert "proxy_protocol" not in render.route_as_dict(without)
    assert "v1" in render.route_row(with_it)
