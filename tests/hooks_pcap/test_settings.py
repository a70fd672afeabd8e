"""The settings of the table [plugins.pcap]."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from hooks_pcap.capturing import PCAPNG, records_of
from refractium_hooks_pcap.formats import PcapngWriter
from refractium_hooks_pcap.hook import PcapHook
from refractium_hooks_pcap.outputs import FileNames, FileSeries, Rotation
from refractium_hooks_pcap.settings import PcapSettings, listen_address

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def problems(**settings: Any) -> list[tuple[str, str]]:
    return list(PcapHook.problems(msgspec.convert(settings, PcapSettings, strict=True)))


@pytest.mark.parametrize(
    ("settings", "is_classic"),
    [
        ({"path": "/x/a.pcapng"}, False),
        ({"path": "/x/a.pcap"}, True),
        ({"path": "/x/a"}, False),
        ({"path": "-"}, False),
        ({"listen": 1}, False),
        ({"path": "/x/a.pcap", "format": "pcapng"}, False),
        ({"path": "/x/a.pcapng", "format": "pcap"}, True),
    ],
)
def test_the_suffix_decides_the_format_unless_it_is_given(
    settings: dict[str, Any],
    is_classic: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    assert msgspec.convert(settings, PcapSettings).is_classic is is_classic


@pytest.mark.parametrize(
    "settings",
    [{"file": "x"}, {"path": 1}, {"snaplen": 0}, {"max_bytes": 10}, {"format": "snoop"}, {"clients": "::1"}],
)
def test_a_wrong_or_unknown_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, PcapSettings)


def test_settings_without_an_output_are_refused() -> None:
    assert [key for key, _ in problems()] == ["path"]


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "a.pcapng"},
        {"path": "{protocol}-{route}-{transport}-{date}-{time}-{number}.pcap"},
        {"path": "{{braces}}"},
        {"path": "-"},
        {"listen": 0},
        {"listen": "19000"},
        {"listen": "[::1]:19000"},
        {"path": "a", "max_bytes": 1_000_000, "max_seconds": 60, "max_files": 3},
        {"path": "a", "clients": ["10.0.0.0/8", "::1"], "sni": ["*.Example.org.", "a"], "protocols": ["dns"]},
    ],
)
def test_valid_settings_have_no_problems(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problems(**settings) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"path": "{protocl}.pcapng"}, "path", "{protocl} is unknown"),
        ({"path": "{}.pcapng"}, "path", "{} is unknown"),
        ({"path": "{number:03}"}, "path", "{number:03} is unknown"),
        ({"path": "{route!r}"}, "path", "{route!r} is unknown"),
        ({"path": "{protocol.pcapng"}, "path", "no partner"),
        ({"path": "protocol}.pcapng"}, "path", "no partner"),
        ({"path": "{protocol}/a.pcapng"}, "path", "not in the name of its folder"),
        ({"path": "nowhere/a.pcapng"}, "path", "there is no folder nowhere"),
        ({"path": ""}, "path", "name of a file is missing"),
        ({"path": "./"}, "path", "name of a file is missing"),
        ({"path": ".."}, "path", "name of a file is missing"),
        ({"path": "a\0b"}, "path", "NUL"),
        ({"path": "folder"}, "path", "neither a file nor a FIFO"),
        ({"path": "link"}, "path", "symbolic link"),
        ({"path": "socket"}, "path", "neither a file nor a FIFO"),
        ({"path": "/dev/full"}, "path", "neither a file nor a FIFO"),
        ({"path": "notes.txt"}, "path", "is not a capture"),
        ({"listen": 65_536}, "listen", "between 0 and 65535"),
        ({"listen": "-1"}, "listen", "no port"),
        ({"listen": "127.0.0.1:"}, "listen", "no port"),
        ({"listen": "::1:19000"}, "listen", "brackets"),
        ({"listen": "[127.0.0.1]:19000"}, "listen", "not an IPv6 address"),
        ({"listen": "example.org:19000"}, "listen", "not an IP address"),
        ({"listen": ":19000"}, "listen", "no host"),
        ({"listen": "unix:/run/viewers.sock"}, "listen", "not an IP address"),
        ({"path": "a", "clients": ["::1", "10.0.0.1/8"]}, "clients", "write 10.0.0.0/8"),
        ({"path": "a", "clients": ["me"]}, "clients", "not an address"),
        ({"path": "a", "sni": ["*.*.org"]}, "sni", "not a server name"),
        ({"path": "a", "sni": ["bücher.example"]}, "sni", "not a server name"),
        ({"path": "-", "max_bytes": 1_000_000}, "max_bytes", "only files"),
        ({"path": "fifo", "max_seconds": 60}, "max_seconds", "only files"),
        ({"listen": 1, "max_seconds": 60}, "max_seconds", "only files"),
        ({"path": "a", "max_files": 3}, "max_files", "there is one file"),
    ],
)
def test_each_wrong_setting_is_named_with_its_key(
    settings: dict[str, Any], key: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "notes.txt").write_text("not packets")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
        [(found, text)] = problems(**settings)
    assert found == key
    assert message in text


def test_a_capture_a_fifo_and_an_empty_file_can_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "capture").write_bytes(PcapngWriter(100).begin())
    os.mkfifo(tmp_path / "fifo")
    assert problems(path=str(tmp_path / "empty")) == []
    assert problems(path=str(tmp_path / "capture")) == []
    assert problems(path=str(tmp_path / "fifo")) == []


def of_nobody(path: Path) -> None:
    path.touch()
    os.chown(path, 65_534, 65_534)


def fifo_of_nobody(path: Path) -> None:
    os.mkfifo(path)
    os.chown(path, 65_534, 65_534)


def linked(path: Path) -> None:
    path.touch()
    path.with_name("other").hardlink_to(path)


def open_to_all(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (of_nobody, "it belongs to another user (uid 65534)"),
        (fifo_of_nobody, "it belongs to another user (uid 65534)"),
        (linked, "(a hard link)"),
        (open_to_all, "other users may write to it (mode 0666)"),
    ],
)
def test_a_file_that_another_user_may_have_made_is_not_written_to(
    tmp_path: Path, make: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is refused at the start, and also if it appears later."""
    path = tmp_path / "a.pcapng"
    try:
        make(path)
    except PermissionError:
        pytest.skip("only root can give a file away")
    [(key, text)] = problems(path=str(path))
    assert key == "path"
    assert reason in text
    if not path.is_fifo():
        files = FileSeries(FileNames.parse(str(path), numbered=False), PCAPNG, Rotation())
        files.write(records_of(b"packet"))
        files.close()
        assert files.lost == 1
        assert path.read_bytes() == b""
        assert reason in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot create files" in problems(path=str(tmp_path / "a"))[0][1]
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (19_000, ("127.0.0.1", 19_000)),
        ("19000", ("127.0.0.1", 19_000)),
        ("0.0.0.0:19000", ("0.0.0.0", 19_000)),
        ("[::1]:0", ("::1", 0)),
    ],
)
def test_the_port_for_viewers_is_on_loopback_unless_an_address_is_given(
    listen: int | str, address: tuple[str, int]
) -> None:
    assert listen_address(listen) == address


def test_only_a_dash_selects_stdout() -> None:
    assert PcapHook.takes_stdout(PcapSettings(path="-"))
    assert not PcapHook.takes_stdout(PcapSettings(path="x"))
    assert not PcapHook.takes_stdout(PcapSettings(listen=0))
