"""Captures as the programs of Wireshark read them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final, NamedTuple

from support.programs import require_program

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT: Final = 100.0
"""Seconds after which tshark has hung; a capture of 500 MiB takes about ten."""
_CHECKSUMS: Final = ("tcp.check_checksum", "udp.check_checksum", "ip.check_checksum")


class Followed(NamedTuple):
    """A TCP connection.

    Attributes:
        client: ``ADDRESS:PORT`` of the side that opened the connection.
        server: ``ADDRESS:PORT`` of the other side.
        up: bytes that the client sent.
        down: bytes that the server sent.
    """

    client: str
    server: str
    up: bytes
    down: bytes


def tshark(path: Path, *arguments: str) -> list[str]:
    """Return the lines that tshark prints about a capture, which must be whole."""
    command = [require_program("tshark"), "-n", "-r", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def follow(path: Path, *options: str) -> list[Followed]:
    """Return all TCP connections of a capture, in the order in which they were opened."""
    count = len(set(tshark(path, *options, "-Y", "tcp", "-T", "fields", "-e", "tcp.stream")))
    taps = [part for number in range(count) for part in ("-z", f"follow,tcp,raw,{number}")]
    command = [require_program("tshark"), "-n", "-r", str(path), "-q", *options, *taps]
    found: dict[int, Followed] = {}
    stream = -1
    nodes: list[str] = []
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"Filter: "):
                stream = int(line.split()[-1])
            elif line.startswith(b"Node "):
                nodes.append(line.decode().partition(": ")[2].strip())
            elif not line.startswith((b"===", b"Follow: ")):
                parts[line.startswith(b"\t")].append(bytes.fromhex(line.decode()))
            elif nodes:
                client, server = nodes
                up, down = (b"".join(part) for part in parts)
                found[stream] = Followed(client, server, up, down)
                nodes, parts = [], ([], [])
        _, errors = process.communicate(timeout=_TIMEOUT)
    assert process.returncode == 0, errors
    assert len(found) == count
    return [found[number] for number in range(count)]


def assert_sound(path: Path, *options: str) -> None:
    """Assert that the file is whole, that its times are in order, and that analysers object to no packet."""
    command = [require_program("capinfos"), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert "Strict time order:   True" in done.stdout
    checks = [part for check in _CHECKSUMS for part in ("-o", f"{check}:TRUE")]
    said = tshark(path, *options, *checks, "-q", "-z", "expert")
    assert not [line for line in said if line.startswith(("Errors", "Warns"))], "\n".join(said)
