from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.addresses.address import Address
from refractium.config import Decoded, HealthConfig, Source, decode, read
from refractium.config.decode import MAX_FINDINGS
from refractium.contract import Transport
from refractium.errors import ConfigError
from refractium.identify.patterns import Hex, Regex, Text
from refractium.problems import Problem
from refractium.routing import Member, NameRegex
from refractium.routing.route import as_tuple
from refractium.system.files import MAX_FILE_SIZE
from support.lateness import fair_seconds_since

EXAMPLE = Path(__file__).parents[1] / "data" / "example.toml"
MEMBER = '[[protocols]]\nname = "http"\nforward_to = '
ROUTE = '[[protocols]]\nname = "http"\nforward_to = "a:1"\n'


def decoded(text: str) -> Decoded:
    return decode(Source(text, "my.toml"))


def valid(text: str) -> Decoded:
    found = decoded(text)
    assert found.problems == ()
    return found


def only_problem(text: str) -> Problem:
    (problem,) = decoded(text).problems
    assert problem.source == "my.toml"
    return problem


def unreadable(path: Path) -> str:
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert fair_seconds_since(begun) < 1
    (problem,) = caught.value.problems
    assert problem.source == str(path)
    return str(problem)


# Valid files


def test_the_example_file_has_typed_values() -> None:
    loaded = decode(read(EXAMPLE))
    assert loaded.problems == ()
    server = loaded.config.server
    assert (server.bind, server.port, server.peek_buffer_size) == ("0.0.0.0", 8080, 1024)
    assert [(path, route.name) for path, route in loaded.routes] == [
        ("protocols[0]", "http"),
        ("protocols[1]", "ssh"),
        ("protocols[2]", "dns"),
        ("protocols[3]", "my_app"),
    ]
    http, *_, mine = loaded.config.protocols
    assert http.backends == tuple(Address(f"10.0.0.{n}", 80) for n in (1, 2, 3))
    assert http.patterns is None
    assert mine.pattern_set == (Text(b"\x01\x02\x03"), Text(b"MY_PROTO_V1"))
    assert mine.transport is Transport.UDP


def test_an_empty_file_has_every_default() -> None:
    loaded = valid("")
    assert loaded.config.server.port == 8080
    assert loaded.config.protocols == ()
    assert loaded.config.plugins.disable == ()


def test_names_have_four_forms() -> None:
    names = "['a', '*.B.', '**.C', { regex = '^D$' }]"
    (route,) = valid(f"{ROUTE}sni = {names}\nhost = {names}\nalpn = {names}").config.protocols
    assert route.sni == route.host == route.alpn == ("a", "*.B.", "**.C", NameRegex("^D$"))
    (match,) = (
        one.match for one in valid(f"{ROUTE}match = {{ user = {names}, ssl = true }}").config.protocols
    )
    assert match == {"user": ("a", "*.B.", "**.C", NameRegex("^D$")), "ssl": True}
    (alone,) = valid(f"{ROUTE}host = {{ regex = 'a' }}").config.protocols
    assert alone.host == NameRegex("a")


def test_a_misspelt_key_of_a_regex_is_named() -> None:
    found = decoded(ROUTE + "sni = { regexp = 'a' }").problems
    assert "did you mean 'regex'?" in "".join(map(str, found))


def test_patterns_have_four_forms() -> None:
    route = valid(
        ROUTE
        + "patterns = ['\\xff', \"\\x01\", { hex = 'FF 00', offset = 4 }, { hex = '01' }, { regex = '^a' }]"
    ).config.protocols[0]
    assert route.pattern_set == (Text(b"\xff"), Text(b"\x01"), Hex(b"\xff\0", 4), Hex(b"\x01"), Regex("^a"))


