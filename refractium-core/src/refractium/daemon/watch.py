"""The watch on the configuration file. It notices each change of the content, which triggers a reload.

It watches the folder, not the file: editors and deployment tools replace a file by renaming another file over
it, by swapping a link to its folder, or by deleting it and writing it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from watchfiles import awatch

from refractium.system.files import NotAFileError, read_regular

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

log = logging.getLogger(__name__)

_DEBOUNCE_MS: Final = 400
"""Milliseconds at the most in which changes that follow each other count as one change."""
_QUIET_MS: Final = 100
"""Milliseconds without a further change after which a file counts as completely written."""
_LOOK_MS: Final = 1_000
"""Milliseconds between looks at the file without an event: not every file system reports all changes."""
_RETRY: Final = 1.0
"""Seconds until the next attempt to watch a folder that cannot be watched."""


async def changes(path: Path, known: bytes | None) -> AsyncIterator[None]:
    """Yield whenever the content of a file has changed since the last time.

    A missing file is no change, because a new file is expected to follow. Something unreadable in its place,
    such as a FIFO, is a change. Only cancelling ends the iteration.

    Args:
        path: the file; the file and its folder may be missing for a while.
        known: the `digest` of the file in force. If the caller computes it before reading the file, no change
            can be missed.
    """

    def may_matter(_: object, changed: str) -> bool:
        """Return whether an event may concern the file: on the file itself, or on a link or a folder.

        A link or a folder may be on the path to the file. Other files, such as our own log, do not matter.
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
    """Return the digest of a file once nobody writes to it any more: before, it may be half written."""
    now = await asyncio.to_thread(digest, path)
    while now != known:
        await asyncio.sleep(_QUIET_MS / 1000)
        former, now = now, await asyncio.to_thread(digest, path)
        if now == former:
            break
    return now


async def _events(folders: set[Path], may_matter: Callable[[object, str], bool]) -> AsyncIterator[None]:
    """Yield after each event in one of the folders, and at times without an event."""
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
    """Return the folder of the path, and the folder of the real file after all links."""
    return {path.absolute().parent, path.resolve().parent}


def digest(path: Path) -> bytes | None:
    """Return a hash of a file's content, or the error if it cannot be read; None if the file is missing."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return None
    except (OSError, NotAFileError) as error:
        return str(error).encode()
    return hashlib.sha256(content).digest()
