from __future__ import annotations

import asyncio

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refractium.contract import NEED_MORE, ProtocolMatch
from refractium.testing import assert_identifies, assert_lawful, assert_rejects
from refractium_proto_ssh import Ssh, refractium_protocols
from support.capture import first_bytes, is_whole_line, run
from support.programs import require_program

ssh = Ssh()


def test_openssh_is_recognised() -> None:
    program = require_program("ssh")
    options = ["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    data = first_bytes(lambda port: run(program, *options, "-p", str(port), "me@127.0.0.1"), is_whole_line)
    match = assert_identifies(ssh, data)
    assert str(match.metadata["software"]).startswith("OpenSSH_")


def test_asyncssh_is_recognised() -> None:
    def connect(port: int) -> None:
        asyncio.run(_connect(port))

    async def _connect(port: int) -> None:
        async with asyncssh.connect("127.0.0.1", port, known_hosts=None, config=None, client_keys=None):
            pass

    data = first_bytes(connect, is_whole_line)
    assert_identifies(ssh, data, metadata={"software": f"AsyncSSH_{asyncssh.__version__}"})


@pytest.mark.parametrize(
    ("data", "software"),
    [
        (b"SSH-2.0-PuTTY_Release_0.80\r\n", "PuTTY_Release_0.80"),
        (b"SSH-2.0-libssh2_1.11.0\n", "libssh2_1.11.0"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\nSSH-2.0-x\r\n", "OpenSSH_9.2p1"),
        (b"SSH-1.99-Cisco-1.25\r\n", "Cisco-1.25"),
        (b"SSH-2.0-\r\n", None),
        (b"SSH-2.0-\xff\r\n", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_the_software_is_known_once_its_line_is_complete(data: bytes, software: str | None) -> None:
    assert_identifies(ssh, data, metadata={} if software is None else {"software": software})
    early = ssh.identify(data[:9])
    assert isinstance(early, ProtocolMatch)
    assert not early.metadata
    assert early.pending == {"software"}


def test_a_line_that_is_too_long_names_no_software() -> None:
    match = assert_identifies(ssh, b"SSH-2.0-" + b"x" * 300 + b"\r\n")
    assert not match.metadata
    assert match.pending == {"software"}


@pytest.mark.parametrize("data", [b"SSH-1.5-old\n", b"SSH-2.1-x\r\n", b"ssh-2.0-x\r\n", b"\r\nSSH-2.0-x"])
def test_bytes_of_other_protocols_are_rejected(data: bytes) -> None:
    assert_rejects(ssh, data)


def test_a_prefix_needs_more() -> None:
    assert ssh.identify(b"SSH-") is NEED_MORE
    assert ssh.identify(b"SSH-1.99") is NEED_MORE


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=280).map(lambda tail: b"SSH-2.0-" + tail))
def test_any_bytes_keep_the_laws(data: bytes) -> None:
    assert_lawful(ssh, data)


def test_the_plugin_offers_ssh_over_tcp() -> None:
    assert [repr(protocol) for protocol in refractium_protocols()] == ["<Ssh ssh/tcp>"]