def test_a_backend_is_an_address_or_a_table_with_one() -> None:
    (route,) = valid(
        MEMBER + "['a:1', { address = 'b:2', weight = 3 }, { address = 'unix:/c', backup = true }]"
    ).config.protocols
    assert route.members == (Member("a:1"), Member("b:2", weight=3), Member("unix:/c", backup=True))
    assert route.backends == (Address("a", 1), Address("b", 2), Address("", 0, "/c"))
    (alone,) = valid(MEMBER + "{ address = 'b:2', weight = 3 }").config.protocols
    assert alone.members == (Member("b:2", weight=3),)


def test_a_health_table_keeps_the_settings_of_its_kind() -> None:
    (route,) = valid(ROUTE + "[protocols.health]\nkind = 'http'\npath = '/x'\nfall = 1").config.protocols
    assert route.health == HealthConfig(kind="http", fall=1, options={"path": "/x"})


def test_a_fallback_at_the_top_level_belongs_to_the_server() -> None:
    loaded = valid('fallback_tcp = "127.0.0.1:80"\n[server]\nport = 80\nfallback_udp = "a:1"')
    assert loaded.config.server.fallback_tcp == "127.0.0.1:80"
    assert loaded.source.problem("server.fallback_tcp", "loops").line == 1


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\nbogus = 1\r\n")
    loaded = decode(read(path))
    assert loaded.config.server.port == 1
    assert [(problem.where, problem.line) for problem in loaded.problems] == [("server.bogus", 3)]


def test_a_key_path_has_a_line() -> None:
    loaded = valid("\n" + ROUTE)
    assert loaded.source.problem("protocols[0].forward_to", "is down").line == 4
    assert loaded.source.problem("protocols[0].name", "not installed") == Problem(
        "not installed", "protocols[0].name", "my.toml", 3
    )


# Mistakes


