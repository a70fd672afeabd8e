"""The files of the local plugins that flags and a configuration file name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from refractium.plugins import local
from refractium.system.files import is_anothers

if TYPE_CHECKING:
    from refractium.assembly.sources import Overrides
    from refractium.config import Decoded
    from refractium.plugins.local import PluginFile


def read_plugin_files(overrides: Overrides, decoded: Decoded | None) -> tuple[PluginFile, ...]:
    """Read the local plugins that flags and file name, each file once.

    A command reads `refractium.toml` in the current folder unasked. If this file belongs to another
    user, Refractium does not run the plugins that the file names.

    Args:
        overrides: the flags.
        decoded: the configuration file; None if the file cannot be read.
    """
    named = [(f"--plugin {path}", Path(path)) for path in overrides.plugins]
    files = [local.read_file(where, path) for where, path in named]
    if decoded is not None and decoded.config.plugins.paths:
        source = Path(decoded.source.name)
        is_unasked = overrides.file is None and decoded.source.name and is_anothers(source)
        for at, text in enumerate(decoded.config.plugins.paths):
            where, path = f"plugins.paths[{at}]", source.parent / text
            if is_unasked:
                message = (
                    f"{source} belongs to another user: to run the plugins that it names, write -c {source}"
                )
                files.append(local.PluginFile(where, str(path), path.absolute(), problem=message))
            else:
                files.append(local.read_file(where, path))
    return tuple({file.path.resolve(): file for file in reversed(files)}.values())[::-1]
