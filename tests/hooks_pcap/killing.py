"""Program that kills a capturing process again and again, and checks the file that each kill leaves.

Arguments: the file, the number of kills, and a seed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Final

from hooks_pcap.capturing import context_of, datagrams_of, opening, passing, read_file
from refractium_hooks_pcap.hook import PcapHook
from refractium_hooks_pcap.reader import Reader
from refractium_hooks_pcap.settings import PcapSettings

_WORD: Final = 8
_MAX_SIZE: Final = 4_000_000


def capture(path: Path, run: int, chance: random.Random, told: int) -> None:
    """Capture until killed; after each batch, report the number of packets captured so far."""
    hook = PcapHook(PcapSettings(path=str(path)))
    hook.start()
    context = context_of()
    hook.on_batch([opening(context)])
    numbers = count()
    done = 0
    while True:
        batch = [
            b"%08d%08d" % (run, next(numbers)) + bytes(chance.choice((0, 100, 60_000)))
            for _ in range(chance.choice((1, 5, 50)))
        ]
        hook.on_batch([passing(context, one) for one in batch])
        done += len(batch)
        os.write(told, done.to_bytes(_WORD))


def kill_one(path: Path, run: int, chance: random.Random) -> int:
    """Run a capture and kill it; return the number of packets that it reported."""
    tells, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        capture(path, run, chance, told)
    os.close(told)
    with os.fdopen(tells, "rb") as pipe:
        first = pipe.read(_WORD)
        time.sleep(chance.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        everything = first + pipe.read()
    return int.from_bytes(everything[-_WORD:])


def packets_of(data: bytes) -> dict[int, list[int]]:
    """Return the numbers of the packets of each run, in the order of the file."""
    found = defaultdict(list)
    for one in datagrams_of(Reader().feed(data)):
        found[int(one[:_WORD])].append(int(one[_WORD : 2 * _WORD]))
    return found


def main(path: Path, times: int, seed: str) -> None:
    chance = random.Random(seed)  # noqa: S311 - test data
    mended = 0
    sizes: dict[int, int] = {}
    for run in range(times):
        if path.exists() and path.stat().st_size > _MAX_SIZE:
            path.unlink()
            sizes.clear()
        told = kill_one(path, run, chance)
        found = packets_of(path.read_bytes())
        sizes[run] = len(found[run])
        assert sizes[run] >= told, f"run {run} told of {told} packets, there are {sizes[run]}"
        for one, numbers in found.items():
            assert numbers == list(range(sizes[one])), f"run {one} is not as it was"
        try:
            read_file(path)
        except AssertionError:
            mended += 1
    hook = PcapHook(PcapSettings(path=str(path)))
    hook.start()
    context = context_of()
    hook.on_batch([opening(context), passing(context, b"%08d%08d" % (times, 0))])
    hook.stop()
    print(len(read_file(path)), "packets;", mended, "times the last was cut off")  # noqa: T201 - the output of this program
    assert packets_of(path.read_bytes()) == {one: list(range(size)) for one, size in sizes.items()} | {
        times: [0]
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