@pytest.mark.parametrize(
    ("text", "where", "line", "message"),
    [
        ("bogus = 1", "bogus", 1, "unknown key"),
        ("[servr]", "servr", 1, "did you mean 'server'?"),
        ("port = 1", "port", 1, "it belongs in [server]"),
        ("[server]\npeek_timout_ms = 1", "server.peek_timout_ms", 2, "did you mean 'peek_timeout_ms'?"),
        ('[server]\nforward_to = "a:1"', "server.forward_to", 2, "it belongs in [[protocols]]"),
        ("[server]\nport = 65536", "server.port", 2, "int <= 65535"),
        ("[server]\nport = -1", "server.port", 2, "int >= 0"),
        ("[server]\nport = true", "server.port", 2, "expected int, got bool"),
        ("[server]\nport = nan", "server.port", 2, "expected int, got float"),
        ("[server]\nport = 1.0", "server.port", 2, "expected int, got float"),
        ('[server]\nport = "80"', "server.port", 2, "expected int, got str"),
        ("[server]\nport = 2000-01-01", "server.port", 2, "expected int, got date"),
        (f"[server]\nport = 0x{'f' * 9999}", "server.port", 2, "int <= 65535"),
        ("[server]\nhot_reload = 1", "server.hot_reload", 2, "expected bool, got int"),
        ("[server]\nmax_connections = 0", "server.max_connections", 2, "int >= 1"),
        ('[server]\nbind = "[::1]"', "server.bind", 2, "without brackets"),
        ('[server]\nbind = "a:80"', "server.bind", 2, "the port has a key of its own"),
        ('[server]\nbind = ""', "server.bind", 2, "not an IP address or host name"),
        ('[server]\nfallback_tcp = "a"', "server.fallback_tcp", 2, "no port"),
        ('fallback_udp = "a"', "fallback_udp", 1, "no port"),
        ('[server]\nfallback_udp = "unix:/a"', "server.fallback_udp", 2, "takes no datagrams"),
        (
            'fallback_tcp = "a:1"\n[server]\nfallback_tcp = "a:1"',
            "fallback_tcp",
            1,
            "also set in [server]",
        ),
        ("[[server]]", "server", None, "write [server]"),
        ("server = 1", "server", 1, "write [server]"),
        ('[protocols]\nname = "a"', "protocols", 1, "write [[protocols]]"),
        ("protocols = [1]", "protocols[0]", 1, "write [[protocols]]"),
        ('[[protocols]]\nforward_to = "a:1"', "protocols[0]", 1, "no name"),
        ('[[protocols]]\nname = "http"', "protocols[0]", 1, "no forward_to"),
        ('[[protocols]]\nname = "My App"\nforward_to = "a:1"', "protocols[0].name", 2, "lower-case letters"),
        ('[[protocols]]\nname = "a"\nforward_to = []', "protocols[0].forward_to", 3, "is empty"),
        ('[[protocols]]\nname = "a"\nforward_to = ""', "protocols[0].forward_to", 3, "no port"),
        ('[[protocols]]\nname = "a"\nforward_to = ["a:1",\n"b"]', "protocols[0].forward_to[1]", 3, "no port"),
        (
            '[[protocols]]\nname = "a"\nforward_to = 80',
            "protocols[0].forward_to",
            3,
            "expected str | table | array",
        ),
        ('[[protocols]]\nname = "a"\nforward_to = [80]', "protocols[0].forward_to[0]", 3, "expected str"),
        (ROUTE + 'sni = "*"', "protocols[0].sni", 4, "*.example.org"),
        (ROUTE + 'sni = "a.*.b"', "protocols[0].sni", 4, "*.example.org"),
        (ROUTE + 'sni = "*.*.b"', "protocols[0].sni", 4, "*.example.org"),
        (ROUTE + 'sni = "***.b"', "protocols[0].sni", 4, "**.example.org for any depth"),
        (ROUTE + 'sni = ["a", "**"]', "protocols[0].sni[1]", 4, "{ regex = '...' }"),
        (ROUTE + 'host = "a.**.b"', "protocols[0].host", 4, "**.example.org for any depth"),
        (ROUTE + "sni = { regex = '(' }", "protocols[0].sni", 4, "not a valid regex"),
        (ROUTE + "sni = ['a', { regex = 'a(?=b)' }]", "protocols[0].sni[1]", 4, "not a valid regex"),
        (ROUTE + "host = [{ regex = '[' }]", "protocols[0].host[0]", 4, "not a valid regex"),
        (ROUTE + "host = {}", "protocols[0].host", 4, "no regex"),
        (ROUTE + "host = { regex = 1 }", "protocols[0].host.regex", 4, "expected str, got int"),
        (ROUTE + "host = { regex = '' }", "protocols[0].host.regex", 4, "expected str of length >= 1"),
        (ROUTE + "sni = 1", "protocols[0].sni", 4, "expected str | table | array"),
        (ROUTE + "sni = [1]", "protocols[0].sni[0]", 4, "expected str, got int"),
        (ROUTE + "alpn = { regex = '(' }", "protocols[0].alpn", 4, "not a valid regex"),
        (ROUTE + "alpn = 1", "protocols[0].alpn", 4, "expected str | table | array"),
        (ROUTE + 'sni = "10.0.0.1"', "protocols[0].sni", 4, "not a host name"),
        (ROUTE + 'sni = "bücher.example"', "protocols[0].sni", 4, "xn--"),
        (ROUTE + "sni = []", "protocols[0].sni", 4, "is empty"),
        (ROUTE + "match = 'a'", "protocols[0].match", 4, "expected table, got str"),
        (ROUTE + "match = {}", "protocols[0].match", 4, "is empty"),
        (ROUTE + "[protocols.match]", "protocols[0].match", 4, "is empty"),
        (ROUTE + "match = { user = [] }", "protocols[0].match.user", 4, "is empty"),
        (ROUTE + "match.user = ''", "protocols[0].match.user", 4, "is empty"),
        (ROUTE + "[protocols.match]\n'x y' = 1", 'protocols[0].match."x y"', 5, "expected bool | str"),
        (ROUTE + "[protocols.match]\nuser = ['a', 1.5]", "protocols[0].match.user[1]", 5, "got float"),
        (ROUTE + "match = { user = [['a']] }", "protocols[0].match.user[0]", 4, "got array"),
        (ROUTE + "match = { user = { regex = '(' } }", "protocols[0].match.user", 4, "not a valid regex"),
        (
            ROUTE + "match = { user = { regexp = 'a', regex = 'a' } }",
            "protocols[0].match.user.regexp",
            4,
            "'regex'",
        ),
        (ROUTE + "match = { user = [{ regex = 1 }] }", "protocols[0].match.user[0].regex", 4, "expected str"),
        (ROUTE + "match = { sni = '10.0.0.1' }", "protocols[0].match.sni", 4, "not a host name"),
        (ROUTE + "match = { host = ['a', 'b:80'] }", "protocols[0].match.host[1]", 4, "without a port"),
        (ROUTE + "match = { alpn = ['h2', ''] }", "protocols[0].match.alpn[1]", 4, "1 to 255 bytes"),
        (ROUTE + "match = { sni = true }", "protocols[0].match.sni", 4, "expected str, got bool"),
        (ROUTE + 'client = "10.0.0.1/8"', "protocols[0].client", 4, "write 10.0.0.0/8"),
        (ROUTE + 'client = ["::1", "a"]', "protocols[0].client[1]", 4, "not an address or a network"),
        (ROUTE + 'client = "::ffff:10.0.0.1"', "protocols[0].client", 4, "write the IPv4 form"),
        (ROUTE + "client = []", "protocols[0].client", 4, "is empty"),
        (ROUTE + "client = 1", "protocols[0].client", 4, "expected str | array"),
        ('[server]\nclient = "::1"', "server.client", 2, "it belongs in [[protocols]]"),
        (ROUTE + 'alpn = ""', "protocols[0].alpn", 4, "1 to 255 bytes"),
        (ROUTE + 'host = "a:80"', "protocols[0].host", 4, "without a port"),
        (ROUTE + 'host = "::1"', "protocols[0].host", 4, "[::1]"),
        (ROUTE + 'host = "[10.0.0.1]"', "protocols[0].host", 4, "[::1]"),
        (ROUTE + 'transport = "both"', "protocols[0].transport", 4, "leave it out for every transport"),
        (ROUTE + "balance = 1", "protocols[0].balance", 4, "expected str, got int"),
        (ROUTE + "health = 'tcp'", "protocols[0].health", 4, "expected table, got str"),
        (ROUTE + "health = {}", "protocols[0].health", 4, "no kind"),
        (ROUTE + "[protocols.health]\nkind = 1", "protocols[0].health.kind", 5, "expected str, got int"),
        (ROUTE + "health = { kind = 'tcp', rise = 0 }", "protocols[0].health.rise", 4, "int >= 1"),
        (ROUTE + "health = { kind = 'tcp', fall = true }", "protocols[0].health.fall", 4, "expected int"),
        (
            ROUTE + "[protocols.health]\nkind = 'tcp'\ninterval_ms = 1",
            "protocols[0].health.interval_ms",
            6,
            "int >= 10",
        ),
        (MEMBER + "{ address = 'a:1', weight = 0 }", "protocols[0].forward_to.weight", 3, "int >= 1"),
        (MEMBER + "[{ address = 'a:1', weight = 1001 }]", "protocols[0].forward_to[0].weight", 3, "<= 1000"),
        (MEMBER + "['a:1', { address = 'a' }]", "protocols[0].forward_to[1].address", 3, "no port"),
        (MEMBER + "[{ weight = 2 }]", "protocols[0].forward_to[0]", 3, "no address"),
        (MEMBER + "[{ address = 'a:1', wight = 2 }]", "protocols[0].forward_to[0].wight", 3, "'weight'"),
        (
            MEMBER + "[{ address = 'a:1', backup = 1 }]",
            "protocols[0].forward_to[0].backup",
            3,
            "expected bool",
        ),
        (ROUTE + "on_timeout = 1", "protocols[0].on_timeout", 4, "expected bool, got int"),
        (ROUTE + "patterns = []", "protocols[0].patterns", 4, "is empty"),
        (ROUTE + 'patterns = "a"', "protocols[0].patterns", 4, "expected array"),
        (ROUTE + 'patterns = [""]', "protocols[0].patterns[0]", 4, "empty"),
        (ROUTE + 'patterns = ["€"]', "protocols[0].patterns[0]", 4, "as hex"),
        (ROUTE + "patterns = [1]", "protocols[0].patterns[0]", 4, "expected str, got int"),
        (ROUTE + 'patterns = ["a", {}]', "protocols[0].patterns[1]", 4, "either hex or regex"),
        (ROUTE + "patterns = [{ hex = '0', offset = 1 }]", "protocols[0].patterns[0]", 4, "pairs of hex"),
        (ROUTE + "patterns = [{ hex = '' }]", "protocols[0].patterns[0]", 4, "empty"),
        (ROUTE + "patterns = [{ hex = '00', offset = -1 }]", "protocols[0].patterns[0].offset", 4, ">= 0"),
        (ROUTE + "patterns = [{ hex = '00', ofset = 1 }]", "protocols[0].patterns[0].ofset", 4, "'offset'"),
        (ROUTE + "patterns = [{ hex = '00', regex = 'a' }]", "protocols[0].patterns[0]", 4, "either"),
        (
            ROUTE + "patterns = [{ regex = 'a', offset = 1 }]",
            "protocols[0].patterns[0]",
            4,
            "offset is for hex",
        ),
        (ROUTE + "patterns = [{ regex = 'a(' }]", "protocols[0].patterns[0]", 4, "not a valid regex"),
        (ROUTE + "patterns = [{ regex = 'a$' }]", "protocols[0].patterns[0]", 4, "not supported"),
        ("[plugins]\ndisabel = []", "plugins.disabel", 2, "did you mean 'disable'?"),
        ("[plugins]\ndisable = 'a'", "plugins.disable", 2, "expected array"),
        ("[plugins.disable]", "plugins.disable", 1, "expected array"),
        ('[server]\n"a.b" = 1', 'server."a.b"', 2, "unknown key"),
        # not TOML
        ("a = 1\nb = [", "", 2, "Invalid value"),
        ('a = "\0"', "", 1, "Illegal character"),
        ('a = "\x1b"', "", 1, "Illegal character"),
        ("[server]\nport = 1\nport = 2", "", 3, "Cannot overwrite"),
        ("a = " + "[" * 100_000, "", None, "nested too deeply"),
        ("a = " + "9" * 5000, "", None, "too many digits"),
    ],
)
def test_each_mistake_is_named_with_its_key_and_line(
    text: str, where: str, line: int | None, message: str
) -> None:
    problem = only_problem(text)
    assert (problem.where, problem.line) == (where, line)
    assert message in problem.message


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file() -> None:
    loaded = decoded(
        """
        bogus = 1
        [server]
        port = 65536
        max_connections = true
        [[protocols]]
        name = "http"
        forward_to = ["a", "b:1", ":2"]
        sni = "*"
        [[protocols]]
        nam = "x"
        patterns = ["", { regex = "(" }]
        """
    )
    assert [(problem.where, problem.line) for problem in loaded.problems] == [
        ("bogus", 2),
        ("server.port", 4),
        ("server.max_connections", 5),
        ("protocols[0].forward_to[0]", 8),
        ("protocols[0].forward_to[2]", 8),
        ("protocols[0].sni", 9),
        ("protocols[1]", 10),
        ("protocols[1]", 10),
        ("protocols[1].nam", 11),
        ("protocols[1].patterns[0]", 12),
        ("protocols[1].patterns[1]", 12),
    ]


