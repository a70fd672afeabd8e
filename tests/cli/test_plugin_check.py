"""The command that checks a plugin."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from refractium.scaffold import KINDS, write_package
from support.process import environment, run

if TYPE_CHECKING:
    from pathlib import Path

    from support.cli import Cli


def faulty(folder: Path) -> Path:
    """Write a new plugin whose name differs from the name of its distribution."""
    project = write_package(KINDS["balancer"], "mine", folder)
    file = project / "pyproject.toml"
    file.write_text(file.read_text().replace('name = "refractium-balancer-mine"', 'name = "odd\\u001b"', 1))
    return project


def test_a_plugin_without_a_fault_ends_with_0(cli: Cli) -> None:
    done = cli("plugins", "check", "ssh")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("refractium-proto-ssh 0.1.0: no findings\n")


def test_a_finding_tells_what_was_found_and_expected_and_the_remedy(cli: Cli) -> None:
    done = cli("plugins", "check", faulty(cli.folder))
    assert (done.code, done.err) == (1, "")
    head, found, expected, remedy = done.out.splitlines()[:4]
    assert head == r"distribution-name: distribution odd\x1b"
    assert "'refractium-balancer-mine'" in found
    assert found.startswith("  found: ")
    assert expected.startswith("  expected: ")
    assert remedy.startswith("  remedy: ")
    assert done.out.splitlines()[-1] == r"odd\x1b 0.1.0: 1 finding"


def test_json_has_findings_and_facts(cli: Cli) -> None:
    done = cli("plugins", "check", faulty(cli.folder), "--json")
    assert (done.code, done.err) == (1, "")
    result = json.loads(done.out)
    assert (result["ok"], result["version"]) == (False, "0.1.0")
    (finding,) = result["findings"]
    assert finding.keys() == {"code", "subject", "found", "expected", "remedy"}
    (plugin,) = result["plugins"]
    assert plugin["id"] == "mine"
    assert plugin["objects"] == [{"kind": "balancer", "name": "mine", "transport": ""}]
    assert plugin["import"].keys() == {"ms", "core_ms", "packages"}


def test_a_mistake_in_the_argument_ends_with_2(cli: Cli) -> None:
    done = cli("plugins", "check", "missing/folder")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: missing/folder: no such file or folder\n"


def test_a_hook_that_needs_settings_is_named(cli: Cli) -> None:
    done = cli("plugins", "check", "pcap")
    assert done.code == 0
    assert "hook pcap: not run, because the default settings are not complete" in done.out


def test_other_commands_do_not_import_what_only_the_check_needs() -> None:
    done = run("plugins", "list", env=environment(PYTHONPROFILEIMPORTTIME="1"))
    assert "refractium.plugins.loading" in done.err
    assert "refractium.audit" not in done.err
    assert "packaging.requirements" not in done.err
