"""A program that runs a proxy in a process of its own, for tests of the resources that a process uses.

It takes a JSON object as its argument: ``fallback``, ``settings`` and ``descriptors`` (the limit, or null
for as many as possible). It prints its port. Then it prints one JSON object of figures for each line that
it reads, and stops at the end of its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time

import uvloop

from refractium import Refractium, Settings


def figures(engine: Refractium) -> dict[str, float]:
    counters = engine.counters
    return {
        "active": engine.active,
        "accepted": counters.accepted,
        "refused": counters.refused,
        "finished": counters.finished,
        "cpu": time.process_time(),
    }


async def main() -> None:
    wanted = json.loads(sys.argv[1])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted["descriptors"] or hard, hard))
    engine = Refractium(fallback_tcp=wanted["fallback"], settings=Settings(**wanted["settings"]))
    (address,) = await engine.start_tcp("127.0.0.1", 0)
    print(address.rpartition(":")[2], flush=True)  # noqa: T201 - the output of this program
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    loop.add_reader(0, asked.set)
    while True:
        await asked.wait()
        asked.clear()
        if not os.read(0, 1):
            break
        print(json.dumps(figures(engine)), flush=True)  # noqa: T201
    loop.remove_reader(0)
    await engine.stop(0)


uvloop.run(main())