def test_valid_values_beside_mistakes_are_kept() -> None:
    loaded = decoded(
        '[server]\nport = 1\nbind = ""\n'
        '[[protocols]]\nname = 1\n[[protocols]]\nname = "x"\nforward_to = ["a", "b:1"]\npatterns = [""]\n'
    )
    assert (loaded.config.server.port, loaded.config.server.bind) == (1, "0.0.0.0")
    ((path, route),) = loaded.routes
    assert (path, route.name, route.backends) == ("protocols[1]", "x", (Address("b", 1),))
    assert route.patterns == ()


def test_a_flood_of_mistakes_is_reported_in_part_and_quickly() -> None:
    text = "".join(f"peek_timeou{number} = 1\n" for number in range(40_000))
    begun = time.process_time()
    assert len(decoded(text).problems) == MAX_FINDINGS
    assert time.process_time() - begun < 3


# Files


def test_the_error_for_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    assert "`refractium init` writes one" in unreadable(tmp_path / "none.toml")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert unreadable(tmp_path).endswith("not a regular file")


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert unreadable(tmp_path / "fifo").endswith("not a regular file")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    with path.open("wb") as file:
        file.truncate(100 * MAX_FILE_SIZE)
    assert "larger than 1048576 bytes" in unreadable(path)


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"\n" * MAX_FILE_SIZE)
    assert decode(read(path)).problems == ()


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "latin1.toml"
    path.write_bytes(b'a = 1\nb = "caf\xe9"\n')
    assert unreadable(path) == f"{path}:2: byte 0xe9 is not UTF-8"


