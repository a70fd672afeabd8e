"""The installer of this interpreter, pip or uv, and the tool that made the interpreter's environment."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from importlib_metadata import MetadataPathFinder, PackageNotFoundError, distribution, entry_points

from refractium.contract import ENTRY_POINT_GROUP
from refractium.errors import RefractiumError

if TYPE_CHECKING:
    from collections.abc import Sequence

CORE: Final = "refractium-core"
"""The distribution of this program."""

# Option -P: Python must not import a module pip from the current folder, which may belong to another user.
_PIP: Final = ("-P", "-m", "pip", "--disable-pip-version-check")
_NAME: Final = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:$|[^A-Za-z0-9._/:+\\-])")
"""The name at the start of a requirement (https://packaging.python.org/specifications/dependency-specifiers).
A path or a URL does not match."""
_EXTRA: Final = re.compile(r"\bextra\s*==")


@dataclass(frozen=True, slots=True)
class Installer:
    """A program that changes the packages of this interpreter.

    Attributes:
        install: the command that installs the requirements that follow.
        uninstall: the command that removes the distributions that follow, without a question.
    """

    install: tuple[str, ...]
    uninstall: tuple[str, ...]


def find_installer() -> Installer:
    """Return pip if this interpreter can run pip, else uv.

    Raises:
        RefractiumError: there is neither pip nor uv.
    """
    python = sys.executable
    if python and _succeeds(python, *_PIP, "--version"):
        pip = (python, *_PIP)
        return Installer((*pip, "install", "--"), (*pip, "uninstall", "--yes", "--"))
    beside = shutil.which("uv", path=str(Path(python).parent))
    if python and (uv := shutil.which("uv") or beside):
        return Installer(
            (uv, "pip", "install", "--python", python, "--"),
            (uv, "pip", "uninstall", "--python", python, "--"),
        )
    raise RefractiumError(
        f"no installer found: {python or 'this program'} has no pip, and uv is not on the PATH: install uv, "
        f"or pip for this Python"
    )


def _succeeds(*command: str) -> bool:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    return done.returncode == 0


def run(command: Sequence[str], stdout: TextIO) -> int:
    """Run an installer to its end. Return its exit code; 128 + N if signal N ended the installer.

    At Ctrl-C, the terminal also interrupts the installer. This process waits for the installer's end.

    Args:
        command: the installer with its arguments.
        stdout: the stream that receives the installer's standard output.
    """
    former = signal.getsignal(signal.SIGINT)
    if former is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)  # a handler, because a program inherits SIG_IGN
    try:
        status = subprocess.run(command, stdout=stdout, check=False).returncode  # noqa: S603 - no shell
    finally:
        signal.signal(signal.SIGINT, former)
    return status if status >= 0 else 128 - status


def name_of(requirement: str) -> str | None:
    """Return the normalised name of the distribution in a requirement; None for a path or a URL."""
    found = _NAME.match(requirement)
    return normalised(found[1]) if found else None


def normalised(name: str) -> str:
    """Return a name of a distribution in normal form.

    Source: https://packaging.python.org/specifications/name-normalization.
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def is_installed(name: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def needed_by_core() -> frozenset[str]:
    """Return the normalised names of the installed distributions without which this program cannot run.

    These are the core, the distributions that the core requires, and so on, without optional distributions.
    """
    found: set[str] = set()
    waiting = [CORE]
    while waiting:
        name = waiting.pop()
        if name in found or not is_installed(name):
            continue
        found.add(name)
        required = [one for one in distribution(name).requires or () if not _EXTRA.search(one)]
        waiting += filter(None, map(name_of, required))
    return frozenset(found)


def contents() -> dict[str, str]:
    """Return the list of files and hashes of each distribution with plugins, by the distribution's name.

    The list differs after another build of the same version has been installed.
    """
    MetadataPathFinder.invalidate_caches()
    found = {one.dist.name: one.dist for one in entry_points(group=ENTRY_POINT_GROUP) if one.dist is not None}
    return {name: dist.read_text("RECORD") or "" for name, dist in found.items()}


def hint_after_failure() -> str | None:
    """Return a remedy if the installer refuses every change of this interpreter; else None.

    Source: PEP 668, which lets an operating system forbid changes of its own interpreter.
    """
    mark = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    if sys.prefix != sys.base_prefix or not mark.is_file():
        return None
    return (
        f"the operating system manages {sys.executable} (PEP 668): install {CORE} into an environment of its "
        f"own, for example with `pipx install {CORE}`, `uv tool install {CORE}` or `python3 -m venv`"
    )


def note_after_install(requirements: Sequence[str]) -> str | None:
    """Return the effect of an upgrade on the installed requirements, and a remedy; None without an effect."""
    tool = Path(sys.prefix).name
    if _made_by_uv_tool():
        options = " ".join(f"--with {shlex.quote(one)}" for one in requirements)
        return (
            f"uv tool made this environment, and `uv tool upgrade {tool}` removes all packages that were not "
            f"named at `uv tool install`: to keep the packages, repeat your `uv tool install` with {options}"
        )
    if _made_by_pipx():
        return (
            f"pipx made this environment: `pipx upgrade {tool}` keeps the packages, but "
            f"`pipx reinstall {tool}` removes them: to keep the packages, run pipx inject {tool} "
            f"{shlex.join(requirements)}"
        )
    return None


def note_after_uninstall() -> str | None:
    """Return the effect of an upgrade on removed distributions; None without an effect."""
    tool = Path(sys.prefix).name
    if _made_by_uv_tool():
        return (
            f"uv tool made this environment, and `uv tool upgrade {tool}` adds all packages again that were "
            f"named at `uv tool install`: to change this, repeat your `uv tool install` without the packages"
        )
    if _made_by_pipx():
        return (
            f"pipx made this environment, and `pipx reinstall {tool}` adds all packages again that pipx has "
            f"injected: to change this, run pipx uninject {tool} with the packages"
        )
    return None


def _made_by_uv_tool() -> bool:
    return Path(sys.prefix, "uv-receipt.toml").is_file()


def _made_by_pipx() -> bool:
    return Path(sys.prefix, "pipx_metadata.json").is_file()
