"""A recorder gets the sessions of a proxy, and the session of `run_hook`."""

from __future__ import annotations

import pytest

from refractium.contract import Direction, Transport
from refractium.testing import Recorder, run_hook, serve
from testing.knocking import MAGIC, knock, knock_udp


def test_the_sessions_of_a_proxy_are_recorded() -> None:
    recorder = Recorder()
    with serve(knock, knock_udp, hooks=[recorder.hook]) as proxy:
        proxy.ask(MAGIC + b"green\n")
        first = recorder.session()
        assert (first.inbound, first.outbound) == (MAGIC + b"green\n",) * 2
        assert first.context.metadata == {"host": "green"}
        assert first.stats.ended == "closed"
        proxy.ask(MAGIC, transport=Transport.UDP)
    second = recorder.session()
    assert second.packets == ((Direction.INBOUND, MAGIC), (Direction.OUTBOUND, MAGIC))
    assert second.context.transport is Transport.UDP
    assert recorder.sessions == [first, second]


def test_recorders_are_independent() -> None:
    one, other = Recorder(), Recorder()
    with serve(knock, hooks=[one.hook, other.hook]) as proxy:
        proxy.ask(MAGIC)
        assert one.session() == other.session()
    run_hook(one.hook, inbound=[b"a", b"b"])
    assert [len(one.sessions), len(other.sessions)] == [2, 1]
    assert one.sessions[1].inbound == b"ab"


def test_a_session_that_does_not_end_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refractium.testing.recorder.PATIENCE", 0.05)
    with pytest.raises(TimeoutError, match=r"no session has ended within 0.05 s, after 0 earlier sessions"):
        Recorder().session()
