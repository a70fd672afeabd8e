"""Problems and warnings about a whole configuration: routes, listeners and settings together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import Struct

from refractium.assembly.sources import Overrides
from refractium.errors import ConfigError
from refractium.plugins.installed import Given
from refractium.plugins.loading import load_plugins
from refractium_proto_http import Http
from support.configurations import FILE, assembled, problems_of


def route(name: str = "https", to: str = '"10.0.0.1:1"', **keys: str) -> str:
    """Return the table of a route; each key has its value in TOML."""
    lines = [f'name = "{name}"', f"forward_to = {to}", *(f"{key} = {value}" for key, value in keys.items())]
    return "\n".join(("[[protocols]]", *lines, ""))


def places_of_problems(*tables: str) -> list[str]:
    return [one.where for one in problems_of("".join(tables))]


def places_of_warnings(*tables: str) -> list[str]:
    return [one.where for one in assembled("".join(tables)).warnings]


def settings(**keys: object) -> str:
    return "".join(("[server]\n", *(f"{key} = {value}\n" for key, value in keys.items())))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route(), route()),
        (route(sni='"a"'), route(sni='["b", "A."]')),
        (route(sni='"a"', alpn='"h2"'), route(sni='"a"', alpn='["h3", "h2"]')),
        (route("http", host='"a"'), route("http", host='"a"')),
        (route("dns", transport='"tcp"'), route("dns", transport='"tcp"')),
        (route("dns", transport='"tcp"'), route("dns")),
        (route("mine", patterns='["a"]'), route("mine", patterns='["b"]')),
    ],
)
def test_routes_with_equal_conditions_are_duplicates(one: str, other: str) -> None:
    assert places_of_problems(one, other) == ["protocols[1]"]
    assert places_of_problems(other, one) == ["protocols[1]"]


def test_one_listener_has_one_route_for_all_other_clients() -> None:
    fallback = settings(fallback_tcp='"10.0.0.1:1"')
    assert places_of_problems(fallback, route("any", transport='"tcp"')) == ["server.fallback_tcp"]
    assert places_of_problems(fallback, route("any", transport='"udp"')) == []
    assert places_of_problems(fallback, route("any", client='"::1"')) == []
    assert places_of_problems(fallback, route("any", allow='["::1"]')) == []
    assert places_of_problems(route("any"), route("any", id='"second"')) == ["protocols[1]"]
    listeners = (
        "[[listeners]]\nport = 1\nroutes = ['any']\n",
        "[[listeners]]\nport = 2\nroutes = ['x']\n",
    )
    apart = route("any", id='"x"'), route("any", id='"y"')
    assert places_of_problems(*apart, listeners[1]) == []
    assert places_of_problems(*apart, *listeners) == ["protocols[1]"]


@pytest.mark.parametrize(
    ("table", "place"),
    [
        (route("any", sni='"a.example"'), "protocols[0].sni"),
        (route("any", host='"a.example"'), "protocols[0].host"),
        (route("any", alpn='"h2"'), "protocols[0].alpn"),
        (route("any", patterns='["a"]'), "protocols[0].name"),
        (route("http", id='"fallback"'), "protocols[0].id"),
        (route("fallback", patterns='["abc"]'), "protocols[0].name"),
        (route("any", '"unix:/a"'), "protocols[0].forward_to"),
    ],
)
def test_a_route_for_all_other_clients_refuses(table: str, place: str) -> None:
    assert dict.fromkeys(places_of_problems(table)) == {place: None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route(client='"10.0.0.0/8"'), route()),
        (route(client='"10.0.0.0/8"'), route(client='"10.1.0.0/16"')),
        (route(client='"10.0.0.0/8"'), route(client='["10.0.0.0/8", "::1"]')),
        (route(allow='["10.0.0.0/8"]'), route()),
        (route(allow='["10.0.0.0/8"]'), route(deny='["10.0.0.0/8"]')),
        (route(deny='["10.0.0.0/8"]'), route()),
        (route(sni='"a"', allow='["10.0.0.0/8"]'), route(sni='["b", "A."]')),
        (route("mine", patterns='["a"]', client='"::1"'), route("mine", patterns='["a"]')),
        (route("dns", allow='["10.0.0.0/8"]'), route("dns")),
    ],
)
def test_routes_that_differ_in_their_clients_are_not_duplicates(one: str, other: str) -> None:
    assert places_of_problems(one, other) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route(client='"10.0.0.0/8"'), route(client='["10.0.0.0/8"]')),
        (route(sni='"**.a"'), route(sni='["b", "**.A."]')),
        (route(sni="{ regex = 'a+' }"), route(sni="['b', { regex = 'a+' }]")),
        (route(client='["::1", "10.0.0.0/8"]'), route(client='["10.0.0.0/8", "0:0::1"]')),
        (route(allow='["::1", "10.0.0.0/8"]'), route(allow='["10.0.0.0/8", "::1/128"]')),
        (route(client='"::1"', deny='["10.0.0.1"]'), route(client='"::1"', deny='["10.0.0.1/32"]')),
    ],
)
def test_routes_with_equal_networks_are_duplicates(one: str, other: str) -> None:
    for tables in ((one, other), (other, one)):
        (problem,) = problems_of("".join(tables))
        assert problem.where == "protocols[1]"
        assert "put all backends into one route" in problem.message


@pytest.mark.parametrize(
    "later",
    [route(allow='["10.0.0.0/8"]'), route(deny='["10.0.0.0/8"]'), route(sni='"a"', allow='["10.0.0.0/8"]')],
)
def test_a_route_below_one_that_takes_all_clients_is_refused(later: str) -> None:
    first = later.replace('allow = ["10.0.0.0/8"]', "").replace('deny = ["10.0.0.0/8"]', "")
    (problem,) = problems_of(first + later)
    assert problem.where == "protocols[1]"
    assert "no client reaches this route" in problem.message
    assert "above protocols[0]" in problem.message
    assert places_of_problems(later, first) == []
    lan = route(allow='["192.168.0.0/16"]')
    (problem,) = problems_of(lan + first + later) if "sni" not in later else problems_of(first + lan + later)
    assert problem.where == "protocols[2]"


def test_a_name_stands_for_one_set_of_patterns() -> None:
    one, other = route("mine", patterns='["a", "b"]'), route("mine", patterns='["b"]', client='"::1"')
    (problem,) = problems_of(one + other)
    assert problem.where == "protocols[1]"
    assert "protocols[0] defines mine by other patterns" in problem.message
    assert places_of_problems(one, route("mine", patterns='["b", "a"]', client='"::1"')) == []
    by_transport = [route("mine", patterns=f'["{one}"]', transport=f'"{one}"') for one in ("tcp", "udp")]
    assert places_of_problems(*by_transport) == []


@pytest.mark.parametrize(
    ("one", "other", "reached"),
    [
        ({"client": '"10.0.0.0/8"'}, {"client": '"10.1.0.0/16"'}, False),
        ({"client": '"10.1.0.0/16"'}, {"client": '"10.0.0.0/8"'}, True),
        ({"client": '["::/0", "10.0.0.0/8"]'}, {"client": '["10.1.0.0/16", "::1"]'}, False),
        ({"allow": '["10.0.0.0/8"]'}, {"allow": '["10.1.0.0/16"]'}, False),
        ({"allow": '["10.0.0.0/8"]'}, {"allow": '["10.1.0.0/16"]', "deny": '["10.1.1.1"]'}, False),
        ({"allow": '["10.0.0.0/8"]', "deny": '["10.1.1.1"]'}, {"allow": '["10.1.0.0/16"]'}, True),
        ({"deny": '["10.1.1.1"]'}, {"deny": '["10.0.0.0/8"]'}, False),
        ({"client": '"::/0"', "allow": '["::1"]'}, {"client": '"::1"'}, False),
        ({"client": '"::/0"', "allow": '["::1"]'}, {"client": '"::2/127"'}, True),
        ({"sni": '["a", "b"]', "client": '"::/0"'}, {"sni": '"b"', "client": '"::1"'}, False),
        ({"sni": '"a"', "client": '"::/0"'}, {"client": '"::1"'}, True),
        ({"alpn": '"h2"', "client": '"::/0"'}, {"client": '"::1"'}, True),
    ],
)
def test_a_route_whose_clients_all_go_to_an_earlier_one_causes_a_warning(
    one: dict[str, str], other: dict[str, str], *, reached: bool
) -> None:
    assert places_of_warnings(route(**one), route(**other)) == ([] if reached else ["protocols[1]"])


def test_every_further_duplicate_names_the_first() -> None:
    found = problems_of(3 * route())
    assert [(one.where, "as protocols[0]:" in one.message) for one in found] == [
        ("protocols[1]", True),
        ("protocols[2]", True),
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (route("http"), route("https")),
        (route(sni='"a"'), route()),
        (route(sni='"a"'), route(sni='"b"')),
        (route(sni='"*.a"'), route(sni='"x.a"')),
        (route(sni='"*.a"'), route(sni='"**.a"')),
        (route(sni="{ regex = 'a+' }"), route(sni="{ regex = 'a*' }")),
        (route(sni="{ regex = 'a' }"), route(sni='"a"')),
        (route(sni='"a"', alpn='"h2"'), route(sni='"a"')),
        (route(sni='"a"', alpn='"h2"'), route(sni='"a"', alpn='"h3"')),
        (route("dns", transport='"tcp"'), route("dns", transport='"udp"')),
        (route(sni='["a", "a"]'), route(sni='"b"')),
    ],
)
def test_routes_that_differ_in_a_condition_are_not_duplicates(one: str, other: str) -> None:
    assert places_of_problems(one, other) == []


def test_a_route_that_lost_a_condition_is_not_called_a_duplicate() -> None:
    assert places_of_problems(route(), route(sni='"*"')) == ["protocols[1].sni"]


def test_only_one_route_of_a_transport_may_take_silent_clients() -> None:
    ftp, ssh = route("ftp", on_timeout="true"), route("ssh", on_timeout="true")
    assert places_of_problems(ftp, ssh) == ["protocols[1].on_timeout"]
    assert places_of_problems(ftp, route("ssh", on_timeout="false"), route("http")) == []


@pytest.mark.parametrize(
    ("one", "other", "places"),
    [
        (("ssh", {"client": '"::1"'}), ("ssh", {}), []),
        (("ssh", {}), ("ftp", {"client": '"::1"'}), []),
        (("ssh", {"client": '"::1"'}), ("ftp", {"client": '"::1"'}), ["protocols[1].on_timeout"]),
        (("ssh", {"allow": '["::1"]'}), ("ssh", {}), []),
        (("ssh", {"allow": '["::1"]'}), ("ftp", {}), ["protocols[1].on_timeout"]),
    ],
)
def test_several_routes_may_take_the_silent_clients_of_different_networks(
    one: tuple[str, dict[str, str]], other: tuple[str, dict[str, str]], places: list[str]
) -> None:
    tables = [route(name, on_timeout="true", **keys) for name, keys in (one, other)]
    assert places_of_problems(*tables) == places


def test_only_silent_clients_without_a_route_of_their_own_cause_a_warning() -> None:
    assert places_of_warnings(route("ftp", client='"::1"'), route("ftp")) == []
    assert places_of_warnings(route("ftp", allow='["::1"]'), route("ftp")) == []
    smtp = route("smtp", patterns='["EHLO"]', transport='"tcp"', on_timeout="true")
    assert places_of_warnings(smtp, route("ftp", on_timeout="false")) == []
    assert places_of_warnings(route("ftp"), smtp)[0] == "protocols[0]"


def test_a_datagram_cannot_be_silent() -> None:
    assert places_of_problems(route("dns", on_timeout="true")) == []
    assert places_of_problems(route("dns", on_timeout="true", transport='"udp"')) == [
        "protocols[0].on_timeout"
    ]


def test_an_idle_timeout_is_for_connections() -> None:
    both = route("dns", idle_timeout_ms="1")
    assert [one.idle_timeout_ms for one in (*assembled(both).tcp, *assembled(both).udp)] == [1, None]
    assert places_of_problems(route("dns", idle_timeout_ms="1", transport='"udp"')) == [
        "protocols[0].idle_timeout_ms"
    ]


def test_a_number_of_answers_is_for_datagrams() -> None:
    both = route("dns", udp_responses="2")
    assert [one.udp_responses for one in (*assembled(both).tcp, *assembled(both).udp)] == [None, 2]
    for wrong in (route("dns", udp_responses="2", transport='"tcp"'), route("dns", udp_responses="-1")):
        assert places_of_problems(wrong) == ["protocols[0].udp_responses"]


def test_a_unix_socket_is_no_target_for_datagrams() -> None:
    backends = '["10.0.0.1:1", "unix:/a"]'
    (problem,) = problems_of(route("dns", backends, transport='"udp"'))
    assert (problem.where, problem.line) == ("protocols[0].forward_to[1]", 3)
    (problem,) = problems_of(route("dns", backends))
    assert (problem.where, 'add transport = "tcp"' in problem.message) == ("protocols[0].forward_to", True)
    assert places_of_problems(route("dns", '"unix:/a"', transport='"udp"')) == ["protocols[0].forward_to"]
    assert places_of_problems(route("dns", backends, transport='"tcp"')) == []
    assert places_of_problems(settings(fallback_udp='"unix:/a"')) == ["server.fallback_udp"]
    assert places_of_problems(settings(fallback_tcp='"unix:/a"')) == []


def test_a_pattern_must_end_within_the_peek_buffer() -> None:
    long = route("mine", patterns=f"['{16 * 'a'}', '{17 * 'a'}']")
    (problem,) = problems_of(settings(peek_buffer_size=16) + long)
    assert (problem.where, problem.line) == ("protocols[0].patterns[1]", 6)
    assert "peek_buffer_size" in problem.message
    assert places_of_problems(long) == []


def test_limits_that_are_too_wide_to_protect_cause_a_warning() -> None:
    assert places_of_warnings(settings(peek_timeout_ms=5000, max_connections_per_ip=200), route()) == []
    assert places_of_warnings(settings(peek_timeout_ms=5001), route()) == ["server.peek_timeout_ms"]
    assert places_of_warnings(settings(max_connections_per_ip=201), route()) == [
        "server.max_connections_per_ip"
    ]
    assert places_of_warnings(settings(max_connections=50), route()) == ["server.max_connections_per_ip"]


def test_a_backend_listed_twice_in_one_route_causes_a_warning() -> None:
    twice = '["10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:1", { address = "10.0.0.2:1", weight = 2 }]'
    assert places_of_warnings(route(to=twice), route("http")) == [
        "protocols[0].forward_to[2]",
        "protocols[0].forward_to[3]",
    ]
    assert places_of_warnings(route(), route("http")) == []


def test_targets_that_are_the_listener_itself_cause_a_warning() -> None:
    fallbacks = {"fallback_tcp": '"127.0.0.1:8080"', "fallback_udp": '"127.0.0.1:8081"'}
    loop = route(to='["10.0.0.1:8080", "localhost:8080"]')
    assert places_of_warnings(settings(**fallbacks), loop) == [
        "protocols[0].forward_to[1]",
        "server.fallback_tcp",
    ]
    assert places_of_warnings(settings(**fallbacks, port=0), loop) == []
    bound = settings(**fallbacks, bind='"10.0.0.1"')
    assert places_of_warnings(bound, loop) == ["protocols[0].forward_to[0]"]
    (warning,) = assembled('fallback_tcp = "127.0.0.1:8080"\n').warnings
    assert (warning.where, warning.line) == ("server.fallback_tcp", 1)
    assert "listens on 127.0.0.1:8080" in warning.message


def test_problems_of_all_steps_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = f"""
[server]
max_connections = 0
[[protocols]]
name = "http"
forward_to = "a:1"
sni = "a.example"
[[protocols]]
name = "gopher"
forward_to = "a"
{route("dns")}{route("dns")}[[listeners]]
port = 1
routes = ["dns", "dsn"]
"""
    with pytest.raises(ConfigError) as caught:
        assembled(text, overrides=Overrides(forwards=["ssh"]))
    found = [(one.source, one.where, one.line) for one in caught.value.problems]
    assert found == [
        (None, "-f ssh", None),
        (FILE, "server.max_connections", 3),
        (FILE, "protocols[0].sni", 7),
        (FILE, "protocols[1].name", 9),
        (FILE, "protocols[1].forward_to", 10),
        (FILE, "protocols[3]", 14),
        (FILE, "listeners[0].routes[1]", 19),
    ]


def test_a_listener_behind_one_with_a_mistake_keeps_its_number() -> None:
    text = '[[listeners]]\nport = "x"\n[[listeners]]\nport = 1\nroutes = ["htpp"]\n' + route("http")
    assert places_of_problems(text) == ["listeners[0].port", "listeners[1].routes[0]"]


def listener(port: int, **keys: str) -> str:
    """Return the table of a listener; each key has its value in TOML."""
    return "".join(
        (
            "[[listeners]]\nbind = '127.0.0.1'\n",
            f"port = {port}\n",
            *(f"{k} = {v}\n" for k, v in keys.items()),
        )
    )


UDP_53 = listener(53, transports="['udp']")
TCP_80 = listener(80, transports="['tcp']")


@pytest.mark.parametrize(
    ("written", "places"),
    [
        # A backend that is a listener of the other transport, or of a transport that is not open.
        (
            UDP_53
            + TCP_80
            + route("http", '"127.0.0.1:53"')
            + route("dns", '"127.0.0.1:80"', transport='"udp"'),
            [],
        ),
        (
            listener(53, routes="['d']")
            + TCP_80
            + route("http", '"127.0.0.1:53"')
            + route("dns", id='"d"', transport='"udp"'),
            [],
        ),
        (UDP_53 + TCP_80 + route("dns", '"127.0.0.1:80"'), ["protocols[0].forward_to"]),
        (UDP_53 + TCP_80 + route("dns", '"127.0.0.1:53"'), ["protocols[0].forward_to"]),
        (TCP_80 + "[server]\nfallback_tcp = '127.0.0.1:80'\n", ["server.fallback_tcp"]),
        # A route that is served over none of its transports.
        (TCP_80 + route("dns") + route("dns", transport='"udp"', id='"x"', client='"::1"'), ["protocols[1]"]),
        (UDP_53 + TCP_80.replace("80", "81") + route("dns") + route("http"), []),
        (
            listener(53, transports="['udp']", routes="['http']")
            + TCP_80
            + route("dns")
            + route("http", id='"h"'),
            [],
        ),
        (
            listener(53, transports="['udp']", routes="['http']")
            + listener(80, routes="['dns']")
            + route("dns")
            + route("http"),
            ["protocols[1]"],
        ),
        (TCP_80 + route() + "[server]\nfallback_udp = '10.0.0.1:1'\n", ["server.fallback_udp"]),
    ],
)
def test_backends_and_routes_are_judged_by_the_transports_of_each_listener(
    written: str, places: list[str]
) -> None:
    assert places_of_warnings(written) == places


@pytest.mark.parametrize(
    ("written", "places"),
    [
        (route(hooks='["PCAP", "pcpa"]'), ["protocols[0].hooks[0]", "protocols[0].hooks[1]"]),
        (settings(hooks='[5, {}, "pcpa"]') + route(), [f"server.hooks[{at}]" for at in range(3)]),
        (
            "[[listeners]]\nport = 1\nroutes = ['A', 'https', 'b', 'C', 'd']\n" + route(),
            [f"listeners[0].routes[{at}]" for at in (0, 2, 3, 4)],
        ),
    ],
)
def test_an_entry_after_an_invalid_entry_keeps_its_number(written: str, places: list[str]) -> None:
    found = places_of_problems(written)
    assert sorted(found) == places


def test_an_unknown_id_of_a_disabled_plugin_is_a_problem_with_a_suggestion() -> None:
    (problem,) = problems_of(route() + '[plugins]\ndisable = ["dns", "shh"]\n')
    assert (problem.where, problem.message) == (
        "plugins.disable[1]",
        "no plugin has the id 'shh': did you mean 'ssh'?",
    )
    with pytest.raises(ConfigError) as caught:
        assembled(route(), overrides=Overrides(disabled=("htps",)))
    assert str(caught.value.problems[0]) == (
        "--disable-plugin htps: no plugin has the id 'htps': did you mean 'https'?"
    )


def test_an_unknown_id_in_the_environment_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRACTIUM_DISABLE_PLUGINS", "dns,shh,")
    (warning,) = assembled(route()).warnings
    assert (
        str(warning)
        == "REFRACTIUM_DISABLE_PLUGINS: no plugin has the id 'shh': did you mean 'ssh'? [unknown-plugin]"
    )


@pytest.mark.parametrize(
    ("id_", "meant"), [("tls", "https"), ("SSL", "https"), ("sftp", "ssh"), ("htps", "https")]
)
def test_every_place_that_takes_the_id_of_a_plugin_suggests_an_id(
    monkeypatch: pytest.MonkeyPatch, id_: str, meant: str
) -> None:
    expected = f"no plugin has the id '{id_}': did you mean '{meant}'?"
    for text in (f"[plugins]\ndisable = ['{id_}']\n", f"[plugins.{id_}]\n"):
        assert [one.message for one in problems_of(route() + text)] == [expected]
    with pytest.raises(ConfigError) as caught:
        assembled(route(), overrides=Overrides(disabled=(id_,)))
    assert [one.message for one in caught.value.problems] == [expected]
    monkeypatch.setenv("REFRACTIUM_DISABLE_PLUGINS", id_)
    assert [one.message for one in assembled(route()).warnings] == [expected]


@pytest.mark.parametrize(
    ("written", "remedy"),
    [
        (route("TLS"), "write 'tls'"),
        (route("tls"), "did you mean 'https'?"),
        (route("fallback"), "did you mean 'any'?"),
        (route("default"), "did you mean 'any'?"),
        (route(id='"Web"'), "write 'web'"),
        (route() + "[[listeners]]\nport = 1\nroutes = ['HTTPS']\n", "write 'https'"),
        (route() + "[[listeners]]\nport = 1\nroutes = ['fallback']\n", "leave this name out"),
    ],
)
def test_a_wrong_name_says_what_to_do(written: str, remedy: str) -> None:
    (problem,) = problems_of(written)
    assert problem.message.endswith(remedy)


def test_an_inline_route_of_any_replaces_the_fallbacks() -> None:
    text = settings(fallback_tcp='"10.0.0.1:1"', fallback_udp='"10.0.0.1:1"') + route()
    found = assembled(text, overrides=Overrides(forwards=["any=10.0.0.2:2"]))
    rest = [one for one in (*found.tcp, *found.udp) if one.takes_the_rest]
    assert [(one.label, str(one.backends[0])) for one in rest] == [("any", "10.0.0.2:2")] * 2
    assert found.server.fallbacks == []


LISTENERS = """
[[listeners]]
port = 1
routes = ["{0}"]
[[listeners]]
port = 2
routes = ["{1}"]
"""


def test_routes_for_silent_clients_and_strengths_are_compared_within_one_listener() -> None:
    two = [route("http", id=f'"{name}"', host=f'"{name}"', on_timeout="true") for name in ("one", "two")]
    assert places_of_warnings(LISTENERS.format("one", "two"), *two) == []
    order = [route("weak", patterns="[{ regex = 'x' }]"), route("https")]
    assert places_of_warnings(LISTENERS.format("weak", "https"), *order) == []
    assert places_of_warnings(*order) == ["protocols[1]"]


def test_the_order_of_udp_routes_does_not_matter_on_a_listener_for_tcp_only() -> None:
    order = [route("weak", patterns="[{ regex = 'x' }]", transport='"udp"'), route("dns", transport='"udp"')]
    udp_apart = LISTENERS.format("weak", "dns") + '[[listeners]]\nport = 3\ntransports = ["{0}"]\n'
    assert places_of_warnings(udp_apart.format("tcp"), *order) == []
    assert places_of_warnings(udp_apart.format("udp"), *order) == ["protocols[1]"]


def test_the_settings_of_a_protocol_apply_to_all_of_its_routes() -> None:
    text = (
        route("http", host='"a.example"')
        + route("http", id='"rest"')
        + route("https")
        + "[plugins.http]\nmax_header_bytes = 9000\n[plugins.https]\nmax_hello_bytes = 20000\n"
    )
    first, rest, https = (one.protocols[0] for one in assembled(text).tcp)
    assert first is rest
    assert first.max_bytes == 9000
    assert 20_000 < https.max_bytes < 30_000
    assert assembled(route("http")).tcp[0].protocols[0].max_bytes == 65_536


def test_a_protocol_that_refuses_its_settings_is_a_problem_of_its_table() -> None:
    class Broken(Http):
        def with_settings(self, settings: object) -> Http:
            raise SystemExit(settings)

    class Other(Http):
        def with_settings(self, _settings: object) -> Http:
            other = Http()
            other.name = "other"
            return other

    class Wrong(Http):
        def with_settings(self, _settings: object) -> Http:
            return 5  # type: ignore[return-value]

    loaded = load_plugins()
    for protocol, message in (
        (Broken(), "SystemExit"),
        (Other(), "returned the protocol other for tcp"),
        (Wrong(), "not a Protocol"),
    ):
        given = {**loaded.given, "http": Given(protocols=(protocol,))}
        plugins = replace(loaded, protocols=(protocol,), given=given)
        (problem,) = problems_of(route("http") + "[plugins.http]\nmax_header_bytes = 9000\n", plugins)
        assert problem.where == "plugins.http"
        assert message in problem.message


class Nested(Struct, frozen=True):
    colour: str = ""

    def __post_init__(self) -> None:
        raise SystemExit(self.colour)


class Nesting(Struct, frozen=True, forbid_unknown_fields=True):
    nested: Nested | None = None


def test_settings_of_a_protocol_that_raise_any_exception_are_a_problem_of_their_table() -> None:
    class Hostile(Http):
        settings_type = Nesting  # type: ignore[assignment]

    loaded, protocol = load_plugins(), Hostile()
    given = {**loaded.given, "http": Given(protocols=(protocol,))}
    plugins = replace(loaded, protocols=(protocol,), given=given)
    (problem,) = problems_of(route("http") + '[plugins.http]\nnested = { colour = "red" }\n', plugins)
    assert problem.where.startswith("plugins.http")
    assert "SystemExit: red" in problem.message


def test_a_long_peek_timeout_of_a_listener_is_a_warning() -> None:
    listeners = (
        "[[listeners]]\nport = 1\npeek_timeout_ms = 5000\n[[listeners]]\nport = 2\npeek_timeout_ms = 5001\n"
    )
    assert places_of_warnings(listeners, route()) == ["listeners[1].peek_timeout_ms"]
    assert places_of_warnings(settings(peek_timeout_ms=5001), route()) == ["server.peek_timeout_ms"]
    first, second = assembled(listeners + route()).listeners
    assert (first.rules.peek_timeout_ms, second.rules.peek_timeout_ms) == (5000, 5001)
