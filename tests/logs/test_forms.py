"""Each format of log lines, with any text in the message, the names or the exception."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.contract import ProtocolMatch, Transport
from refractium.daemon.access_log import access_line
from refractium.logs.forms import FORMS, Form, form_of
from refractium.proxy.summary import Ended, Summary
from support.jsons import texts

ANY = st.text(st.characters(exclude_categories=()), max_size=400)
"""Any text, with lone surrogates too, which stand for bytes that are not UTF-8."""
HOSTILE = "\x1b[31m \x9b31m \u202egnp.exe \udc80 \x7f \r\n \u2028 \ufeff"
AT = 1_800_000_000.25

each_form = pytest.mark.parametrize("form", [form_of(style) for style in FORMS], ids=FORMS)


def record(message: str, exception: BaseException | None = None) -> logging.LogRecord:
    info = None if exception is None else (type(exception), exception, exception.__traceback__)
    return logging.LogRecord("plugin\x1b", logging.WARNING, "a.py", 1, "%s", (message,), info)


def summary(metadata: dict[str, Any], backend: str = "10.0.0.1:443") -> Summary:
    return Summary(
        transport=Transport.TCP,
        client="192.0.2.7:50000",
        route="https",
        match=ProtocolMatch(metadata),
        backend=backend,
        up=517,
        down=4096,
        seconds=1.25,
        ended=Ended.CLOSED,
    )


def assert_is_text(form: Form, line: str) -> None:
    """Assert that a line is one row of printable text, and so is each text in its JSON. In the rich format,
    colours and row breaks of rich are removed first."""
    if form.style == "rich":
        line = re.sub(r"\x1b\[[0-9;]*m", "", line).replace("\n", "")
    assert line.isprintable()
    if form.style == "json":
        assert all(text.isprintable() for text in texts(json.loads(line)))


@each_form
@given(message=ANY)
def test_a_message_is_one_line_of_text(form: Form, message: str) -> None:
    assert_is_text(form, form.format(record(message)))


@each_form
def test_no_character_moves_the_cursor_or_reverses_a_line(form: Form) -> None:
    line = form.format(record(HOSTILE))
    shown = line.replace("\\\\", "\\")
    for escaped in (r"\x1b[31m", r"\x9b31m", r"\u202egnp.exe", r"\udc80", r"\x7f", r"\r\n", r"\u2028"):
        assert escaped in shown
    assert_is_text(form, line)


@each_form
def test_a_level_without_a_name_is_logged_too(form: Form) -> None:
    assert "level 15" in form.format(logging.LogRecord("a", 15, "a.py", 1, "said", None, None)).lower()


@each_form
def test_a_long_message_is_cut_and_ends_with_dots(form: Form) -> None:
    assert len(form.format(record("x" * 100_000))) < 10_000
    assert "x..." in form.format(record("x" * 100_000)).replace("\n", "")


def fail(text: str) -> None:
    raise ValueError(text)


def failing(text: str) -> BaseException:
    """Return an exception with a traceback."""
    with pytest.raises(ValueError, match=r".") as raised:
        fail(text)
    return raised.value


def test_no_line_of_a_traceback_looks_like_a_line_of_the_log() -> None:
    forged = "2026-11-24T05:00:00.000Z error forged"
    first, *rest = form_of("plain").format(record("failed", failing(f"a\n{forged}\x1b[2J"))).split("\n")
    assert first.endswith("failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == rf"  {forged}\x1b[2J"
    assert all(row.startswith("  ") and row.isprintable() for row in rest)


def test_a_traceback_in_json_keeps_line_breaks_and_no_other_control_character() -> None:
    line = form_of("json").format(record("failed", failing("a\x1b[2J\nb\u202e")))
    assert line.isprintable()
    exception = json.loads(line)["exception"]
    assert exception.startswith("Traceback (most recent call last):\n")
    assert exception.endswith("ValueError: a\\x1b[2J\nb\\u202e")


@each_form
@given(text=ANY, key=ANY)
def test_a_connection_is_one_line_of_text(form: Form, text: str, key: str) -> None:
    metadata = {"sni": text, "host": text, "alpn": (text, text), "ech": True, key: text}
    line = access_line(form, AT, summary(metadata))
    assert line.endswith("\n")
    assert_is_text(form, line[:-1])


@each_form
@pytest.mark.parametrize("character", ["x", "\x00", "\u202e", "\u6771", '"', "\\", "\U000e0001"])
def test_a_client_cannot_make_a_long_line(form: Form, character: str) -> None:
    text = character * 8192
    metadata = {"sni": text, "host": text, "path": text, "alpn": (text,), "names": (character,) * 8192}
    line = access_line(form, AT, summary(metadata))
    assert len(line) < 4000
    assert re.sub(r"\s", "", line).count("...") == (7 if form.style == "json" else 2)


def test_json_marks_where_a_text_or_a_list_was_cut() -> None:
    line = access_line(form_of("json"), AT, summary({"path": "/" + "x" * 300, "names": ("abc",) * 300}))
    metadata = json.loads(line)["connection"]["metadata"]
    assert metadata["path"] == "/" + "x" * 255 + "..."
    assert metadata["names"][-1] == "..."
    assert set(metadata["names"][:-1]) == {"abc"}


def test_json_has_short_texts_in_full() -> None:
    metadata = {"sni": "caf\u00e9", "alpn": ("h2", "http/1.1"), "ech": True, "path": "/" + "x" * 255}
    line = access_line(form_of("json"), AT, summary(metadata))
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.250Z",
        "level": "info",
        "logger": "refractium.access",
        "message": r"192.0.2.7:50000 https sni=caf\xe9 -> 10.0.0.1:443 up=517 down=4096 1.250s closed",
        "connection": {
            "transport": "tcp",
            "client": "192.0.2.7:50000",
            "route": "https",
            "protocol": None,
            "backend": "10.0.0.1:443",
            "up": 517,
            "down": 4096,
            "seconds": 1.25,
            "ended": "closed",
            "metadata": {**metadata, "alpn": ["h2", "http/1.1"]},
        },
    }


@each_form
def test_the_path_of_a_backend_is_escaped_too(form: Form) -> None:
    line = access_line(form, AT, summary({}, backend="unix:/run/\x1b[2J.sock"))
    assert_is_text(form, line[:-1])
