"""Mistakes that a type checker must refuse. ``mypy --strict`` reports each needless ignore comment."""

import asyncio

from msgspec import Struct

from refractium import Health, Member, ProtocolMatch, Refractium, Route, Settings, Transport, define_protocol
from refractium.contract import Protocol
from refractium.kit import Networks, OwnTable
from refractium.testing import Backend, Serve, run_balancer, serve


@define_protocol("any", max_bytes=1)
def anything(data: bytes) -> ProtocolMatch:
    del data
    return ProtocolMatch()


@define_protocol("text", max_bytes=1)  # type: ignore[arg-type]
def text(data: str) -> ProtocolMatch:
    del data
    return ProtocolMatch()


class Own(Struct):
    """Settings that have no key ``greeting``."""


class Half(Protocol):
    name = "half"


def mistakes() -> None:
    Half()  # type: ignore[abstract]
    Route("http", "127.0.0.1:80")  # type: ignore[arg-type]
    Route(anything, 8080)  # type: ignore[arg-type]
    Route(anything, "127.0.0.1:80", balanced="first")  # type: ignore[call-arg]
    Member("127.0.0.1:80", weight="heavy")  # type: ignore[arg-type]
    Health(kind="tcp", interval_ms="1s")  # type: ignore[arg-type]
    Settings(max_connections="many")  # type: ignore[arg-type]
    Refractium(anything)  # type: ignore[arg-type]
    Networks([10])  # type: ignore[list-item]
    OwnTable.read("half", dict)  # type: ignore[type-var]
    OwnTable.read("half", Own, "refractium.toml")  # type: ignore[arg-type]
    OwnTable.read("half", Own).settings.greeting  # type: ignore[attr-defined]  # noqa: B018
    serve("any")  # type: ignore[arg-type]
    serve(anything, fallback="127.0.0.1:80")  # type: ignore[call-arg]
    Backend.named(b"green")  # type: ignore[arg-type]
    run_balancer("first", {"a": 1})  # type: ignore[arg-type]
    Transport.SCTP  # type: ignore[attr-defined]  # noqa: B018
    asyncio.run(Refractium().run_tcp(8080))  # type: ignore[call-arg, arg-type]


def fixture(refractium_serve: Serve) -> None:
    refractium_serve(anything, hook=[])  # type: ignore[call-arg]
