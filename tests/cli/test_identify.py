"""The command identify: the protocol of first bytes, and where a client with these bytes goes and why."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dns.message
import pytest

from hooks_pcap.mirroring import await_captured, configuration, mirroring
from hooks_pcap.test_flows import pcap, stream
from support.backends import Backend, sink
from support.clients import ask
from support.hellos import Builder, records, typical_hello
from support.process import PROGRAM, environment, run
from support.proxy import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Cli

CLIENT_HELLO = records(typical_hello())
BUILD = Builder()
SHOP = records(BUILD.hello([BUILD.sni(b"shop.example"), BUILD.alpn(b"h2")]))
SSH = b"SSH-2.0-x\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
PROTOCOLS = {"http", "https", "ssh", "dns", "ftp"}


def identified(cli: Cli, *arguments: object, stdin: bytes = b"") -> dict[str, Any]:
    done = cli("identify", *arguments, "--json", stdin=stdin)
    assert (done.code, done.err) == (0, "")
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_identify_reads_a_file_stdin_or_hex(cli: Cli) -> None:
    (cli.folder / "hello.bin").write_bytes(CLIENT_HELLO)
    from_file = identified(cli, "hello.bin")
    assert from_file["protocol"] == "https"
    assert from_file["metadata"]["sni"] == "www.example.com"
    assert from_file["needs_more"] is False
    assert from_file["bytes_needed"] <= len(CLIENT_HELLO)
    for arguments, stdin in (
        ((), CLIENT_HELLO),
        (("-",), CLIENT_HELLO),
        (("--hex", CLIENT_HELLO.hex(" ")), b""),
    ):
        assert identified(cli, *arguments, stdin=stdin) == from_file


def test_identify_reads_a_pipe_without_an_argument(tmp_path: Path) -> None:
    done = run("identify", "--json", cwd=tmp_path, env=environment(), stdin=SSH)
    assert (done.code, json.loads(done.out)["protocol"]) == (0, "ssh")


def test_identify_does_not_wait_for_a_person_to_type_bytes(tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [PROGRAM, "identify"],
            cwd=tmp_path,
            env=environment(),
            stdin=terminal,
            capture_output=True,
            check=False,
        )
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 2
    assert b"--hex" in done.stderr


def test_identify_shows_the_answer_of_every_protocol_in_order(cli: Cli) -> None:
    answers = identified(cli, "--hex", CLIENT_HELLO[:100].hex())["answers"]
    assert {one["protocol"] for one in answers} == PROTOCOLS
    order = ["exact", "structured", "weak"]
    assert [one["strength"] for one in answers] == sorted(
        (one["strength"] for one in answers), key=order.index
    )
    assert {one["protocol"]: one["answer"] for one in answers}["https"] == "need more"
    assert {one["protocol"]: one["answer"] for one in answers}["ssh"] == "no"


def test_identify_distinguishes_need_more_and_no(cli: Cli) -> None:
    half = identified(cli, "--hex", CLIENT_HELLO[:100].hex())
    assert (half["protocol"], half["needs_more"]) == ("https", True)
    assert half["bytes_needed"] == len(CLIENT_HELLO)
    nothing = identified(cli, "--hex", "00 00 00 00 ff")
    assert (nothing["protocol"], nothing["needs_more"]) == (None, False)


def test_identify_of_a_datagram_asks_the_udp_protocols(cli: Cli) -> None:
    query = dns.message.make_query("www.example.com", "AAAA").to_wire()
    found = identified(cli, "--udp", "-", stdin=query)
    assert found["protocol"] == "dns"
    assert found["metadata"] == {"qname": "www.example.com", "qtype": "AAAA"}
    assert identified(cli, "-", stdin=query)["protocol"] is None
    assert identified(cli, "--udp", "-")["protocol"] is None, "a datagram may be empty"


def test_identify_asks_protocols_defined_in_the_file_as_well(cli: Cli) -> None:
    cli.write('[[protocols]]\nname = "mine"\npatterns = [{ hex = "cafe01" }]\nforward_to = "127.0.0.1:1"\n')
    found = identified(cli, "--hex", "ca fe 01")
    assert (found["protocol"], found["result"]["route"]) == ("mine", "mine")


def test_the_text_escapes_what_a_client_sends(cli: Cli) -> None:
    for arguments in ((), ("--explain",)):
        done = cli("identify", *arguments, stdin=b"SSH-2.0-Open\x1b[31mSSH\r\n")
        assert (done.code, done.err) == (0, "")
        assert "\x1b" not in done.out
        assert r"software=Open\x1b[31mSSH" in done.out


def test_only_explain_shows_the_answers_of_all_protocols(cli: Cli) -> None:
    brief, full = cli("identify", stdin=SSH).out, cli("identify", "--explain", stdin=SSH).out
    assert full.startswith(brief)
    assert "dns" not in brief
    assert all(name in full for name in PROTOCOLS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--hex", "00"], "error: identify: give only one of FILE, --hex and --pcap"),
        (["--hex", "xyz"], "error: --hex: hex is pairs of hex digits"),
        (["--hex", "123"], "error: --hex: hex is pairs of hex digits"),
        (["nowhere.bin"], "'nowhere.bin': No such file or directory"),
        (["--hex", "00", "--client", "host.example"], "error: --client host.example: write an IP address"),
        (["--hex", "00", "-c", "nowhere.toml"], "nowhere.toml"),
        (["--hex", "00", "--listener", "127.0.0.1:1"], "error: --listener: no listener has a route for tcp"),
    ],
)
def test_identify_refuses_bad_arguments(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli("identify", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


# Routes

FILE = """
    [server]
    fallback_tcp = "127.0.0.1:9999"
    proxy_protocol_from = ["10.9.9.9"]

    [[listeners]]
    port = 8080
    peek_timeout_ms = 700

    [[listeners]]
    port = 8443
    transports = ["tcp"]
    routes = ["https"]
    deny = ["203.0.113.0/24"]

    [[protocols]]
    name = "https"
    id = "shop"
    sni = "shop.example"
    alpn = "http/1.1"
    forward_to = ["10.0.0.1:443", { address = "10.0.0.2:443", backup = true }]

    [[protocols]]
    name = "https"
    id = "lan"
    client = "10.0.0.0/8"
    forward_to = "10.0.0.3:443"

    [[protocols]]
    name = "http"
    match = { method = "POST" }
    forward_to = "10.0.0.4:80"

    [[protocols]]
    name = "ftp"
    forward_to = "10.0.0.5:21"

    [[protocols]]
    name = "dns"
    transport = "udp"
    deny = ["192.0.2.0/24"]
    forward_to = "10.0.0.6:53"
