"""The access log has one line for each connection, whatever its names contain."""

from __future__ import annotations

import json
import logging
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from refractium.contract import ProtocolMatch, Transport
from refractium.observe.access_lines import AccessLogger
from refractium.proxy.summary import Ended, Summary
from refractium.wire.text import escape
from support.backends import Backend, echo
from support.clients import connect, receive_all
from support.process import serving

if TYPE_CHECKING:
    from pathlib import Path

    from refractium.contract import MetadataValue

SUMMARY = Summary(
    transport=Transport.TCP,
    client="192.0.2.7:50000",
    route="https",
    match=ProtocolMatch({"sni": "www.example.com", "alpn": ("h2",)}),
    backend="10.0.0.1:443",
    up=517,
    down=4096,
    seconds=1.25,
    ended=Ended.CLOSED,
)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("www.example.com", "www.example.com"),
        ("a\r\nINFO forged", r"a\r\nINFO\x20forged"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("nul\0", r"nul\x00"),
        ("%s %d %(name)s {} {0}", r"%s\x20%d\x20%(name)s\x20{}\x20{0}"),
        ("back\\slash", r"back\\slash"),
        ("\N{LINE SEPARATOR}\N{NEXT LINE}", r"\u2028\x85"),
        ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher \U0001f4a9", r"b\xfccher\x20\U0001f4a9"),
        ("\ud800", r"\ud800"),
        ("x" * 8192, "x" * 256 + "..."),
    ],
)
def test_a_name_from_the_wire_is_one_escaped_word(
    name: str, written: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(replace(SUMMARY, match=ProtocolMatch({"sni": name, "host": name})))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"192.0.2.7:50000 https sni={written} host={written} -> 10.0.0.1:443 up=517 down=4096 1.250s closed"
    )


@given(st.text() | st.binary() | st.tuples(st.text()))
def test_every_escaped_value_is_one_printable_word(value: object) -> None:
    written = escape(value)
    assert not value or written.isascii()
    assert written.isprintable()
    assert " " not in written


@pytest.mark.parametrize(
    ("value", "written"),
    [(("a.example", "b.example"), "a.example,b.example"), (True, "true"), (("a b",), r"a\x20b")],
)
def test_values_that_are_no_text_are_logged_without_notation_of_python(
    value: MetadataValue, written: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(replace(SUMMARY, match=ProtocolMatch({"host": value})))
    assert f" host={written} ->" in caplog.messages[0]


def test_unknown_values_are_logged_in_words(caplog: pytest.LogCaptureFixture) -> None:
    unknown = replace(SUMMARY, route=None, match=None, backend=None, ended=Ended.NO_ROUTE)
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(unknown)
    assert caplog.messages == ["192.0.2.7:50000 unidentified -> none up=517 down=4096 1.250s no route"]


def test_the_line_of_a_udp_session_names_the_transport(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(replace(SUMMARY, transport=Transport.UDP, route="dns", match=None))
    assert " dns/udp -> " in caplog.messages[0]


def test_clients_that_left_without_a_byte_are_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    left = replace(SUMMARY, ended=Ended.CLIENT_LEFT)
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(left)
    assert caplog.records == []
    with caplog.at_level(logging.DEBUG, "refractium.access"):
        AccessLogger().write(left)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


@pytest.mark.parametrize(("level", "wanted"), [(logging.INFO, True), (logging.WARNING, False)])
def test_the_access_log_is_wanted_only_at_its_level(
    level: int,
    wanted: bool,  # noqa: FBT001 - pytest passes it by name
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(level, "refractium.access"):
        assert AccessLogger().is_wanted() is wanted


def test_the_log_record_carries_the_summary_for_other_formats(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "refractium.access"):
        AccessLogger().write(SUMMARY)
    assert vars(caplog.records[0])["connection"] is SUMMARY


ROUTED_BY_HOST = """
{fallback}
[server]
bind = "127.0.0.1"
port = 0
[[protocols]]
name = "http"
host = "known.example"
forward_to = "127.0.0.1:1"
"""


@pytest.mark.parametrize("has_fallback", [True, False])
def test_the_log_names_the_protocol_of_a_client_that_no_route_matches(
    has_fallback: bool,  # noqa: FBT001 - pytest passes it by name
    tmp_path: Path,
) -> None:
    file = tmp_path / "refractium.toml"
    with Backend(echo) as backend:
        fallback = f'fallback_tcp = "{backend.address}"' if has_fallback else ""
        file.write_text(ROUTED_BY_HOST.format(fallback=fallback))
        with serving("-c", file, "--log-format", "json") as program:
            with connect(program.address) as client:
                client.sendall(b"GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
                receive_all(client)
            line = json.loads(program.await_err(r"^.*\"connection\".*$")[0])
    route, printed = ("fallback", "fallback") if has_fallback else (None, "unrouted")
    connection = line["connection"]
    assert (connection["route"], connection["protocol"]) == (route, "http")
    assert connection["metadata"]["host"] == "x.example"
    assert f" {printed} (http host=x.example: no route matches) -> " in line["message"]
