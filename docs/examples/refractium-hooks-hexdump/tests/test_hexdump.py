import logging

import pytest
from refractium_hooks_hexdump import SHOWN, hexdump

from refractium.contract import Transport
from refractium.testing import run_hook


@pytest.fixture(autouse=True)
def info_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_packet_is_shown_in_both_forms(caplog: pytest.LogCaptureFixture) -> None:
    run_hook(hexdump, inbound=[b"GET / HTTP/1.1\r\n\r\n"], outbound=[b"\x00~"])
    assert caplog.messages == [
        "0000000000000001 inbound  0000  47 45 54 20 2f 20 48 54 54 50 2f 31 2e 31 0d 0a  GET / HTTP/1.1..",
        "0000000000000001 inbound  0010  0d 0a                                            ..",
        "0000000000000001 outbound 0000  00 7e                                            .~",
    ]


def test_only_the_beginning_of_a_packet_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    run_hook(hexdump, inbound=[bytes(SHOWN - 1) + b"yn"])
    assert "".join(caplog.messages).count("00 " * 15) == SHOWN // 16
    assert caplog.messages[-1].endswith("...............y")


def test_an_empty_datagram_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    run_hook(hexdump, inbound=[b""], transport=Transport.UDP)
    assert [line.split() for line in caplog.messages] == [["0000000000000001", "inbound", "0000"]]


def test_no_byte_can_break_a_line(caplog: pytest.LogCaptureFixture) -> None:
    run_hook(hexdump, inbound=[bytes(range(at, at + SHOWN)) for at in range(0, 256, SHOWN)])
    assert all(line.isascii() and line.isprintable() for line in caplog.messages)
