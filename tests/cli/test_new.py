"""The command that writes a new plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from refractium.cli.new import KIND_NAMES
from refractium.scaffold import KINDS
from support.process import environment, run

if TYPE_CHECKING:
    from support.cli import Cli


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_of_each_kind_is_written_and_the_next_commands_are_named(kind: str, cli: Cli) -> None:
    done = cli("plugins", "new", kind, "mine")
    assert (done.code, done.err) == (0, "")
    folder = f"{KINDS[kind].prefix}mine"
    assert [path.name for path in cli.folder.iterdir()] == [folder]
    assert f"Wrote {folder}." in done.out
    assert done.out.splitlines()[1:] == [
        f"  cd {folder}",
        "  pip install --editable . --group dev",
        "  pytest",
    ]


@pytest.mark.parametrize("option", ["-o", "--output"])
def test_the_package_can_be_written_to_another_folder(option: str, cli: Cli) -> None:
    done = cli("plugins", "new", "hook", "mine", option, "my plugins/new")
    assert done.code == 0
    assert (cli.folder / "my plugins/new/refractium-hooks-mine/pyproject.toml").exists()
    assert "cd 'my plugins/new/refractium-hooks-mine'" in done.out


def test_a_folder_that_exists_is_never_changed(cli: Cli) -> None:
    assert cli("plugins", "new", "balancer", "mine").code == 0
    readme = cli.folder / "refractium-balancer-mine/README.md"
    readme.write_text("my own\n")
    done = cli("plugins", "new", "balancer", "mine")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: refractium-balancer-mine: exists already\n"
    assert readme.read_text() == "my own\n"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("protocol", "Redis", "did you mean 'redis'?"),
        ("protocol", "refractium-proto-redis", "did you mean 'redis'?"),
        ("protocol", "http", "refractium-proto-http"),
        ("hook", "pcap", "refractium-hooks-pcap"),
        ("balancer", "round_robin", "built in"),
        ("command", "check", "built in"),
    ],
)
def test_a_name_that_is_invalid_or_taken_writes_nothing(kind: str, name: str, message: str, cli: Cli) -> None:
    done = cli("plugins", "new", kind, name)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {name}: ")
    assert message in done.err
    assert not list(cli.folder.iterdir())


@pytest.mark.parametrize("folder", ["file", "file/new", "/dev/null"])
def test_a_parent_that_is_a_file_is_named(folder: str, cli: Cli) -> None:
    cli.write("", "file")
    done = cli("plugins", "new", "hook", "mine", "-o", folder)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: cannot write {folder}: Not a directory\n"


def test_the_command_knows_the_kinds_that_have_templates() -> None:
    assert tuple(KINDS) == KIND_NAMES


def test_other_commands_do_not_import_what_only_a_new_plugin_needs() -> None:
    # The variable makes Python print the name of each module that it imports to stderr.
    done = run("plugins", "list", env=environment(PYTHONPROFILEIMPORTTIME="1"))
    assert "refractium.plugins.loading" in done.err
    assert "refractium.scaffold" not in done.err
    assert "refractium.demo" not in done.err
