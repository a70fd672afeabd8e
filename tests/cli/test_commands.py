"""The commands that print a result and end: init, check, schema and plugins."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import tomli

from refractium.config import template
from support.hellos import records, typical_hello
from support.process import environment, run

if TYPE_CHECKING:
    from support.cli import Cli

EXAMPLE = Path(__file__).parents[1] / "data" / "example.toml"
ROUTE = '[[protocols]]\nname = "http"\nforward_to = "127.0.0.1:9000"\n'
CLIENT_HELLO = records(typical_hello())


# init


def test_init_writes_a_commented_file_that_is_valid(cli: Cli) -> None:
    done = cli("init")
    assert (done.code, done.err) == (0, "")
    assert "refractium.toml" in done.out
    text = (cli.folder / "refractium.toml").read_text()
    assert text == template()
    assert tomllib.loads(text)["server"]["port"] == 8080
    assert cli("check").code == 0


def test_init_overwrites_a_file_only_with_force(cli: Cli) -> None:
    path = cli.write("mine\n")
    done = cli("init")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: refractium.toml: exists already; --force overwrites it\n"
    assert path.read_text() == "mine\n"
    assert cli("init", "--force").code == 0
    assert path.read_text() == template()


def test_init_writes_to_the_given_path(cli: Cli) -> None:
    for arguments, name in (("init", "-c", "after.toml"), "after"), (("-c", "before.toml", "init"), "before"):
        done = cli(*arguments)
        assert done.code == 0
        assert f"`refractium check -c {name}.toml`" in done.out
    assert sorted(path.name for path in cli.folder.iterdir()) == ["after.toml", "before.toml"]
    done = cli("init", "-c", "no/such/folder.toml")
    assert (done.code, done.err) == (
        1,
        "error: cannot write no/such/folder.toml: No such file or directory\n",
    )


# check


def test_check_prints_the_backends_of_every_route(cli: Cli) -> None:
    cli.write(
        """\
        fallback_tcp = "127.0.0.1:9009"

        [[protocols]]
        name = "https"
        sni = ["example.com", "*.example.org"]
        alpn = "h2"
        forward_to = ["127.0.0.1:9001", "unix:/run/web.sock"]

        [[protocols]]
        name = "ftp"
        forward_to = "[::1]:21"
        """
    )
    done = cli("check")
    assert (done.code, done.err) == (0, "")
    header, https, ftp, fallback, verdict = done.out.splitlines()
    assert header.split() == ["protocol", "transport", "when", "forward", "to"]
    assert https.split("  ")[0] == "https"
    assert "sni example.com or *.example.org, alpn h2" in https
    assert "127.0.0.1:9001, unix:/run/web.sock" in https
    assert ftp.split() == ["ftp", "tcp", "also", "if", "silent", "[::1]:21"]
    assert fallback.split() == ["fallback", "tcp", "127.0.0.1:9009"]
    assert verdict == "The configuration is valid."


CONDITIONS: Final = """\
    [[protocols]]
    name = "https"
    sni = ["a.example", "**.example.org", { regex = '^w\\d$' }]
    client = ["10.0.0.0/8", "::1"]
    forward_to = "127.0.0.1:9001"
