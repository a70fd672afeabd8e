"""The stage of the demo: the backends of all scenes, one proxy in front of them, and a client per scene."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refractium.contract import Transport
from refractium.demo import backends
from refractium.demo.scenes import OVER_TLS
from refractium.engine.engine import Refractium
from refractium.routing import Route
from refractium.settings import Settings
from refractium.wire.text import escape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from refractium.contract import Protocol, Scene
    from refractium.proxy.summary import Summary

_PEEK_TIMEOUT_MS: Final = 300
"""The peek timeout (ms). It is short, because the FTP client gets no greeting before this timeout ends."""
_TIMEOUT: Final = 10.0
"""Seconds that a client waits for a connection or an answer."""


@dataclass(frozen=True, slots=True)
class SceneResult:
    """The result of one scene.

    Attributes:
        protocol: the protocol that the client spoke.
        identified_as: the protocol that the proxy identified; None if it identified none.
        evidence: the evidence for that protocol.
        backend: the backend to which the proxy joined the client; None if it joined the client to no backend.
        answer: the answer that the client got, or the error.
        ms: the duration of the exchange in milliseconds.
        ok: whether the client got its answer and the proxy identified the right protocol.
    """

    protocol: str
    identified_as: str | None
    evidence: str
    backend: str | None
    answer: str
    ms: float
    ok: bool


class Stage:
    """A proxy with the backends of the given protocols; an async context manager.

    Args:
        protocols: the installed protocols. The stage ignores protocols without a scene, and UDP.
        scenes: the scenes, by the name of the protocol.
        port: the port of the proxy; 0 stands for any free port.

    Attributes:
        port: the port of the proxy on 127.0.0.1; 0 before the proxy runs.
        names: the names of the protocols that the stage shows, in the order of the scenes.
    """

    def __init__(self, protocols: tuple[Protocol, ...], scenes: Mapping[str, Scene], port: int = 0) -> None:
        over_tcp = {one.name: one for one in protocols if one.transport is Transport.TCP}
        self._protocols = {name: over_tcp[name] for name in scenes if name in over_tcp}
        self._scenes = scenes
        self.names = tuple(self._protocols)
        self._asked_port = port
        self._certificates = backends.Certificates()
        self._records = _AccessRecords()
        self._stack = contextlib.AsyncExitStack()
        self.port = 0

    async def __aenter__(self) -> Self:
        routes = []
        for name, protocol in self._protocols.items():
            scene = self._scenes[name]
            context = self._certificates.server_context() if name in OVER_TLS else None
            handler = backends.until_closed(scene.backend)
            server = await asyncio.start_server(handler, backends.HOST, 0, ssl=context)
            self._stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
            routes.append(Route(protocol, f"{backends.HOST}:{port}", match=scene.conditions))
        engine = Refractium(routes, settings=Settings(peek_timeout_ms=_PEEK_TIMEOUT_MS))
        (address,) = await engine.start_tcp(backends.HOST, self._asked_port)
        self._stack.push_async_callback(engine.stop, 0)
        self.port = int(address.rpartition(":")[2])
        self._stack.enter_context(self._records)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def play(self, name: str) -> SceneResult:
        """Make the exchange of one scene through the proxy."""
        began = time.perf_counter()
        answer, summary = "", None
        try:
            port, answer = await asyncio.to_thread(self._exchange, name)
            summary = await self._records.of(port)
        except Exception as error:  # noqa: BLE001 - a failed exchange, or a fault of a plugin's scene
            answer = f"{type(error).__name__}: {error}"
        ms = (time.perf_counter() - began) * 1000
        identified_as = summary.route if summary is not None else None
        return SceneResult(
            protocol=name,
            identified_as=identified_as,
            evidence=_evidence(self._protocols[name], summary),
            backend=summary.backend if summary is not None else None,
            answer=answer,
            ms=ms,
            ok=identified_as == name,
        )

    def _exchange(self, name: str) -> tuple[int, str]:
        """Make the exchange of one scene. Return the port of the client, and the answer."""
        with socket.create_connection((backends.HOST, self.port), _TIMEOUT) as sock:
            port: int = sock.getsockname()[1]
            if name not in OVER_TLS:
                return port, str(self._scenes[name].exchange(sock))
            # The TLS handshake checks the certificate, so an answer from another backend raises an error.
            context = self._certificates.client_context()
            with context.wrap_socket(sock, server_hostname=backends.TLS_NAME) as secure:
                return port, str(self._scenes[name].exchange(secure))


class _AccessRecords(logging.Handler):
    """A log handler that collects the records of the access log by the port of the client."""

    def __init__(self) -> None:
        super().__init__()
        self._summaries: dict[str, Summary] = {}
        self._new = asyncio.Event()
        self._log = logging.getLogger("refractium.access")

    def emit(self, record: logging.LogRecord) -> None:
        summary: Summary = record.connection  # type: ignore[attr-defined]
        self._summaries[summary.client.rpartition(":")[2]] = summary
        self._new.set()

    async def of(self, port: int) -> Summary | None:
        """Return the summary of the client with this port; None if no summary comes within five seconds.

        The proxy logs a connection a moment after the client has closed the connection.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while str(port) not in self._summaries:
                    self._new.clear()
                    await self._new.wait()
        return self._summaries.get(str(port))

    def __enter__(self) -> Self:
        self._log.addHandler(self)
        self._level, self._propagate = self._log.level, self._log.propagate
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.setLevel(self._level)
        self._log.propagate = self._propagate


def _evidence(protocol: Protocol, summary: Summary | None) -> str:
    if summary is None:
        return ""
    if not summary.metadata and protocol.server_first:
        return f"silence for {_PEEK_TIMEOUT_MS} ms: its server speaks first"
    return " ".join(f"{key}={escape(value)}" for key, value in summary.metadata.items())
