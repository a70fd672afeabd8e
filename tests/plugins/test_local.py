"""Local plugins in the commands: plugins that are one file."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from refractium.plugins import local
from refractium.plugins.loading import load_with_files
from support.cli import cli
from support.local import HEAD, recognising, recording

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Cli

__all__ = ["cli"]

ROUTE = '[[protocols]]\nname = "mine"\nforward_to = "127.0.0.1:9"\n'


def rows(cli: Cli, *options: object) -> dict[str, dict[str, Any]]:
    done = cli(*options, "plugins", "list", "--json")
    assert done.code == 0
    return {row["distribution"]: row for row in json.loads(done.out)}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_a_file_is_listed_like_a_distribution(cli: Cli) -> None:
    write(cli.folder / "plugins/mine.py", recognising("A"))
    row = rows(cli, "--plugin", "plugins/mine.py")["plugins/mine.py"]
    assert row.pop("version").isalnum()
    assert row == {
        "id": "mine",
        "kind": "protocol",
        "transports": ["tcp"],
        "distribution": "plugins/mine.py",
        "status": "loaded",
        "error": None,
        "summary": "Recognises A.",
    }


def test_paths_are_relative_to_the_configuration_file_and_the_flag_to_the_current_folder(cli: Cli) -> None:
    write(cli.folder / "etc/plugins/mine.py", recognising("A"))
    write(cli.folder / "other.py", recognising("B", "other"))
    write(cli.folder / "etc/refractium.toml", f'[plugins]\npaths = ["plugins/mine.py"]\n{ROUTE}')
    options = ("-c", "etc/refractium.toml", "--plugin", "other.py")
    assert {"etc/plugins/mine.py", "other.py"} < rows(cli, *options).keys()
    done = cli("check", *options)
    assert (done.code, done.err) == (0, "")
    shown = json.loads(cli(*options, "identify", "--hex", "41", "--json").out)
    assert shown["protocol"] == "mine"
    assert cli(*options, "plugins", "info", "other").code == 0


def test_a_file_that_is_named_twice_is_one_plugin(cli: Cli) -> None:
    write(cli.folder / "mine.py", recognising("A"))
    (cli.folder / "link.py").symlink_to("mine.py")
    cli.write(f'[plugins]\npaths = ["./mine.py", "mine.py"]\n{ROUTE}')
    done = cli("check", "--plugin", cli.folder / "mine.py", "--plugin", "link.py")
    assert (done.code, done.err) == (0, "")


PROTOCOL = """
class Mine(Protocol):
    name = "mine"
    max_bytes = 1
    def identify(self, data):
        return NO
"""
BALANCER = """
class Mine(Balancer):
    name = "mine"
    def order(self, client, members):
        return members
"""
CHECK = """
import msgspec
class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = "/"
class Mine(HealthCheck):
    name = "mine"
    settings = Settings
    async def check(self, endpoint, settings):
        return None
"""
COMMAND = """
import click
@click.command("mine")
def command():
    print("ran")
