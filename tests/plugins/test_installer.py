"""The installer of this interpreter, and the names in requirements."""

from __future__ import annotations

import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

from refractium.plugins import installer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("refractium-proto-ssh", "refractium-proto-ssh"),
        (" Refractium_Proto.SSH ", "refractium-proto-ssh"),
        ("refractium-protocols[http,ssh]", "refractium-protocols"),
        ("refractium-core>=1,<2", "refractium-core"),
        ("refractium-core ; python_version > '3'", "refractium-core"),
        ("refractium-core @ https://example.org/a.whl", "refractium-core"),
        ("refractium-core@file:///a.whl", "refractium-core"),
        ("refractium-core(>1)", "refractium-core"),
        ("./refractium-core", None),
        ("refractium-core/", None),
        ("/srv/refractium-core", None),
        ("https://example.org/refractium-core.whl", None),
        ("git+https://example.org/refractium-core", None),
        ("file:refractium-core", None),
        (".", None),
        ("", None),
        ("-e", None),
    ],
)
def test_the_name_of_a_requirement_is_normalised_and_a_path_has_none(
    requirement: str, name: str | None
) -> None:
    assert installer.name_of(requirement) == name


def test_the_core_needs_its_requirements_and_theirs_but_no_optional_ones() -> None:
    needed = installer.needed_by_core()
    assert {"refractium-core", "click", "rich", "markdown-it-py", "importlib-metadata"} <= needed
    assert not {name for name in needed if name.startswith("refractium-") and name != "refractium-core"}
    assert not {"pytest", "google-re2"} & needed


def test_only_a_managed_interpreter_outside_of_an_environment_gets_the_hint_of_pep_668(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert installer.hint_after_failure() is None
    (tmp_path / "EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    hint = installer.hint_after_failure()
    assert hint is not None
    for told in (sys.executable, "PEP 668", "pipx install refractium-core", "python3 -m venv"):
        assert told in hint
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert installer.hint_after_failure() is None
