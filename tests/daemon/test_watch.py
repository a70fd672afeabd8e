from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from refractium.daemon.watch import changes
from refractium.system.files import digest
from support.clients import PATIENCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@asynccontextmanager
async def watching(path: Path) -> AsyncIterator[asyncio.Queue[str]]:
    """Collect the content of the file at each change."""
    seen: asyncio.Queue[str] = asyncio.Queue()
    warm = asyncio.Event()

    async def collect() -> None:
        async for _ in changes({path: digest(path)}):
            text = await asyncio.to_thread(path.read_text)
            if text.startswith("warm up"):
                warm.set()
            else:
                seen.put_nowait(text)

    task = asyncio.create_task(collect())
    # No event tells when the kernel watches the file: write until the first change is seen.
    for attempt in range(100):
        await asyncio.to_thread(path.write_text, f"warm up {attempt}")
        try:
            await asyncio.wait_for(warm.wait(), 0.5)
            break
        except TimeoutError:
            continue
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def in_place(path: Path) -> None:
    path.write_text("new")


def renamed_over(path: Path) -> None:
    other = path.with_suffix(".tmp")
    other.write_text("new")
    other.rename(path)


def deleted_and_written(path: Path) -> None:
    path.unlink()
    path.write_text("new")


@pytest.mark.parametrize("change", [in_place, renamed_over, deleted_and_written])
def test_every_way_to_change_the_file_is_seen(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "refractium.toml"

    async def main() -> None:
        async with watching(path) as seen:
            change(path)
            # The writer may wait long for its turn after it has emptied the file.
            while (text := await asyncio.wait_for(seen.get(), PATIENCE)) != "new":
                assert text == ""
            path.write_text("and again")
            assert await asyncio.wait_for(seen.get(), PATIENCE) == "and again"

    asyncio.run(main())


def test_links_to_another_folder_are_seen(tmp_path: Path) -> None:
    """Change the file as a mounted ConfigMap does: it is a link through ``..data``, which is swapped again
    and again."""
    data = tmp_path / "..data"
    path = tmp_path / "refractium.toml"

    def swap(name: str) -> None:
        """Make the link lead to a new folder, and remove the old one."""
        former = data.resolve()
        (tmp_path / name).mkdir()
        (tmp_path / name / path.name).write_text(name)
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(data)
        if former != data:
            shutil.rmtree(former)

    async def main() -> None:
        async with watching(path) as seen:
            for name in ("..two", "..three", "..four"):
                swap(name)
                assert await asyncio.wait_for(seen.get(), PATIENCE) == name
            assert seen.empty()

    swap("..one")
    path.symlink_to("..data/refractium.toml")
    asyncio.run(main())


def test_changes_in_quick_succession_count_as_one_with_the_last_content(tmp_path: Path) -> None:
    path = tmp_path / "refractium.toml"

    async def main() -> None:
        async with watching(path) as seen:
            begun = time.monotonic()
            for number in range(20):
                path.write_text(f"version {number}")
            path.unlink()
            with path.open("w") as file:
                file.write("half ")
                file.flush()
                await asyncio.sleep(0)
                file.write("and half")
            # Otherwise a pause of this machine may look like the end of the changes.
            was_one = time.monotonic() - begun < 0.05
            content = await asyncio.wait_for(seen.get(), PATIENCE)
            while content != "half and half":
                assert not was_one
                content = await asyncio.wait_for(seen.get(), PATIENCE)
            path.write_text("the next")
            assert await asyncio.wait_for(seen.get(), PATIENCE) == "the next"

    asyncio.run(main())


def test_a_write_of_the_same_content_is_not_a_change(tmp_path: Path) -> None:
    path = tmp_path / "refractium.toml"

    async def main() -> None:
        async with watching(path) as seen:
            path.write_text("one")
            assert await asyncio.wait_for(seen.get(), PATIENCE) == "one"
            os.utime(path)
            path.write_text("one")
            (tmp_path / "other").write_text("not mine")
            path.write_text("two")
            assert await asyncio.wait_for(seen.get(), PATIENCE) == "two"
            assert seen.empty()

    asyncio.run(main())


def test_a_file_that_is_still_being_written_is_not_yet_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([b"known", b"", b"half", b"whole", b"whole"])
    looked: list[bytes] = []

    def look(_: Path) -> bytes:
        looked.append(next(looks, b"whole"))
        return looked[-1]

    async def main() -> None:
        async for _ in changes({tmp_path / "refractium.toml": b"known"}):
            assert looked == [b"known", b"", b"half", b"whole", b"whole"]
            return

    monkeypatch.setattr("refractium.daemon.watch.digest", look)
    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert looked


def test_the_folder_may_disappear_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    path = folder / "refractium.toml"

    async def main() -> None:
        async with watching(path) as seen:
            shutil.rmtree(folder)
            folder.mkdir()
            path.write_text("back")
            assert await asyncio.wait_for(seen.get(), PATIENCE) == "back"

    asyncio.run(main())
