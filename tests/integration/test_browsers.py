"""Browsers, imitated by curl_cffi; some of their hellos are longer than the peek buffer."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import TYPE_CHECKING, Any, cast

import pytest
from curl_cffi import CurlOpt, requests

from integration.stage import BROWSERS
from support.capture import browser_hello
from support.process import TIMEOUT

if TYPE_CHECKING:
    from integration.stage import Stage

CONNECTIONS = 1000
AT_ONCE = 100
MOST_CUTS = 8
"""Most cuts of one hello. Even with the longest pauses, eight cuts take far less than the peek timeout."""


async def replay(port: int, hello: bytes, chance: random.Random) -> str:
    """Send a hello in pieces, with pauses of 1 to 30 ms; return the answer."""
    cuts = sorted(chance.sample(range(1, len(hello)), chance.randint(1, MOST_CUTS)))
    pieces = [hello[start:end] for start, end in zip([0, *cuts], [*cuts, len(hello)], strict=True)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for number, piece in enumerate(pieces):
            if number:
                await asyncio.sleep(chance.uniform(0.001, 0.030))
            writer.write(piece)
        writer.write_eof()
        return (await reader.read()).decode()
    finally:
        writer.close()


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_hello_in_random_pieces_reaches_its_server_every_time(stage: Stage, browser: str) -> None:
    hello = browser_hello(browser, f"{browser}.browsers.example")
    expected = f"{browser} {hashlib.sha256(hello).hexdigest()}"

    async def replay_all() -> list[str]:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> str:
            async with slots:
                chance = random.Random(f"{browser} {seed}")  # noqa: S311 - test data
                return await asyncio.wait_for(replay(stage.port, hello, chance), TIMEOUT)

        return await asyncio.gather(*map(one, range(CONNECTIONS)))

    answers = asyncio.run(replay_all())
    wrong = {seed: answer for seed, answer in enumerate(answers) if answer != expected}
    assert len(answers) == CONNECTIONS
    assert wrong == {}


@pytest.mark.parametrize("name", ["one.example", "two.example", "deep.wild.example"])
@pytest.mark.parametrize("browser", BROWSERS)
def test_a_browser_gets_its_page_from_the_server_it_names(stage: Stage, browser: str, name: str) -> None:
    response = requests.get(
        f"https://{name}:{stage.port}/",
        impersonate=cast("Any", browser),
        verify=cast("Any", str(stage.authority)),
        timeout=TIMEOUT,
        curl_options={CurlOpt.RESOLVE: [f"{name}:{stage.port}:127.0.0.1"], CurlOpt.NOPROXY: "*"},
    )
    assert response.status_code == 200
    assert response.text == ("one.example" if name == "one.example" else "two.example")


@pytest.mark.parametrize("browser", BROWSERS)
def test_a_browser_hello_with_an_unrouted_name_goes_to_the_route_without_names(
    stage: Stage, browser: str
) -> None:
    hello = browser_hello(browser, "elsewhere.example")
    answer = asyncio.run(asyncio.wait_for(replay(stage.port, hello, random.Random(browser)), TIMEOUT))  # noqa: S311
    assert answer == f"fallback {hashlib.sha256(hello).hexdigest()}"
