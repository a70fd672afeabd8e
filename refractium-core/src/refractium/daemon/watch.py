"""What triggers a reload: a file whose content has changed, however it was changed.

Its folder is watched, not the file: editors and deployment tools replace a file by renaming another one over
it, by swapping a link to its folder, or by deleting and writing it anew.
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
"""Changes that follow each other are one, for this long at the most."""
_QUIET_MS: Final = 100
"""After this long without a further change, what was written is taken to be whole."""
_LOOK_MS: Final = 1_000
"""The file is looked at this often even without an event: not every file system tells of all changes."""
_RETRY: Final = 1.0
"""Seconds until a folder that cannot be watched is tried again."""


async def changes(path: Path, known: bytes | None) -> AsyncIterator[None]:
    """Yield whenever the content of a file has changed since the last time.

    A missing file is no change: it is on its way to the next one. Something unreadable in its place, such as
    a FIFO, is a change. Ends only by cancelling.

    Args:
        path: the file; it and its folder may be missing now and then.
        known: the `digest` of what is in force. Taken before that was read, no change can be missed.
    """

    def may_matter(_: object, changed: str) -> bool:
        """A link or a folder may be on the way to the file; any other file, such as our own log, is not."""
        return Path(changed).name == path.name or Path(changed).is_dir() or Path(changed).is_symlink()

    while True:
        folders = await asyncio.to_thread(_folders, path)
        async for _ in _events(folders, may_matter):
            now = await _settled(path, known)
            if now is not None and now != known:
                known = now
                yield
            if await asyncio.to_thread(_folders, path) != folders:
                break  # a link leads elsewhere now


async def _settled(path: Path, known: bytes | None) -> bytes | None:
    """Return the digest of a file once nobody is writing it: it may be found half written."""
    now = await asyncio.to_thread(digest, path)
    while now != known:
        await asyncio.sleep(_QUIET_MS / 1000)
        former, now = now, await asyncio.to_thread(digest, path)
        if now == former:
            break
    return now


async def _events(folders: set[Path], may_matter: Callable[[object, str], bool]) -> AsyncIterator[None]:
    """Something has happened in one of the folders; and now and then without that."""
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
        log.debug("cannot watch %s: %s", folders, error)
    await asyncio.sleep(_RETRY)


def _folders(path: Path) -> set[Path]:
    """Where the file is, and where it really is."""
    return {path.absolute().parent, path.resolve().parent}


def digest(path: Path) -> bytes | None:
    """Return what stands for the content of a file, or for why it cannot be read; None if it is missing."""
    try:
        content = read_regular(path)
    except FileNotFoundError:
        return None
    except (OSError, NotAFileError) as error:
        return str(error).encode()
    return hashlib.sha256(content).digest()
