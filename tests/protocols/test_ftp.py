from __future__ import annotations

import ftplib
import select
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, NO, Strength
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium_proto_ftp import COMMANDS, Ftp, refractium_protocols
from support.capture import TIMEOUT

ftp = Ftp()


@pytest.mark.parametrize("client", [ftplib.FTP, ftplib.FTP_TLS])
def test_ftplib_waits_for_the_server_and_then_sends_a_known_command(client: type[ftplib.FTP]) -> None:
    def login(port: int) -> None:
        with client() as session:
            session.connect("127.0.0.1", port, TIMEOUT)
            session.login()

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        server.settimeout(TIMEOUT)
        running = pool.submit(login, server.getsockname()[1])
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TIMEOUT)
            spoke_first, _, _ = select.select([connection], [], [], 0.2)
            connection.sendall(b"220 ready\r\n")
            line = connection.recv(1024)
            connection.sendall(b"421 closing\r\n")
        running.exception(TIMEOUT)
    assert not spoke_first
    assert_identifies(ftp, line)


@pytest.mark.parametrize(
    "data",
    [
        *(b"USER anonymous\r\n", b"user anonymous\r\n", b"AUTH TLS\r\n", b"AUTH SSL\n", b"auth tls \r\n"),
        *(b"FEAT\r\n", b"Feat\n", b"HOST ftp.example.com\r\n", b"OPTS UTF8 ON\r\n"),
    ],
)
def test_a_client_that_sends_first_is_recognised(data: bytes) -> None:
    assert_identifies(ftp, data, metadata={})


@pytest.mark.parametrize(
    "data",
    [
        *(b"GET / HTTP/1.1\r\n", b"USERS\r\n", b"AUTH PLAIN\r\n", b"AUTH TLSX\r\n", b"FEATURE\r\n"),
        *(b"EHLO x\r\n", b"HOSTS \r\n", b"OPTIONS * HTTP/1.1\r\n", b"\x16\x03\x01", b"SSH-2.0-x\r\n"),
    ],
)
def test_other_lines_are_rejected(data: bytes) -> None:
    assert_rejects(ftp, data)


@pytest.mark.parametrize(
    "data",
    [
        *(b"USER a b c :d\r\n", b"USER guest 0 * :Ronnie Reagan\r\n", b"USER guest 0 * guest\n"),
        *(
            b"user guest tolmoon tolsun :Ronnie\r\nNICK guest\r\n",
            b"USER a b c :\r\n",
            b"USER  a  8  *  :d\r\n",
        ),
        *(b"NICK guest\r\nUSER guest 0 * :Guest\r\n", b"PASS secret\r\nNICK guest\r\n", b"CAP LS 302\r\n"),
        *(
            b":guest USER guest 0 * :Guest\r\n",
            b"SERVICE dict * *.fr 0 0 :Dictionary\r\n",
            b"AUTHENTICATE PLAIN\r\n",
        ),
    ],
)
def test_the_registration_of_an_irc_client_is_rejected(data: bytes) -> None:
    assert_rejects(ftp, data)


def test_irc_is_rejected_at_the_fourth_word_of_its_user_line() -> None:
    line = b"USER guest 0 * :Guest\r\n"
    answers = [ftp.identify(line[:end]) for end in range(1, len(line) + 1)]
    assert answers.index(NO) == line.index(b":")
    assert set(answers[: line.index(b":")]) == {NEED_MORE}


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"USER \r\n",
            b"USER John Doe\r\n",
            b"USER J. van Damme\n",
            b"USER a:b c:d\r\n",
            b"USER a b c \r\n",
        ),
        *(
            b"USER joe\r\nPASS a b c :d\r\n",
            b"USER joe\rx y z :d",
            b"AUTH TLS a b c :d\r\n",
            b"HOST a b c :d\r\n",
        ),
        *(b"USER ".ljust(512, b"x"), b"USER ".ljust(600, b"x") + b" b c :d\r\n"),
    ],
)
def test_a_user_name_of_at_most_three_words_is_ftp(data: bytes) -> None:
    assert_identifies(ftp, data, metadata={})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_proper_prefix_needs_more(command: bytes) -> None:
    assert all(ftp.identify(command[:end].lower()) is NEED_MORE for end in range(1, len(command)))


def test_silence_recognises_ftp_and_its_commands_are_weak_evidence() -> None:
    assert ftp.server_first
    assert ftp.strength is Strength.WEAK


@settings(deadline=None)
@given(
    st.binary(max_size=40)
    | st.tuples(st.sampled_from(COMMANDS), st.binary(max_size=9)).map(b"".join)
    | st.lists(st.sampled_from([b"USER ", b" ", b"a", b":", b"\r", b"\n", b"x" * 250]), max_size=9).map(
        lambda parts: b"USER " + b"".join(parts)
    )
)
def test_any_bytes_keep_the_laws(data: bytes) -> None:
    assert_lawful(ftp, data)


def test_the_plugin_offers_ftp_over_tcp() -> None:
    assert [repr(protocol) for protocol in refractium_protocols()] == ["<Ftp ftp/tcp>"]
