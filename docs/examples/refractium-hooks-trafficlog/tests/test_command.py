from pathlib import Path

from click.testing import CliRunner, Result
from refractium_hooks_trafficlog import TrafficLog, TrafficLogSettings
from refractium_hooks_trafficlog.command import command

from refractium.kit import ConfigError, RefractiumError
from refractium.testing import run_hook


def traffic(folder: Path, path: str) -> Result:
    """Run ``refractium traffic`` with a configuration in which the traffic log has the path `path`."""
    config = folder / "refractium.toml"
    config.write_text(f'[plugins.trafficlog]\npath = "{path}"\n')
    return CliRunner().invoke(command, ["--config", str(config)])


def test_a_session_is_a_row(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    run_hook(TrafficLog, inbound=[b"GET /"], outbound=[b"404"], settings=TrafficLogSettings(path=log))
    heading, row = traffic(tmp_path, log).output.splitlines()
    assert heading.split()[:3] == ["time", "protocol", "client"]
    assert row.split()[1:] == ["http", "192.0.2.1:50000", "198.51.100.1:80", "0.001", "5", "3", "closed"]


def test_a_file_without_lines_of_json_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("GET / HTTP/1.1\n")
    for name in ("log", "absent"):
        error = traffic(tmp_path, str(tmp_path / name)).exception
        assert isinstance(error, RefractiumError)
        assert f"cannot read {tmp_path / name}: " in str(error)


def test_what_went_to_stdout_cannot_be_shown(tmp_path: Path) -> None:
    error = traffic(tmp_path, "-").exception
    assert isinstance(error, ConfigError)
    [problem] = error.problems
    assert (problem.where, problem.line) == ("plugins.trafficlog.path", 2)


def test_a_path_that_is_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "refractium.toml").touch()
    error = CliRunner().invoke(command, ["-c", str(tmp_path / "refractium.toml")]).exception
    assert isinstance(error, ConfigError)
    assert "plugins.trafficlog.path: is missing" in str(error)
