"""`[[listeners]]`, access rules and actions in the file: valid values, mistakes and warnings."""

from __future__ import annotations

import pytest

from refractium.contract import Transport
from support.configurations import assembled, problems_of

ROUTES = """
[[protocols]]
name = "http"
forward_to = "10.0.0.1:80"

[[protocols]]
name = "http"
id = "admin"
forward_to = "10.0.0.2:80"
"""
ROUTES_APART = ROUTES.replace('"http"\nforward', '"http"\nid = "web"\nforward')
SSH = '[[protocols]]\nname = "ssh"\nforward_to = "10.0.0.1:22"\n'
TWO = """
[[listeners]]
port = 80
routes = ["http"]
[[listeners]]
bind = "::1"
port = 8080
transports = ["tcp"]
routes = ["admin"]
allow = ["10.0.0.0/8", "::1"]
deny = ["10.6.6.6"]
"""


def problems(text: str) -> list[str]:
    return [f"{one.where}: {one.message}" for one in problems_of(text)]


def test_a_file_without_listeners_has_one_listener_from_the_server_table() -> None:
    (listener,) = assembled('[server]\nbind = "::1"\nport = 1\nallow = ["::1"]\n' + SSH).listeners
    assert (listener.name, listener.routes) == ("[::1]:1", None)
    assert listener.allow == ("::1",)


def test_listeners_have_routes_of_their_own() -> None:
    # Compared by protocol, both routes would belong to the first listener and be duplicates.
    found = assembled(TWO.replace('["http"]', '["web"]') + ROUTES_APART)
    assert found.warnings == ()
    first, second = found.listeners
    assert (first.bind, first.port, first.transports) == ("0.0.0.0", 80, tuple(Transport))
    assert (second.name, second.transports) == ("[::1]:8080", (Transport.TCP,))
    assert [second.rules.serves(route.label, route.name) for route in found.tcp] == [False, True]


def test_routes_are_duplicates_only_where_one_listener_serves_both() -> None:
    assert [line.partition(":")[0] for line in problems(ROUTES)] == ["protocols[1]"]
    assert [line.partition(":")[0] for line in problems(TWO + ROUTES)] == ["protocols[1]"]


def test_two_listeners_may_each_have_a_route_for_silent_clients() -> None:
    text = TWO.replace('["http"]', '["quiet"]')
    for name in ("quiet", "admin"):
        text += f'[[protocols]]\nname = "ftp"\nid = "{name}"\non_timeout = true\nforward_to = "a:1"\n'
    assert problems(text) == []


@pytest.mark.parametrize("line", ["port = 80", 'bind = "::"', 'allow = ["::1"]', 'deny = ["::1"]'])
def test_with_listeners_the_server_table_must_not_have_an_address(line: str) -> None:
    key = line.partition(" ")[0]
    (problem,) = problems(f"[server]\n{line}\n[[listeners]]\nport = 1\n")
    assert problem.startswith(f"server.{key}: the file has [[listeners]]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[listeners]]\n", "listeners[0]: no port"),
        ("[listeners]\nport = 1\n", "listeners: expected a list of tables: write [[listeners]]"),
        ("[[listeners]]\nport = 65536\n", "listeners[0].port: expected int <= 65535"),
        ("[[listeners]]\nport = 1\nbind = 'a:1'\n", "listeners[0].bind: not an IP address"),
        ("[[listeners]]\nport = 1\ntransports = ['sctp']\n", "listeners[0].transports[0]: "),
        ("[[listeners]]\nport = 1\ntransports = []\n", "listeners[0].transports: "),
        ("[[listeners]]\nport = 1\nroutes = []\n", "listeners[0].routes: is empty"),
        (
            "[[listeners]]\nport = 1\nallow = ['10.0.0.1/8']\n",
            "listeners[0].allow[0]: the address is not the start of its network: write 10.0.0.0/8",
        ),
        ("[[listeners]]\nport = 1\nprt = 1\n", "listeners[0].prt: unknown key: did you mean 'port'?"),
        ("transports = ['tcp']\n", "transports: unknown key: it belongs in [[listeners]]"),
        (
            "[[listeners]]\nport = 1\n[[listeners]]\nport = 1\ntransports = ['udp']\n",
            "listeners[1]: has the same address as listeners[0]",
        ),
        ("[server]\ndeny = ['all']\n", "server.deny[0]: not an address or a network"),
        ("[[protocols]]\nname = 'ssh'\n", "protocols[0]: no forward_to"),
        ("[[protocols]]\nname = 'ssh'\naction = 'drop'\n", "protocols[0].action: write 'reject' or 'reset'"),
        (
            "[[protocols]]\nname = 'ssh'\naction = 'reject'\nforward_to = 'a:1'\n",
            "protocols[0].forward_to: a route has backends or an action",
        ),
        (
            "[[protocols]]\nname = 'ssh'\nid = 'A b'\nforward_to = 'a:1'\n",
            "protocols[0].id: a name is up to 64 lower-case",
        ),
        (
            ROUTES.replace('"admin"', '"http"'),
            "protocols[1].id: protocols[0] has this name, after its protocol",
        ),
        (
            2 * "[[protocols]]\nname = 'ssh'\nid = 'a'\nforward_to = 'a:1'\n",
            "protocols[1].id: protocols[0] has this id already",
        ),
    ],
)
def test_each_mistake_is_named(text: str, expected: str) -> None:
    assert expected in "\n".join(problems(text))


def test_a_route_that_no_listener_serves_causes_a_warning() -> None:
    (warning,) = assembled('[[listeners]]\nport = 1\nroutes = ["admin"]\n' + ROUTES_APART).warnings
    assert (warning.where, warning.message) == ("protocols[0]", "no listener serves this route")


def test_a_backend_that_is_one_of_the_listeners_causes_a_warning() -> None:
    text = 'fallback_tcp = "127.0.0.1:2"\n[[listeners]]\nport = 1\n[[listeners]]\nport = 2\n'
    assert [one.where for one in assembled(text).warnings] == ["server.fallback_tcp"]
