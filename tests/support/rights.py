"""Programs that give up the rights of root, and their rights according to the kernel."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

import refractium
from support.process import of_threads
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ: Final = (sys.base_prefix, sys.prefix, Path(refractium.__file__).parents[4], Path(__file__).parents[2])
"""Folders that a program of the tests reads: the interpreter, its environment, and the distributions."""


class Rights(NamedTuple):
    """The rights of a thread (proc(5), status).

    Attributes:
        uids: the real, effective, saved and file-system user ids.
        gids: the real, effective, saved and file-system group ids.
        groups: the supplementary groups.
        no_new_privileges: whether the programs that it starts can gain no privileges.
        capabilities: the inheritable, permitted, effective and ambient capabilities in one mask.
        bounding: the capabilities that the thread could gain from a program.
    """

    uids: set[int]
    gids: set[int]
    groups: set[int]
    no_new_privileges: bool
    capabilities: int
    bounding: int


def rights_of(pid: int) -> Iterator[Rights]:
    """Yield the rights of each thread of a process."""
    for text in of_threads(pid, "status"):
        lines = text.splitlines()
        fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        masks = {name: int(fields[f"Cap{name}"][0], 16) for name in ("Inh", "Prm", "Eff", "Amb", "Bnd")}
        bounding = masks.pop("Bnd")
        uids, gids, groups = ({*map(int, fields[name])} for name in ("Uid", "Gid", "Groups"))
        yield Rights(uids, gids, groups, fields["NoNewPrivs"] == ["1"], sum(masks.values()), bounding)


def require_root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


def for_every_user(folder: Path, then: str = "") -> str:
    """Return a line for ``sh`` that starts ``"$@"`` in a file system where every user can read its files.

    Folders such as ``/root`` are closed to other users. The program gets a mount namespace without this
    limit.

    Args:
        folder: an empty folder.
        then: a command that the shell runs in that mount namespace before it starts the program.
    """
    needed = {Path(path).resolve() for path in _READ}
    needed = {path for path in needed if needed.isdisjoint(path.parents)}
    closed: dict[Path, list[Path]] = {}
    for path in sorted(needed):
        for parent in reversed(path.parents):
            if not parent.stat().st_mode & 0o001:
                closed.setdefault(parent, []).append(path)
                break
    lines = [then] if then else []
    for at, (parent, paths) in enumerate(closed.items()):
        places = {path: folder / f"{at}-{number}" for number, path in enumerate(paths)}
        bind = [f"mkdir {place} && mount --bind {path} {place}" for path, place in places.items()]
        move = [f"mkdir -p {path} && mount --move {place} {path}" for path, place in places.items()]
        lines = [*bind, f"mount -t tmpfs -o mode=755 tmpfs {parent}", *move, *lines]
    script = shlex.quote(" && ".join([*lines, 'exec "$@"']))
    return f'exec {require_program("unshare")} --mount sh -c {script} sh "$@"'
