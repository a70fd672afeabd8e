"""All protocols behind one port: the first message of each sample reaches the backend of its protocol."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from refractium import Route, Transport
from refractium.testing import Backend, cuts
from refractium_proto_dns import DnsTcp, DnsUdp
from refractium_proto_ftp import Ftp
from refractium_proto_http import Http
from refractium_proto_https import Https
from refractium_proto_ssh import Ssh

if TYPE_CHECKING:
    from refractium.contract import Protocol
    from refractium.testing import Proxy, Serve

PROTOCOLS: Final[tuple[Protocol, ...]] = (Http(), Https(), Ssh(), DnsTcp(), DnsUdp(), Ftp())
CUTS: Final = 50
"""Number of cuts of a long sample."""


def samples_of(protocol: Protocol) -> list[Path]:
    found = sorted(Path(inspect.getfile(type(protocol))).parent.glob("samples/*.bin"))
    udp = protocol.transport is Transport.UDP
    return [path for path in found if (path.stem == "udp") is udp]


SAMPLES: Final = [(protocol, path) for protocol in PROTOCOLS for path in samples_of(protocol)]


@pytest.fixture
def proxy(refractium_serve: Serve) -> Proxy:
    routes = (Route(one, Backend.named(repr(one), one.transport)) for one in PROTOCOLS)
    return refractium_serve(*routes, fallback_tcp=Backend.named("rest"))


@pytest.mark.parametrize(("protocol", "path"), SAMPLES, ids=[f"{one}-{path.stem}" for one, path in SAMPLES])
def test_a_cut_first_message_reaches_the_backend_of_its_protocol(
    protocol: Protocol, path: Path, proxy: Proxy
) -> None:
    data = path.read_bytes()
    is_udp = protocol.transport is Transport.UDP
    for pieces in [(data,)] if is_udp else list(cuts(data))[:: 1 + len(data) // CUTS]:
        assert proxy.ask(*pieces, transport=protocol.transport).decode() == repr(protocol)


def test_every_protocol_has_a_sample() -> None:
    assert {protocol for protocol, _ in SAMPLES} == set(PROTOCOLS)


def test_other_clients_reach_the_fallback(proxy: Proxy) -> None:
    assert proxy.ask(b"\0\1\2\3") == b"rest"
