import json
from pathlib import Path

from refractium_hooks_trafficlog import TrafficLog, TrafficLogSettings, join

from refractium.testing import run_hook


def test_a_session_is_two_lines(tmp_path: Path) -> None:
    settings = TrafficLogSettings(path=str(tmp_path / "log"))
    run_hook(TrafficLog, inbound=[b"GET", b" /"], outbound=[b"404"], settings=settings)
    opened, closed = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert opened == {
        "event": "open",
        "time": opened["time"],
        "session": "0000000000000001",
        "transport": "tcp",
        "protocol": "http",
        "route": "http",
        "client": "192.0.2.1:50000",
        "backend": "198.51.100.1:80",
    }
    assert closed == {
        **opened,
        "event": "close",
        "time": closed["time"],
        "seconds": 0.001,
        "inbound": len("GET /"),
        "outbound": len("404"),
        "ended": "closed",
    }


def test_what_the_client_says_is_told_and_stays_on_its_line(tmp_path: Path) -> None:
    settings = TrafficLogSettings(path=str(tmp_path / "log"))
    host = 'a"\r\n\x1b[2J'
    run_hook(
        TrafficLog,
        settings=settings,
        metadata={"host": host, "alpn": ("h2", "http/1.1"), "path": "/?token=secret"},
    )
    text = (tmp_path / "log").read_text()
    assert "\x1b" not in text
    assert "secret" not in text
    for line in map(json.loads, text.splitlines()):
        assert (line["host"], line["alpn"]) == (host, ["h2", "http/1.1"])
        assert "sni" not in line


def test_a_path_that_no_line_can_go_to_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    assert not list(TrafficLog.problems(TrafficLogSettings(path=str(tmp_path / "log"))))
    for wrong in ("", "no/log", "link"):
        settings = TrafficLogSettings(path=str(tmp_path / wrong))
        assert [key for key, _ in TrafficLog.problems(settings)] == ["path"], wrong


def test_only_a_dash_takes_stdout() -> None:
    assert TrafficLog.takes_stdout(TrafficLogSettings(path="-"))
    assert not TrafficLog.takes_stdout(TrafficLogSettings(path="./-"))
    assert not list(TrafficLog.problems(TrafficLogSettings(path="-")))


def test_addresses_are_written_as_in_the_configuration() -> None:
    assert join(("192.0.2.1", 80)) == "192.0.2.1:80"
    assert join(("2001:db8::1", 80)) == "[2001:db8::1]:80"
    assert join("/run/web.sock") == "unix:/run/web.sock"
