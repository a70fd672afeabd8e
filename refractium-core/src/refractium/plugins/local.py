"""Local plugins: plugins that are a single file, without a package."""

from __future__ import annotations

import hashlib
import traceback
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from refractium.contract.protocol import problems_of_name
from refractium.guard.faults import text_of
from refractium.plugins.installed import InstalledPlugin
from refractium.system import modules
from refractium.system.files import NotAFileError, digest, read_regular, who_else_can_change

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


@dataclass(frozen=True)
class PluginFile:
    """A file that is a plugin, with the content that the file had when it was read.

    Attributes:
        where: the key path or the flag that names the file.
        name: the path as the operator has written it; relative to the current folder, if it is relative.
        path: the absolute path.
        digest: the `digest` of the file, computed before the file was read; None if the file was missing.
        content: the content of the file; empty if the file cannot be a plugin.
        problem: the reason why the file cannot be a plugin; None if the file can be a plugin.
        doubt: a warning, if other users can change the file; else None.
    """

    where: str
    name: str
    path: Path
    digest: bytes | None = None
    content: bytes = b""
    problem: str | None = None
    doubt: str | None = None

    @property
    def id(self) -> str:
        """The id of the plugin: the name of the file without its suffix."""
        return self.path.stem

    @cached_property
    def entry(self) -> InstalledPlugin:
        """The entry of the plugin before its import. The version is the start of a hash of the content."""
        version = hashlib.sha256(self.content).hexdigest()[:8] if self.content else "unknown"
        return InstalledPlugin(id=self.id, distribution=self.name, version=version)

    @cached_property
    def module(self) -> str:
        """The name of the module. Each file and each content of the file has a module of its own."""
        identity = hashlib.sha256(b"\0".join((bytes(self.path), self.content))).hexdigest()[:16]
        return f"refractium_plugin_{self.id}_{identity}"

    def load(self) -> ModuleType:
        """Return the module of the plugin. Run the content once in each process.

        Raises:
            Exception: any exception of the code of the plugin.
        """
        return modules.make(self.module, modules.ModuleSource(str(self.path), self.content))

    def explain(self, error: BaseException) -> str:
        """Return the text of an exception in one line, with the line of the file that caused it."""
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"{self.name}:{error.lineno}: {type(error).__name__}: {error.msg}"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(self.path)]
        return f"{self.name}:{lines[-1]}: {text_of(error)}" if lines else text_of(error)


def read_file(where: str, name: Path) -> PluginFile:
    """Read a file that is a plugin. A file that cannot be a plugin raises no exception.

    Args:
        where: the key path or the flag that names the file.
        name: the path, relative to the current folder, if it is relative.
    """
    path = name.absolute()
    if path.suffix != ".py":
        return PluginFile(where, str(name), path, problem=f"{name} is not a file with the suffix .py")
    if problem := next(problems_of_name(path.stem), None):
        return PluginFile(where, str(name), path, problem=f"the name of the file gives an invalid {problem}")
    known = None
    try:
        known = digest(path)
        content = read_regular(path)
        doubt = who_else_can_change(path)
    except FileNotFoundError:
        problem = f"{name}: no such file"
    except NotAFileError as error:
        problem = f"{name}: {error}"
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        problem = f"{name}: {getattr(error, 'strerror', None) or error}"
    else:
        return PluginFile(where, str(name), path, known, content, doubt=doubt)
    return PluginFile(where, str(name), path, known, problem=problem)
