"""The watch on the configuration file. It reports each change of the content, so that Refractium reloads.

The watch observes the folder, not the file, because editors and deployment tools replace the file. A tool may
rename another file over the file, change a link to the folder, or delete the file and write a new file.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from refractium.system.files import digest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

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


async def changes(path: Path, known: bytes | None) -> AsyncIterator[None]:
    """Yield each time that the content of a file has changed.

    A missing file does not count as a change, because a new file usually follows. An unreadable object in
    place of the file, such as a FIFO, counts as a change. Only cancelling ends the iteration.

    Args:
        path: the file; the file and its folder may be missing for a while.
        known: the `digest` of the file in force. The caller must compute the digest before it reads the file,
            so that no change is missed.
    """

    def may_matter(_: object, changed: str) -> bool:
        """Return whether an event may concern the file. Events of the file, a link or a folder may.

        A link or a folder may be part of the path to the file. Other files, such as the log, do not count.
        """
        return Path(changed).name == path.name or Path(changed).is_dir() or Path(changed).is_symlink()

    while True:
        folders = await asyncio.to_thread(_folders, path)
        async for _ in _events(folders, may_matter):
            now = await _settled(path, known)
            if now is not None and now != known:
                known = now
                yield
            if await asyncio.to_thread(_folders, path) != folders:
                break  # a link now leads to another folder


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


def _folders(path: Path) -> set[Path]:
    """Return the folder of the path, and the folder of the real file to which links in the path may lead."""
    return {path.absolute().parent, path.resolve().parent}
