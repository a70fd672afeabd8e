"""The contract of scenes, by which ``refractium demo`` shows a protocol."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from refractium.contract.protocol import problems_of_name

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable, Iterator, Mapping

Backend: TypeAlias = "Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]"
"""A coroutine function that serves one client. The demo then closes the connection."""

Exchange: TypeAlias = "Callable[[socket.socket], str]"
"""A client that makes one exchange over a connected socket, and returns the answer in a few words. The client
may block. If the client does not get the backend's answer, it raises an exception."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A backend and a client of one TCP protocol, with which ``refractium demo`` shows the protocol.

    Attributes:
        protocol: the name of the protocol.
        backend: the server: a coroutine function that serves one client, given the streams of
            `asyncio.start_server`. The demo then closes the connection.
        exchange: the client: a function that makes one exchange over a connected socket, and returns the
            answer in a few words. It may block for ten seconds. An exception means that the exchange failed.
        by_hand: a command that the user can try, with ``{port}`` in place of the port.
        conditions: the conditions of the route to the backend: patterns by metadata key, such as ``host``.
    """

    protocol: str
    backend: Backend
    exchange: Exchange
    by_hand: str
    conditions: Mapping[str, Any] = field(default_factory=dict)


def problems_of_scene(scene: object) -> Iterator[str]:
    """Yield each violation of the contract in an object that a plugin returns as a scene."""
    if not isinstance(scene, Scene):
        yield f"a scene is {type(scene).__name__}, not Scene"
        return
    if problem := next(problems_of_name(scene.protocol), None):
        yield f"the scene has an invalid {problem}"
        return
    if not inspect.iscoroutinefunction(scene.backend):
        yield f"scene {scene.protocol}: backend is not a coroutine function"
    if not callable(getattr(scene, "exchange", None)) or inspect.iscoroutinefunction(scene.exchange):
        yield f"scene {scene.protocol}: exchange is not an ordinary function: write def, not async def"
    if not isinstance(scene.by_hand, str):
        yield f"scene {scene.protocol}: by_hand is {type(scene.by_hand).__name__}, not str"