"""
QUERY = dns.message.make_query("www.example.com", "A").to_wire()
WAYS: dict[str, tuple[list[str], bytes, dict[str, Any]]] = {
    "a route": (
        ["--client", "10.1.1.1"],
        SHOP,
        {
            "outcome": "identified",
            "route": "lan",
            "forward_to": ["10.0.0.3:443"],
            "if_unreachable": ["127.0.0.1:9999"],
        },
    ),
    "every condition but client": (
        ["--client", "192.0.2.1"],
        SHOP,
        {
            "outcome": "fallback",
            "route": "fallback",
            "why": "no route for https has conditions that this client meets",
        },
    ),
    "an unknown client": ([], SHOP, {"outcome": "identified", "route": "lan"}),
    "no route asks": ([], SSH, {"outcome": "fallback", "why": "no route of this listener asks for ssh"}),
    "a key of match": (
        [],
        GET,
        {"outcome": "fallback", "why": "no route for http has conditions that this client meets"},
    ),
    "no protocol": ([], bytes(20), {"outcome": "fallback", "why": "no protocol matches"}),
    "another listener": (
        ["--listener", "0.0.0.0:8443"],
        b"POST / HTTP/1.1\r\n",
        {"route": "fallback", "why": "no route of this listener asks for http"},
    ),
    "denied by the listener": (
        ["--listener", "0.0.0.0:8443", "--client", "203.0.113.7"],
        SHOP,
        {"outcome": None, "route": None, "refused": "access rules deny this address"},
    ),
    "no PROXY header": (["--client", "10.9.9.9"], GET, {"refused": "no valid PROXY header"}),
    "a PROXY header": (
        ["--client", "10.9.9.9"],
        b"PROXY TCP4 10.2.2.2 192.0.2.1 4000 443\r\n" + SHOP,
        {"outcome": "identified", "route": "lan"},
    ),
    "a datagram": (["--udp", "--client", "10.1.1.1"], QUERY, {"route": "dns", "forward_to": ["10.0.0.6:53"]}),
    "a mapped address": (
        ["--udp", "--client", "::ffff:192.0.2.1"],
        QUERY,
        {"outcome": "identified", "route": "dns", "refused": "denied to this client by the route"},
    ),
    "a datagram that no route asks for": (["--udp"], b"?", {"outcome": "no_route", "refused": "no route"}),
}


@pytest.mark.parametrize(("arguments", "data", "result"), WAYS.values(), ids=WAYS)
def test_identify_names_the_route_and_the_backends(
    cli: Cli, arguments: list[str], data: bytes, result: dict[str, Any]
) -> None:
    cli.write(FILE)
    found = identified(cli, *arguments, stdin=data)
    assert found["result_at_timeout"] is None
    assert found["result"] | result == found["result"]
    text = cli("identify", *arguments, stdin=data).out
    for word in (result.get("why"), result.get("refused"), *result.get("forward_to", ()), found["listener"]):
        assert not word or word in text


@pytest.mark.parametrize(
    ("data", "needed", "result"),
    [
        (b"", 1, {"outcome": "silent", "route": "ftp"}),
        (SHOP[:60], len(SHOP), {"outcome": "undecided", "route": None}),
        (b"G", 2, {"outcome": "fallback", "route": "fallback"}),
    ],
)
def test_identify_says_what_happens_at_the_peek_timeout(
    cli: Cli, data: bytes, needed: int, result: dict[str, Any]
) -> None:
    cli.write(FILE)
    found = identified(cli, stdin=data)
    assert (found["needs_more"], found["result"]) == (True, None)
    assert found["bytes_needed"] >= needed
    assert (found["timeout"], found["timeout_ms"]) == ("peek_timeout_ms", 700)
    assert found["result_at_timeout"] | result == found["result_at_timeout"]
    assert "700 ms after the accept (peek_timeout_ms)" in cli("identify", stdin=data).out


def test_a_weak_match_waits_for_the_grace_time(cli: Cli) -> None:
    cli.write("""
        [server]
        peek_grace_ms = 40
        [[protocols]]
        name = "weak"
        patterns = ["AB"]
        forward_to = "127.0.0.1:1"
        [[protocols]]
        name = "strong"
        patterns = [{ hex = "41424344" }]
        forward_to = "127.0.0.1:2"
    """)
    found = identified(cli, stdin=b"AB")
    assert found["needs_more"]
    assert (found["timeout"], found["timeout_ms"]) == ("peek_grace_ms", 40)
    assert found["result_at_timeout"]["route"] == "weak"
    assert identified(cli, stdin=b"ABCD")["result"]["route"] == "strong"


def test_explain_names_the_condition_at_which_each_route_failed(cli: Cli) -> None:
    cli.write(FILE)
    found = identified(cli, "--client", "192.0.2.1", stdin=SHOP)
    routes = {one["route"]: one for one in found["routes"]}
    assert list(routes) == ["shop", "lan", "http", "ftp", "fallback"]
    assert {name: one["result"] for name, one in routes.items()} == {
        **dict.fromkeys(["shop", "lan", "http", "ftp"], "fails"),
        "fallback": "chosen",
    }
    alpn = next(one for one in routes["shop"]["conditions"] if one["key"] == "alpn")
    assert (alpn["wanted"], alpn["result"], alpn["actual"]) == (["http/1.1"], "fails", ["h2"])
    text = cli("identify", "--client", "192.0.2.1", "--explain", stdin=SHOP).out
    for words in ("alpn http/1.1 fails: h2", "client 10.0.0.0/8 fails: 192.0.2.1", "http said no"):
        assert words in text


def test_explain_names_the_protocols_that_the_listener_does_not_ask(cli: Cli) -> None:
    cli.write(FILE)
    answers = identified(cli, stdin=SSH)["answers"]
    asked = [one["protocol"] for one in answers if "no route of this listener" not in one["why"]]
    assert asked == ["https", "http", "ftp"]
    (ssh,) = [one for one in answers if one["protocol"] == "ssh"]
    assert (ssh["answer"], ssh["metadata"]) == ("yes", {"software": "x"})


def test_a_protocol_without_a_route_for_this_client_is_told(cli: Cli) -> None:
    cli.write('[[protocols]]\nname = "ssh"\nclient = "10.0.0.0/8"\nforward_to = "127.0.0.1:1"\n')
    found = identified(cli, "--client", "192.0.2.1", stdin=SSH)
    assert found["result"]["why"] == "no route for ssh is open to the address of this client"
    assert found["protocol"] == "ssh"
    assert identified(cli, "--client", "10.0.0.1", stdin=SSH)["result"]["route"] == "ssh"


def test_a_sole_route_needs_no_bytes(cli: Cli) -> None:
    cli.write('[[protocols]]\nname = "ftp"\nforward_to = "127.0.0.1:1"\n')
    for data in (b"", b"U", GET):
        found = identified(cli, stdin=data)
        assert (found["needs_more"], found["result"]["route"]) == (False, "ftp")


def test_the_flags_of_a_server_apply_to_identify(cli: Cli) -> None:
    path = cli.write('[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:1"\n', "other.toml")
    for arguments in (
        ["identify", "-c", path],
        ["-c", path, "identify"],
        ["-f", "ssh=127.0.0.1:1", "identify"],
    ):
        done = cli(*arguments, "--json", stdin=SSH)
        assert json.loads(done.out)["result"]["forward_to"] == ["127.0.0.1:1"]


def test_a_listener_is_chosen_by_its_name(cli: Cli) -> None:
    cli.write(FILE)
    done = cli("identify", "--listener", "0.0.0.0:8444", stdin=SSH)
    assert done.code == 2
    assert "0.0.0.0:8443" in done.err
    assert cli("identify", "--udp", "--listener", "0.0.0.0:8443", stdin=QUERY).code == 2
    found = identified(cli, "--listener", "0.0.0.0:8443", stdin=SSH)
    assert (found["listener"], found["listeners"]) == ("0.0.0.0:8443", ["0.0.0.0:8080", "0.0.0.0:8443"])


def test_a_configuration_without_a_listener_for_datagrams_has_no_route_for_them(cli: Cli) -> None:
    cli.write('[[protocols]]\nname = "ssh"\nforward_to = "127.0.0.1:1"\n')
    found = identified(cli, "--udp", stdin=QUERY)
    assert (found["protocol"], found["listener"], found["result"]) == ("dns", None, None)


def test_identify_reports_the_mistakes_of_a_file(cli: Cli) -> None:
    cli.write('[[protocols]]\nname = "sssh"\nforward_to = "127.0.0.1:1"\n')
    done = cli("identify", stdin=SSH)
    assert (done.code, done.out) == (2, "")
    assert "sssh" in done.err


def test_identify_opens_nothing_that_hooks_or_backends_need(cli: Cli) -> None:
    cli.write(
        '[plugins.pcap]\npath = "out.pcapng"\n'
        '[[protocols]]\nname = "ssh"\nhooks = ["pcap"]\nforward_to = "backend.invalid:22"\n'
        '[protocols.health]\nkind = "tcp"\n'
    )
    assert identified(cli, stdin=SSH)["result"]["forward_to"] == ["backend.invalid:22"]
    assert sorted(path.name for path in cli.folder.iterdir()) == ["refractium.toml"]


# Captures


def test_a_capture_of_our_own_hook_names_the_route_of_each_flow(cli: Cli) -> None:
    with (
        Backend(sink) as backend,
        mirroring(cli.folder, configuration(backend.address, "out.pcapng")) as proxy,
    ):
        for data in (SSH, GET, SHOP):
            ask(("127.0.0.1", proxy.port), data)
        await_captured(proxy)
        captured = cli.folder / "out.pcapng"
        eventually(lambda: SHOP in captured.read_bytes(), "the capture is written")
    cli.write(FILE)
    found = identified(cli, "--pcap", "out.pcapng")
    assert [one["report"]["protocol"] for one in found["flows"]] == ["ssh", "http", "https"]
    assert [one["report"]["result"]["route"] for one in found["flows"]] == ["fallback"] * 3
    assert all(one["report"]["client"] == "127.0.0.1" for one in found["flows"])
    assert found["flows"][0]["report"]["result"]["why"] == "no route of this listener asks for ssh"
    lan = identified(cli, "--pcap", "out.pcapng", "--client", "10.0.0.1")["flows"]
    assert [one["report"]["result"]["route"] for one in lan] == ["fallback", "fallback", "lan"]
    text = cli("identify", "--pcap", "out.pcapng").out
    assert len(text.splitlines()) == 4
    full = cli("identify", "--pcap", "out.pcapng", "--explain").out
    assert full.count("no route of this listener asks for ssh") == 1
    assert "match.method POST fails: GET" in full


def write_capture(cli: Cli, packets: list[bytes], *, seconds: int = 0) -> None:
    """Write a capture whose packets follow each other after some seconds."""
    (cli.folder / "some.pcap").write_bytes(pcap(packets, seconds=seconds))


def test_the_port_of_the_server_chooses_the_listener_of_a_flow(cli: Cli) -> None:
    cli.write(FILE)
    write_capture(
        cli,
        [
            *stream((0, GET), server=("192.0.2.9", 8443)),
            *stream((0, GET), client=("10.1.1.1", 5), server=("192.0.2.9", 8080)),
        ],
    )
    flows = identified(cli, "--pcap", "some.pcap")["flows"]
    assert [one["report"]["listener"] for one in flows] == ["0.0.0.0:8443", "0.0.0.0:8080"]
    flows = identified(cli, "--pcap", "some.pcap", "--listener", "0.0.0.0:8080")["flows"]
    assert {one["report"]["listener"] for one in flows} == {"0.0.0.0:8080"}


def test_a_capture_tells_what_it_lacks(cli: Cli) -> None:
    cli.write(FILE)
    write_capture(
        cli,
        [
            *stream((10, GET))[2:],
            *stream((0, GET[:9]), (30, GET[30:]), client=("10.1.1.1", 6)),
            *stream(client=("10.1.1.1", 7)),
            *stream((0, b"G"), client=("10.1.1.1", 8), ends_at=1),
        ],
    )
    cut, gap, silent, ended = identified(cli, "--pcap", "some.pcap")["flows"]
    assert (cut["report"], cut["notes"]) == (None, ["the beginning of the flow is not in the capture"])
    assert gap["notes"] == ["bytes are missing in the capture after these bytes"]
    assert silent["report"]["result_at_timeout"]["route"] == "ftp"
    assert (ended["report"]["needs_more"], ended["report"]["result"]["route"]) == (False, "fallback")
    assert "the beginning of the flow is not in the capture" in cli("identify", "--pcap", "some.pcap").out


def test_a_first_byte_after_the_peek_timeout_is_told(cli: Cli) -> None:
    cli.write(FILE)
    write_capture(cli, stream((0, b"USER joe\r\n")), seconds=1)
    (flow,) = identified(cli, "--pcap", "some.pcap")["flows"]
    assert flow["notes"] == [
        "the client is silent at the peek timeout: its first byte comes 2000 ms after the SYN"
    ]


def test_a_flow_behind_a_proxy_names_its_client(cli: Cli) -> None:
    cli.write(FILE)
    data = b"PROXY TCP4 10.2.2.2 192.0.2.1 4000 443\r\n" + SHOP
    write_capture(cli, stream((0, data), client=("10.9.9.9", 9), server=("192.0.2.9", 8080)))
    (flow,) = identified(cli, "--pcap", "some.pcap")["flows"]
    assert flow["client"] == "10.9.9.9:9"
    assert flow["report"]["client"] == "10.2.2.2"
    assert flow["report"]["result"]["route"] == "lan"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pcap", "text.txt"], "error: --pcap text.txt: "),
        (["--pcap", "nowhere.pcap"], "nowhere.pcap"),
        (["--pcap", "text.txt", "--hex", "00"], "only one of FILE, --hex and --pcap"),
        (["--pcap", "text.txt", "--udp"], "--udp is for bytes only"),
    ],
)
def test_a_file_that_is_no_capture_is_refused(cli: Cli, arguments: list[str], message: str) -> None:
    (cli.folder / "text.txt").write_text("hello, world")
    done = cli("identify", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_without_the_package_that_reads_captures_the_error_names_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_capture(cli, [])
    monkeypatch.setitem(sys.modules, "refractium_hooks_pcap.flows", None)
    done = cli("identify", "--pcap", "some.pcap")
    assert (done.code, done.out) == (2, "")
    assert "pip install 'refractium-core[pcap]'" in done.err