"""


@pytest.mark.parametrize(
    ("kind", "objects", "source"),
    [
        ("protocol", "refractium_protocols():\n    return [Mine()]", PROTOCOL),
        ("hook", "refractium_hooks():\n    return [Mine]", "class Mine(PacketHook):\n    name = 'mine'\n"),
        ("balancer", "refractium_balancers():\n    return [Mine]", BALANCER),
        ("health_check", "refractium_health_checks():\n    return [Mine()]", CHECK),
        ("command", "refractium_commands():\n    return [command]", COMMAND),
    ],
)
def test_a_file_can_be_a_plugin_of_any_kind(cli: Cli, kind: str, objects: str, source: str) -> None:
    write(cli.folder / "mine.py", f"{HEAD}{source}\n@hookimpl\ndef {objects}\n")
    row = rows(cli, "--plugin", "mine.py")["mine.py"]
    assert (row["kind"], row["status"], row["error"]) == (kind, "loaded", None)
    if kind == "command":
        assert cli("--plugin", "mine.py", "mine").out == "ran\n"


def test_a_dataclass_in_a_file_finds_its_module(cli: Cli) -> None:
    source = (
        "from dataclasses import dataclass, field\nimport msgspec\n@dataclass\nclass One:\n    a: list[int]\n"
    )
    struct = 'class Two(msgspec.Struct):\n    b: One\nmsgspec.json.decode(b\'{"b":{"a":[1]}}\', type=Two)\n'
    write(cli.folder / "mine.py", recognising("A") + source + struct)
    assert rows(cli, "--plugin", "mine.py")["mine.py"]["error"] is None


@pytest.mark.parametrize("name", ["My.py", "two words.py", "1st.py", "a.b.py", "my.txt", "my", "ünd.py"])
def test_the_name_of_a_file_must_give_an_id(cli: Cli, name: str) -> None:
    write(cli.folder / name, "open('ran', 'w')\n")
    row = rows(cli, "--plugin", name)[name]
    assert row["status"] == "failed"
    done = cli("check", "-f", "ssh=127.0.0.1:9", "--plugin", name)
    assert done.code == 2
    assert f"error: --plugin {name}: " in done.err
    assert not (cli.folder / "ran").exists()


@pytest.mark.parametrize("named_by", ["flag", "file"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [(None, "no such file"), ("folder", "not a regular file"), ("fifo", "not a regular file")],
)
def test_a_path_without_a_file_is_a_located_problem(
    cli: Cli, named_by: str, make: str | None, reason: str
) -> None:
    if make == "folder":
        (cli.folder / "mine.py").mkdir()
    if make == "fifo":
        os.mkfifo(cli.folder / "mine.py")
    options = ["--plugin", "mine.py"] if named_by == "flag" else []
    if not options:
        cli.write('[plugins]\npaths = [\n  "mine.py",\n]\n')
    place = "--plugin mine.py" if options else "refractium.toml:2: plugins.paths[0]"
    assert rows(cli, *options)["mine.py"]["error"] == f"mine.py: {reason}"
    for more in ((), ("--strict-plugins",)):
        done = cli("check", "-f", "ssh=127.0.0.1:9", *options, *more)
        assert (done.code, done.err) == (2, f"error: {place}: mine.py: {reason}\n")
    done = cli("check", "-f", "ssh=127.0.0.1:9", "--disable-plugin", "mine", *options)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("source", "line", "error"),
    [
        ("\n\nx = = 1\n", 3, "SyntaxError: invalid syntax"),
        ("import sys\n1 / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("def f():\n    raise OSError('no')\n\nf()\n", 2, "OSError: no"),
        ("import json\n\njson.loads('{')\n", 3, "json.decoder.JSONDecodeError: "),
        ("import refractium_no_such_module\n", 1, "ModuleNotFoundError: "),
        (f"{HEAD}@hookimpl\ndef refractium_protocols():\n    return [x]\n", 4, "NameError: "),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ],
)
def test_a_file_that_fails_is_a_row_and_stops_only_a_start_that_needs_it(
    cli: Cli, source: str, line: int, error: str
) -> None:
    write(cli.folder / "mine.py", source)
    row = rows(cli, "--plugin", "mine.py")["mine.py"]
    assert row["status"] == "failed"
    assert row["error"].startswith(f"mine.py:{line}: {error}")
    unused = cli("check", "-f", "ssh=127.0.0.1:9", "--plugin", "mine.py")
    assert unused.code == 0
    assert (
        f"warning: plugin mine: plugin 'mine' of mine.py {row['version']} is not used: mine.py:{line}: "
        in (unused.err)
    )
    assert cli("check", "-f", "ssh=127.0.0.1:9", "--plugin", "mine.py", "--strict-plugins").code == 2
    used = cli("check", "-f", "mine=127.0.0.1:9", "--plugin", "mine.py")
    assert used.code == 2
    assert f"mine.py:{line}: {error}" in used.err


def test_a_file_without_hookspecs_fails(cli: Cli) -> None:
    write(cli.folder / "mine.py", "")
    assert "no @hookimpl function" in rows(cli, "--plugin", "mine.py")["mine.py"]["error"]


def test_a_blocked_file_is_not_run(cli: Cli) -> None:
    write(cli.folder / "mine.py", "open('ran', 'w')\n")
    cli.write('[plugins]\npaths = ["mine.py"]\ndisable = ["mine"]\n')
    assert rows(cli)["mine.py"]["status"] == "blocked"
    assert not (cli.folder / "ran").exists()


def test_an_id_that_two_plugins_claim_is_refused_with_both_names(cli: Cli) -> None:
    write(cli.folder / "a/mine.py", recognising("A"))
    write(cli.folder / "b/mine.py", recognising("B"))
    write(cli.folder / "ssh.py", recognising("C", "other"))
    found = rows(cli, "--plugin", "a/mine.py", "--plugin", "b/mine.py", "--plugin", "ssh.py")
    for one in ("a/mine.py", "b/mine.py"):
        assert found[one]["status"] == "failed"
        assert "a/mine.py" in found[one]["error"]
        assert "b/mine.py" in found[one]["error"]
    for one in ("ssh.py", "refractium-proto-ssh"):
        assert found[one]["status"] == "failed"
        assert "refractium-proto-ssh" in found[one]["error"]
        assert "ssh.py" in found[one]["error"]


def test_an_object_that_two_plugins_provide_is_refused_with_both_names(cli: Cli) -> None:
    write(cli.folder / "mine.py", recognising("A", "ssh"))
    found = rows(cli, "--plugin", "mine.py")
    for one in ("mine.py", "refractium-proto-ssh"):
        assert "mine.py" in found[one]["error"]
        assert "refractium-proto-ssh" in found[one]["error"]


def test_a_module_runs_once_for_each_content(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.py", recognising("A"))
    first, again = (load_with_files((), [local.read_file("", path)]) for _ in range(2))
    assert first.given["mine"].protocols[0] is again.given["mine"].protocols[0]
    path.write_text(recognising("B"))
    changed = load_with_files((), [local.read_file("", path)])
    assert changed.given["mine"].protocols[0] is not first.given["mine"].protocols[0]
    path.write_text(recognising("A"))
    back = load_with_files((), [local.read_file("", path)])
    assert back.given["mine"].protocols[0] is first.given["mine"].protocols[0]


def test_a_process_hook_of_a_file_gets_its_settings_from_the_table_of_its_id(cli: Cli) -> None:
    write(cli.folder / "mine.py", recording("A", cli.folder / "out", "process"))
    done = cli("check", "-f", "ssh=127.0.0.1:9", "--plugin", "mine.py")
    assert (done.code, done.err) == (0, "")
    cli.write("[plugins.mine]\nx = 1\n")
    assert "plugins.mine: this plugin takes no settings" in cli("check", "--plugin", "mine.py").err


# Other users


@pytest.mark.parametrize(
    ("changed", "mode", "is_told"),
    [
        ("mine.py", 0o644, False),
        ("mine.py", 0o664, True),
        ("mine.py", 0o646, True),
        (".", 0o755, False),
        (".", 0o775, True),
        (".", 0o757, True),
        (".", 0o1777, False),
    ],
)
def test_a_file_or_folder_that_others_may_write_is_told(
    cli: Cli, changed: str, mode: int, *, is_told: bool
) -> None:
    write(cli.folder / "plugins/mine.py", recognising("A"))
    (cli.folder / "plugins" / changed).chmod(mode)
    cli.write(f'[plugins]\npaths = ["plugins/mine.py"]\n{ROUTE}')
    done = cli("check")
    assert done.code == 0
    assert (
        "refractium.toml:2: plugins.paths[0]: other users could change this plugin" in done.err
    ) is is_told
    assert (f"(mode {mode:04o}): run chmod go-w" in done.err) is is_told


def test_the_warning_about_a_file_that_others_may_write_can_be_ignored(cli: Cli) -> None:
    write(cli.folder / "mine.py", recognising("A")).chmod(0o666)
    check = ("check", "-f", "mine=127.0.0.1:9", "--plugin", "mine.py")
    assert cli(*check).err.endswith(" [exposed-plugin]\n")
    cli.write('[check]\nignore = ["exposed-plugin"]\n')
    assert cli(*check).err == ""


def test_a_link_to_a_file_that_others_may_write_is_told(cli: Cli) -> None:
    write(cli.folder / "shared/mine.py", recognising("A")).chmod(0o666)
    (cli.folder / "mine.py").symlink_to("shared/mine.py")
    assert "mine.py (mode 0666)" in cli("check", "-f", "mine=127.0.0.1:9", "--plugin", "mine.py").err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_told(cli: Cli) -> None:
    os.chown(write(cli.folder / "mine.py", recognising("A")), 12345, 12345)
    assert (
        "mine.py belongs to another user (uid 12345)"
        in cli("check", "-f", "mine=127.0.0.1:9", "--plugin", "mine.py").err
    )


@pytest.mark.parametrize(
    "taken",
    [
        "world-writable",
        pytest.param(
            "owner", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
        ),
        pytest.param(
            "link", marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
        ),
    ],
)
def test_a_default_file_of_another_user_runs_no_plugins_unasked(cli: Cli, taken: str) -> None:
    write(cli.folder / "mine.py", recognising("A") + "open('ran', 'w')\n")
    file = cli.write(f'[plugins]\npaths = ["mine.py"]\n{ROUTE}')
    if taken == "world-writable":
        file.chmod(0o666)
    elif taken == "owner":
        os.chown(file, 12345, 12345)
    else:
        file.rename(cli.folder / "real.toml")
        file.symlink_to("real.toml")
        os.chown(file, 12345, 12345, follow_symlinks=False)
    assert cli("--help").code == 0
    assert rows(cli)["mine.py"]["status"] == "failed"
    done = cli("check")
    assert done.code == 2
    assert "write -c refractium.toml" in done.err
    assert not (cli.folder / "ran").exists()
    assert cli("check", "-c", "refractium.toml").code == 0
    assert (cli.folder / "ran").exists()
