"""The watch on the configuration file and on local plugins. It reports each change of their content.

The watch observes folders, not files, because editors and deployment tools replace a file. A tool may rename
another file over the file, change a link to the folder, or delete the file and write a new file.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from refractium.system.files import digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

log = logging.getLogger(__name__)

_DEBOUNCE_MS: Final = 400
"""Longest time (ms) in which successive changes count as one change."""
_QUIET_MS: Final = 100
"""Milliseconds without a further change after which a file counts as completely written."""
_LOOK_MS: Final = 1_000
"""Milliseconds without an event after which the watch reads the file, because some file systems do not report
all changes."""
_RETRY: Final = 1.0
"""Seconds until the next attempt to watch a folder that cannot be watched."""


async def changes(known: dict[Path, bytes | None]) -> AsyncIterator[None]:
    """Yield each time that the content of a file has changed.

    A missing file does not count as a change, because a new file usually follows. An unreadable object in
    place of a file, such as a FIFO, counts as a change. Only cancelling ends the iteration.

    Args:
        known: the files, each with the `digest` of its content in force. The caller must compute a digest
            before it reads the file, so that no change is missed. This function writes the digest of a
            changed file into `known`. The caller may add and remove files.
    """

    def may_matter(_: object, changed: str) -> bool:
        """Return whether an event may concern a file. Events of the files, of links and of folders may.

        A link or a folder may be part of the path to a file. Other files, such as the log, do not count.
        """
        path = Path(changed)
        return any(path.name == one.name for one in list(known)) or path.is_dir() or path.is_symlink()

    while True:
        folders = await asyncio.to_thread(_folders, list(known))
        async for _ in _events(folders, may_matter):
            has_changed = False
            for path in list(known):
                now = await _settled(path, known.get(path))
                if path in known and now is not None and now != known[path]:
                    known[path] = now
                    has_changed = True
            if has_changed:
                yield
            if await asyncio.to_thread(_folders, list(known)) != folders:
                break  # a link now leads to another folder, or there are other files


async def _settled(path: Path, known: bytes | None) -> bytes | None:
    """Wait until a file is completely written. Return the digest of the file."""
    now = await asyncio.to_thread(digest, path)
    while now != known:
        await asyncio.sleep(_QUIET_MS / 1000)
        former, now = now, await asyncio.to_thread(digest, path)
        if now == former:
            break
    return now


async def _events(folders: set[Path], may_matter: Callable[[object, str], bool]) -> AsyncIterator[None]:
    """Yield at the start, after each event in one of the folders, and every `_LOOK_MS` without an event."""
    yield
    try:
        async for _ in awatch(
            *folders,
            watch_filter=may_matter,
            debounce=_DEBOUNCE_MS,
            step=_QUIET_MS,
            rust_timeout=_LOOK_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            yield
    except (OSError, RuntimeError) as error:
        log.debug("cannot watch %s: %s", ", ".join(sorted(map(str, folders))), error)
    await asyncio.sleep(_RETRY)


def _folders(paths: Sequence[Path]) -> set[Path]:
    """Return the folder of each path, and the folder of the real file to which links in the path may lead."""
    return {folder for path in paths for folder in (path.absolute().parent, path.resolve().parent)}
