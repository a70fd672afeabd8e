"""Every mistake that can be made in flags and file: one clear message, exit 2, nothing bound."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import click
import pytest

from refractium.errors import ExitStatus
from refractium.plugins import loading
from support.process import run

if TYPE_CHECKING:
    from support.cli import Cli

BAD_USAGE = {
    "a port that is no number": (["-p", "abc"], "'--port': 'abc' is not a valid integer"),
    "a port out of range": (["-p", "65536"], "65536 is not in the range 0<=x<=65535"),
    "a negative port": (["tcp", "-p", "-1"], "-1 is not in the range"),
    "no value": (["-p"], "Option '-p' requires an argument"),
    "no time at all": (["--peek-timeout", "0"], "0 is not in the range"),
    "too small a buffer": (["--peek-buffer", "15"], "15 is not in the range"),
    "too large a buffer": (["check", "--peek-buffer", "65537"], "65537 is not in the range"),
    "no connections": (["--max-connections", "0"], "0 is not in the range"),
    "connections that are no number": (["--max-connections-per-ip", "many"], "'many' is not a valid integer"),
    "an unknown log format": (["--log-format", "xml"], "'xml' is not one of 'rich', 'plain', 'json'"),
    "an unknown option": (["--prot", "1"], "No such option"),
    "an unknown command": (["tpc"], "No such command 'tpc'"),
    "an unknown command of plugins": (["plugins", "remove"], "No such command 'remove'"),
    "an argument too many": (["tcp", "8080"], "unexpected extra argument (8080)"),
    "a missing argument": (["plugins", "info"], "Missing argument 'ID'"),
    "an unknown kind of plugin": (
        ["plugins", "new", "protocl", "mine"],
        "'protocl' is not one of 'protocol', ",
    ),
    "a new plugin without a name": (["plugins", "new", "hook"], "Missing argument 'NAME'"),
}


def test_click_exits_with_the_documented_statuses() -> None:
    assert click.ClickException.exit_code == ExitStatus.FAILURE
    assert click.UsageError.exit_code == ExitStatus.MISUSE


@pytest.mark.parametrize(("arguments", "message"), BAD_USAGE.values(), ids=BAD_USAGE)
def test_wrong_usage_is_named_and_exits_2(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Error" in done.err


BAD_FORWARDS = {
    "no equals sign": ("http", "-f http: write NAME=HOST:PORT"),
    "no address": ("http=", "no port: write HOST:PORT"),
    "no name": ("=127.0.0.1:80", "lower-case letters"),
    "a name in capitals": ("HTTP=127.0.0.1:80", "lower-case letters"),
    "no port": ("http=127.0.0.1", "no port: write HOST:PORT"),
    "a port out of range": ("http=127.0.0.1:65536", "port 65536 is not between 1 and 65535"),
    "port 0": ("http=127.0.0.1:0", "port 0 is not between 1 and 65535"),
    "no brackets": ("http=::1:80", "an IPv6 address needs brackets: [::1]:443"),
    "a URL": ("http=http://127.0.0.1:80/", "write HOST:PORT, not a URL"),
    "no such host": ("http=not a host:80", "'not a host' is not a host name"),
    "a relative path": ("http=unix:web.sock", "a unix socket needs its whole path"),
    "another name of a protocol": (
        "tls=127.0.0.1:443",
        "protocol 'tls' is not installed: did you mean 'https'?",
    ),
    "a misspelt protocol": (
        "htpp=127.0.0.1:80",
        "protocol 'htpp' is not installed: did you mean 'http'?",
    ),
}


@pytest.mark.parametrize(("forward", "message"), BAD_FORWARDS.values(), ids=BAD_FORWARDS)
def test_a_wrong_forward_is_named_and_exits_2(cli: Cli, forward: str, message: str) -> None:
    done = cli("check", "-f", forward)
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: -f ")
    assert message in line


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1:80", "not a host", "", "10.0.0.256"])
def test_a_wrong_bind_address_is_named_and_exits_2(cli: Cli, host: str) -> None:
    done = cli("check", "-b", host, "-f", "http=127.0.0.1:80")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --bind {host}: ")


def route(line: str = "", *, name: str = "http", forward_to: str = '"a.example:1"') -> str:
    """Return three lines of a route, followed by one more line."""
    return f'[[protocols]]\nname = "{name}"\nforward_to = {forward_to}\n{line}\n'


BAD_FILES = {
    "not TOML": ("[server\n", ":1: Expected ']' at the end of a table declaration"),
    "an unknown key": (
        "[server]\npeek_timout_ms = 1\n",
        ":2: server.peek_timout_ms: unknown key: did you mean 'peek_timeout_ms'?",
    ),
    "an unknown table": ("[sever]\n", ":1: sever: unknown key: did you mean 'server'?"),
    "a key in the wrong table": ("port = 1\n", ":1: port: unknown key: it belongs in [server]"),
    "text for a number": ('[server]\nport = "80"\n', ":2: server.port: expected int, got str"),
    "true for a number": ("[server]\nport = true\n", ":2: server.port: expected int, got bool"),
    "NaN": ("[server]\npeek_timeout_ms = nan\n", ":2: server.peek_timeout_ms: expected int, got float"),
    "a port out of range": ("[server]\nport = 65536\n", ":2: server.port: expected int <= 65535"),
    "a bad bind address": (
        '[server]\nbind = "[::1]"\n',
        ":2: server.bind: write an IPv6 address without brackets",
    ),
    "a bad fallback": ('fallback_tcp = "127.0.0.1"\n', ":1: fallback_tcp: no port: write HOST:PORT"),
    "no name": ('[[protocols]]\nforward_to = "127.0.0.1:1"\n', ":1: protocols[0]: no name"),
    "no backend": ('[[protocols]]\nname = "http"\n', ":1: protocols[0]: no forward_to"),
    "an empty list of backends": (route(forward_to="[]"), ":3: protocols[0].forward_to: is empty"),
    "a bad backend": (
        route(forward_to='["a.example:1", "b.example:0"]'),
        ":3: protocols[0].forward_to[1]: port 0 is not between 1 and 65535",
    ),
    "an unknown transport": (
        route('transport = "sctp"'),
        ":4: protocols[0].transport: write 'tcp' or 'udp'",
    ),
    "a transport it does not have": (
        route('transport = "udp"'),
        ":4: protocols[0].transport: http is a protocol for tcp only",
    ),
    "a protocol that is not installed": (
        route(name="gopher"),
        ":2: protocols[0].name: protocol 'gopher' is not installed: install the plugin that",
    ),
    "a control character in a name": (
        route('balance = "a\\u001b[2J"'),
        r":4: protocols[0].balance: 'a\x1b[2J' is not known",
    ),
    "a condition it cannot tell": (
        route('sni = "a.example"', name="ssh"),
        ":4: protocols[0].sni: protocol ssh carries no sni",
    ),
    "a condition on a misspelt key": (
        route('match = { pth = "/a" }'),
        ":4: protocols[0].match.pth: protocol http carries no pth: did you mean 'path'? there are host,",
    ),
    "a condition on an unknown key": (
        route("[protocols.match]\nmethod = 'GET'\ndatabase = 'shop'"),
        ":6: protocols[0].match.database: protocol http carries no database: there are host, method, path",
    ),
    "a condition on a protocol without metadata": (
        route("match.database = 'shop'", name="ftp"),
        ":4: protocols[0].match.database: protocol ftp carries no database: this protocol has no metadata",
    ),
    "a condition in the wrong place": (
        route("database = 'shop'"),
        ":4: protocols[0].database: unknown key: if the protocol has this metadata key, write match = {",
    ),
    "a text for a flag": (
        route("match = { ech = 'no' }", name="https"),
        ":4: protocols[0].match.ech: the key is a flag: write true or false",
    ),
    "a flag for a text": (
        route("match = { path = ['/a', true] }"),
        ":4: protocols[0].match.path[1]: the key is a text: write a text in quotes",
    ),
    "a condition twice": (
        route("host = 'a.example'\nmatch = { host = 'b.example' }"),
        ":5: protocols[0].match.host: host is given twice: leave one of host and match.host out",
    ),
    "an installed protocol's name for patterns": (
        route('patterns = ["abc"]'),
        ":2: protocols[0].name: 'http' is an installed protocol",
    ),
    "no patterns": (route("patterns = []", name="mine"), ":4: protocols[0].patterns: is empty"),
    "an empty pattern": (route('patterns = [""]', name="mine"), ":4: protocols[0].patterns[0]: "),
    "wrong hex": (
        route('patterns = [{ hex = "f" }]', name="mine"),
        ":4: protocols[0].patterns[0]: hex is pairs of hex digits",
    ),
    "a wrong regex": (
        route('patterns = [{ regex = "(" }]', name="mine"),
        ":4: protocols[0].patterns[0]: ",
    ),
    "a unix socket for UDP": (
        route('transport = "udp"', name="dns", forward_to='"unix:/run/dns"'),
        ":3: protocols[0].forward_to: a unix socket takes no datagrams",
    ),
    "a route twice": (
        route() + route(),
        ":5: protocols[1]: the same protocol and conditions as protocols[0]",
    ),
    "two for the silent": (
        route("on_timeout = true", name="ftp") + route("on_timeout = true", name="ssh"),
        ":8: protocols[1].on_timeout: ",
    ),
    "settings nobody takes": (
        "[plugins.ssh]\nport = 1\n",
        ":1: plugins.ssh: this plugin takes no settings",
    ),
    "an unknown setting of a protocol": (
        "[plugins.http]\nmax_header_byte = 1\n",
        ":2: plugins.http.max_header_byte: unknown key for plugin 'http': did you mean 'max_header_bytes'?",
    ),
    "a setting of a protocol out of its range": (
        "[plugins.https]\nmax_hello_bytes = 100\n",
        ":2: plugins.https.max_hello_bytes: ",
    ),
    "a peek timeout of a listener that is not a number": (
        '[[listeners]]\nport = 1\npeek_timeout_ms = "1s"\n' + route(),
        ":3: listeners[0].peek_timeout_ms: ",
    ),
    "an unknown user": (
        '[server]\nuser = "no such user"\n',
        ":2: server.user: this machine has no such user",
    ),
    "an unknown group": (
        '[server]\nuser = "nobody"\ngroup = "no such group"\n',
        ":3: server.group: this machine has no such group",
    ),
    "root as the user": ('[server]\nuser = "root"\n', ":2: server.user: root would keep its rights"),
    "root by number": ("[server]\nuser = 0\n", ":2: server.user: root would keep its rights"),
    "a user out of range": (
        "[server]\nuser = 4294967295\n",
        ":2: server.user: the number 4294967295 is not between 0 and 4294967294",
    ),
    "a group out of range": (
        '[server]\nuser = "nobody"\ngroup = -1\n',
        ":3: server.group: the number -1 is not between 0 and 4294967294",
    ),
    "true for a user": ("[server]\nuser = true\n", ":2: server.user: expected int | str, got bool"),
    "a group without a user": ('[server]\ngroup = "daemon"\n', ":2: server.group: a group needs a user"),
    "a user whose group nobody knows": (
        "[server]\nuser = 54321\n",
        ":2: server.user: this machine does not know the primary group of that user: add a group",
    ),
    "nothing to do": ("[server]\nport = 8080\n", ": protocols: no routes: add [[protocols]]"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_mistake_in_the_file_is_named_with_its_place_and_exits_2(cli: Cli, text: str, message: str) -> None:
    cli.write(text)
    done = cli("check")
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith(f"error: refractium.toml{message}")


def test_all_mistakes_are_reported_at_once_in_file_and_flags(cli: Cli) -> None:
    path = cli.write(
        """\
        [server]
        port = 65536
        bnid = "::"

        [[protocols]]
        name = "htpp"
        forward_to = ["127.0.0.1:80", "127.0.0.1"]
        """
    )
    done = cli("check", "-c", path, "-f", "ssh")
    assert done.code == 2
    lines = done.err.replace(str(path), "").splitlines()
    assert [":".join(line.split(":")[1:4]) for line in lines] == [
        " -f ssh: write NAME=HOST:PORT",
        " :2: server.port",
        " :3: server.bnid",
        " :6: protocols[0].name",
        " :7: protocols[0].forward_to[1]",
    ]


def test_a_file_that_cannot_be_read_is_named_and_exits_2(cli: Cli) -> None:
    os.mkfifo("fifo")
    (cli.folder / "latin-1.toml").write_bytes(b"[server]\n# caf\xe9\n")
    (cli.folder / "large.toml").write_bytes(b"#" * (1024 * 1024 + 1))
    messages = {
        "nowhere.toml": "error: nowhere.toml: no such file; `refractium init` writes one",
        ".": "error: .: not a regular file",
        "fifo": "error: fifo: not a regular file",
        "latin-1.toml": "error: latin-1.toml:2: byte 0xe9 is not UTF-8",
        "large.toml": "error: large.toml: larger than 1048576 bytes",
    }
    for name, message in messages.items():
        done = cli("check", "-c", name)
        assert (done.code, done.out, done.err) == (2, "", message + "\n")


def test_without_file_and_flags_the_error_says_how_to_begin(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert "`refractium init` writes one, or give -f NAME=HOST:PORT" in done.err


def test_without_any_protocol_the_error_says_how_to_install_one(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "entry_points", lambda **_: ())
    for command in ("check", "demo"):
        done = cli(command)
        assert done.code == 2
        assert "pip install 'refractium-protocols[all]'" in done.err


def test_without_any_loaded_protocol_the_error_says_why(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFRACTIUM_DISABLE_PLUGINS", "dns,ftp,http,https,ssh")
    for command in ("check", "demo"):
        done = cli(command)
        assert done.code == 2
        assert "plugin 'ssh' of refractium-proto-ssh" in done.err
        assert "disabled by REFRACTIUM_DISABLE_PLUGINS" in done.err
        assert "pip install" not in done.err


def test_a_flag_with_bytes_that_are_not_utf8_does_not_break_the_message() -> None:
    done = run("tcp", "-f", os.fsdecode(b"\xff\xfe"))
    assert done.code == 2
    assert done.err.startswith("error: -f ")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", [[], ["tcp"]], ids=["no command", "tcp"])
def test_the_configuration_is_checked_before_anything_is_bound(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*command, "-b", "127.0.0.1", "-p", port, "-f", "http")
        assert (done.code, done.out) == (2, "")
        assert done.err == "error: -f http: write NAME=HOST:PORT\n"


def test_a_traceback_is_shown_only_with_debug() -> None:
    done = run("--debug", "-f", "http")
    assert done.code == 2
    assert "ConfigError" in done.err.partition("Traceback (most recent call last)")[2]


def test_an_internal_fault_is_one_message_and_exits_1(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("refractium.assembly.assembly.load_with_files", fail)
    done = cli("check", "-f", "http=127.0.0.1:80")
    assert done.code == 1
    assert done.err == "error: internal error: ZeroDivisionError: oops; --debug shows the traceback\n"


def test_check_json_has_every_problem_with_file_and_line(cli: Cli) -> None:
    cli.write("[server]\nport = 65536\nbnid = 1\n")
    done = cli("check", "--json")
    assert (done.code, done.err) == (2, "")
    answer = json.loads(done.out)
    assert answer.keys() == {"ok", "problems", "warnings", "listeners", "routes"}
    assert answer["ok"] is False
    found = [(one["source"], one["line"], one["where"]) for one in answer["problems"]]
    assert found == [("refractium.toml", 2, "server.port"), ("refractium.toml", 3, "server.bnid")]
    assert all(one["message"] for one in answer["problems"])