def test_a_path_through_a_file_and_one_with_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in unreadable(tmp_path / "file" / "a.toml")
    assert "null" in unreadable(tmp_path / "a\0b")


# Any text

SCALARS = ["1", "-1", "true", "nan", "1979-05-27", '"a:1"', '""', '"udp"', "{}", "{ hex = '00' }"]
LISTS = [
    "[{ address = 'a:1' }]",
    "[{ weight = 0 }, 'a:1']",
    "[]",
    '["a:1", 1]',
    '["b", "c"]',
    "[{ regex = '(' }]",
    "['*.a', '**.b', { regex = 'a' }]",
    "[{ hex = 'ff' }, 'a']",
    "{ user = ['a', 'b*', { regex = 'a' }], ok = false }",
    "{ sni = '*.A', 'x y' = [], user = [1] }",
]
TOP_KEYS = ["server", "protocols", "plugins", "bind", "port", "fallback_tcp", "disable", "x", "'y'"]
ROUTE_KEYS = ["name", "forward_to", "sni", "alpn", "host", "client", "patterns", "transport", "on_timeout"]
ROUTE_KEYS += ["balance", "health", "kind", "expect", "match", "user"]
STATEMENTS = st.one_of(
    st.sampled_from(
        [
            *("[server]", "[[protocols]]", "[plugins]", "[[server]]"),
            *("[protocols.health]", "[protocols.match]", "[protocols.x]"),
        ]
    ),
    st.tuples(st.sampled_from(TOP_KEYS + ROUTE_KEYS), st.sampled_from(SCALARS + LISTS)).map(" = ".join),
)


@given(st.one_of(st.text(), st.lists(STATEMENTS).map("\n".join)))
def test_any_text_gives_a_configuration_or_problems(text: str) -> None:
    loaded = decoded(text)
    for problem in loaded.problems:
        assert problem.message
        assert problem.line is None or 1 <= problem.line <= text.count("\n") + 1
    if not loaded.problems:
        for route in loaded.config.protocols:
            assert route.backends
            for patterns in (route.sni, route.alpn, route.host, *route.match.values()):
                assert all(pattern or pattern is False for pattern in as_tuple(patterns))
            assert route.patterns is None or route.pattern_set