"""


def test_check_prints_the_conditions_of_every_route(cli: Cli) -> None:
    cli.write(CONDITIONS)
    done = cli("check")
    assert (done.code, done.err) == (0, "")
    shown = "sni a.example or **.example.org or { regex = '^w\\d$' }, client 10.0.0.0/8 or ::1"
    assert shown in " ".join(done.out.split())
    (route,) = json.loads(cli("check", "--json").out)["routes"]
    assert route["sni"] == ["a.example", "**.example.org", {"regex": r"^w\d$"}]
    assert route["client"] == ["10.0.0.0/8", "::1"]


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_check_refuses_a_file_that_no_listener_can_serve(cli: Cli, arguments: tuple[str, ...]) -> None:
    cli.write(f'[[listeners]]\nport = 1\ntransports = ["udp"]\n{ROUTE}')
    served, checked = cli(), cli("check", *arguments)
    assert (served.code, checked.code) == (2, 2)
    message = served.err.removeprefix("error: ").strip()
    assert message in checked.out + checked.err
    assert "nothing to serve" in message


def test_check_shows_the_conditions_by_their_keys_in_the_file(cli: Cli) -> None:
    cli.write(
        """
        [[protocols]]
        name = "https"
        forward_to = "127.0.0.1:1"
        sni = "A.b"
        match = { ech = false, versions = ["1.2", { regex = '1[.][01]' }], alpn = "h*" }
        """
    )
    (route,) = json.loads(cli("check", "--json").out)["routes"]
    assert (route["sni"], route["alpn"]) == (["a.b"], ["h*"])
    assert route["match"] == {"versions": ["1.2", {"regex": "1[.][01]"}], "ech": [False]}
    text = " ".join(cli("check").out.split())
    assert "match.versions 1.2 or { regex = '1[.][01]' }" in text
    assert "match.ech false" in text


def test_check_json_has_the_routes(cli: Cli) -> None:
    https = 'name = "https"\nsni = "A.example"\nforward_to = ["[::1]:1", "a:2"]\nidle_timeout_ms = 86400000\n'
    cli.write(f"{ROUTE}[[protocols]]\n{https}")
    done = cli("check", "--json")
    assert (done.code, done.err) == (0, "")
    shared = {"transport": "tcp", "on_timeout": False}
    assert json.loads(done.out) == {
        "ok": True,
        "problems": [],
        "warnings": [],
        "listeners": [
            {
                "bind": "0.0.0.0",
                "port": 8080,
                "transports": ["tcp", "udp"],
                "routes": None,
                "allow": [],
                "deny": [],
            }
        ],
        "routes": [
            {"protocol": "http", **shared, "forward_to": ["127.0.0.1:9000"]},
            {
                "protocol": "https",
                **shared,
                "sni": ["a.example"],
                "forward_to": ["[::1]:1", "a:2"],
                "idle_timeout_ms": 86_400_000,
            },
        ],
    }


def test_check_strict_refuses_a_file_with_a_warning(cli: Cli) -> None:
    cli.write(ROUTE)
    assert cli("check", "--strict").code == 0
    cli.write(f"[server]\npeek_timeout_ms = 5001\n{ROUTE}")
    assert cli("check").code == 0
    done = cli("check", "--strict")
    assert done.code == 2
    assert "refractium.toml:2: server.peek_timeout_ms: " in done.err
    assert "[long-peek-timeout]" in done.err
    assert "The configuration is valid.\n" not in done.out
    done = cli("check", "--strict", "--json")
    assert done.code == 2
    answer = json.loads(done.out)
    assert (answer["ok"], [one["code"] for one in answer["warnings"]]) == (False, ["long-peek-timeout"])
    assert answer["routes"]
    cli.write(f"[check]\nignore = ['long-peek-timeout']\n[server]\npeek_timeout_ms = 5001\n{ROUTE}")
    assert cli("check", "--strict").code == 0


def test_the_example_file_is_valid_with_a_warning_about_its_fallback_to_itself(cli: Cli) -> None:
    done = cli("check", "-c", EXAMPLE)
    assert done.code == 0
    assert done.out.endswith("The configuration is valid.\n")
    (warning,) = done.err.splitlines()
    assert warning.startswith(
        f"warning: {EXAMPLE}:12: server.fallback_tcp: Refractium itself listens on 127.0.0.1:8080"
    )
    rows = [line.split() for line in done.out.splitlines()[1:-1]]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("http", "tcp", "10.0.0.3:80"),
        ("ssh", "tcp", "127.0.0.1:22"),
        ("dns", "tcp", "1.1.1.1:53"),
        ("fallback", "tcp", "127.0.0.1:8080"),
        ("dns", "udp", "1.1.1.1:53"),
        ("my_app", "udp", "127.0.0.1:9000"),
        ("fallback", "udp", "127.0.0.1:53"),
    ]


# schema


def schema(cli: Cli) -> dict[str, Any]:
    done = cli("schema")
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    assert json.loads(cli("schema", "--json").out) == found
    return found


def test_the_schema_has_every_key_of_the_example_and_no_dangling_reference(cli: Cli) -> None:
    found = schema(cli)
    definitions = found["$defs"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert found["$ref"] == "#/$defs/Config"
    assert references(found) <= {f"#/$defs/{name}" for name in definitions}
    example = tomli.loads(EXAMPLE.read_text())
    assert example.keys() <= definitions["Config"]["properties"].keys()
    assert example["server"].keys() <= definitions["ServerConfig"]["properties"].keys()
    for route in example["protocols"]:
        assert route.keys() <= definitions["RouteConfig"]["properties"].keys()
        assert set(definitions["RouteConfig"]["required"]) <= route.keys()


def test_the_schema_accepts_the_example_and_refuses_mistakes(cli: Cli) -> None:
    jsonschema: Any = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema(cli))
    validator.check_schema(validator.schema)
    validator.validate(tomli.loads(EXAMPLE.read_text()))
    names = ["a", "**.b", {"regex": "c"}]
    route = {"name": "https", "forward_to": "a:1"}
    for valid in (
        {"sni": names},
        {"sni": {"regex": "c"}},
        {"host": names},
        {"alpn": names},
        {"match": {"user": names, "database": "shop", "ssl": True, "mixed": [{"regex": "c"}]}},
        {"client": "::1"},
        {"client": ["::1"]},
    ):
        validator.validate({"protocols": [route | valid]})
    mistakes: list[dict[str, Any]] = [
        {"protocols": [route | {"sni": {"regexp": "c"}}]},
        {"protocols": [route | {"alpn": {"regexp": "c"}}]},
        {"protocols": [route | {"match": "a"}]},
        {"protocols": [route | {"match": {"user": 1}}]},
        {"server": {"port": 65536}},
        {"sever": {}},
        {"protocols": [{"name": "http"}]},
    ]
    for wrong in mistakes:
        assert not validator.is_valid(wrong)


# plugins

KEYS = ["id", "kind", "transports", "distribution", "version", "status", "error", "summary"]
PROTOCOLS = ["dns", "ftp", "http", "https", "ssh"]
FIRST_PARTY = sorted([*PROTOCOLS, "pcap"])


def test_plugins_list_json_has_a_row_with_fixed_keys_for_each_plugin(cli: Cli) -> None:
    done = cli("plugins", "list", "--json")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    assert all(list(row) == KEYS for row in rows)
    ours = {row["id"]: row for row in rows if row["distribution"].startswith("refractium-proto-")}
    assert set(PROTOCOLS) <= ours.keys()
    for id_ in PROTOCOLS:
        row = ours[id_]
        assert (row["kind"], row["status"], row["error"]) == ("protocol", "loaded", None)
        assert row["distribution"] == f"refractium-proto-{id_}"
        assert row["transports"] == (["tcp", "udp"] if id_ == "dns" else ["tcp"])
        assert row["summary"]


def test_plugins_list_is_a_table_for_people(cli: Cli) -> None:
    lines = cli("plugins", "list").out.splitlines()
    assert lines[0].split() == ["id", "kind", "transports", "distribution", "version", "status", "about"]
    assert [line.split()[0] for line in lines[1:]] == FIRST_PARTY
    assert all(" loaded " in line for line in lines[1:])


def test_plugins_list_works_with_a_broken_configuration_file(cli: Cli) -> None:
    cli.write("[server\n")
    assert [row["id"] for row in json.loads(cli("plugins", "list", "--json").out)] == FIRST_PARTY
    cli.write('[plugins]\ndisable = ["ssh"]\n')
    statuses = {row["id"]: row["status"] for row in json.loads(cli("plugins", "list", "--json").out)}
    assert [id_ for id_, status in statuses.items() if status == "blocked"] == ["ssh"]


def test_plugins_info_describes_one_plugin_and_its_protocols(cli: Cli) -> None:
    done = cli("plugins", "info", "dns", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert list(found) == [*KEYS, "protocols"]
    assert sorted(one["protocol"] for one in found["protocols"]) == ["dns/tcp", "dns/udp"]
    assert all(one["metadata"] == {"qname": "host name", "qtype": "text"} for one in found["protocols"])
    assert "qname (host name), qtype (text)" in cli("plugins", "info", "dns").out
    text = cli("plugins", "info", "ftp").out
    assert "refractium-proto-ftp" in text
    assert ["server_first", "yes"] in [line.split() for line in text.splitlines()]


def test_plugins_info_of_an_unknown_id_names_the_known_ones(cli: Cli) -> None:
    done = cli("plugins", "info", "gopher")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: no plugin has the id 'gopher'; installed: dns, ftp, http, https, pcap, ssh\n"


@pytest.mark.parametrize("by", ["flag", "environment", "file"])
def test_a_disabled_plugin_is_blocked_and_its_route_says_so(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    flags = []
    if by == "flag":
        flags = ["--disable-plugin", "ssh"]
    elif by == "environment":
        monkeypatch.setenv("REFRACTIUM_DISABLE_PLUGINS", "gopher, ssh")
    else:
        cli.write('[plugins]\ndisable = ["ssh"]\n')
    rows = {row["id"]: row for row in json.loads(cli(*flags, "plugins", "list", "--json").out)}
    assert rows["ssh"]["status"] == "blocked"
    assert rows["http"]["status"] == "loaded"
    done = cli("check", *flags, "-f", "ssh=127.0.0.1:22")
    assert done.code == 2
    assert done.err.startswith(
        "error: -f ssh: protocol 'ssh' is not available: plugin 'ssh' of refractium-proto-ssh"
    )
    assert "(blocked): disabled by" in done.err


def test_a_broken_plugin_is_listed_with_its_error(broken_plugin: Path) -> None:
    done = run("plugins", "list", "--json", env=environment(PYTHONPATH=str(broken_plugin)))
    assert done.code == 0
    row = next(row for row in json.loads(done.out) if row["id"] == "cracked")
    assert (row["status"], row["distribution"], row["version"]) == ("failed", "cracked", "2.0")
    assert row["error"] == "ImportError: the glass is cracked"


def test_a_broken_plugin_that_no_route_needs_causes_only_a_warning(broken_plugin: Path) -> None:
    env = environment(PYTHONPATH=str(broken_plugin))
    done = run("check", "-f", "http=127.0.0.1:9000", env=env)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: plugin cracked: plugin 'cracked' of cracked 2.0 is not used: ")
    assert line.endswith(": ImportError: the glass is cracked [broken-plugin]")


def test_a_broken_plugin_is_an_error_with_strict_and_for_a_route_that_needs_it(broken_plugin: Path) -> None:
    env = environment(PYTHONPATH=str(broken_plugin))
    for arguments in (["--strict-plugins", "-f", "http=127.0.0.1:9000"], ["-f", "cracked=127.0.0.1:9000"]):
        done = run("tcp", "-b", "127.0.0.1", "-p", 0, *arguments, env=env)
        assert (done.code, done.out) == (2, "")
        (line,) = done.err.splitlines()
        assert line.startswith("error: ")
        assert "plugin 'cracked' of cracked 2.0" in line
        assert line.endswith("ImportError: the glass is cracked")
        assert run("check", "--disable-plugin", "cracked", "-f", "http=127.0.0.1:9000", env=env).err == ""
