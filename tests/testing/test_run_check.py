"""`run_check` gives the result that the checker of the proxy would act on."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Struct

from refractium.backends.checks import CHECKS
from refractium.contract import HealthCheck, NoSettings, Transport
from refractium.testing import Backend, run_check
from support.backends import refusing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from refractium.contract import Endpoint


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    greeting: str = "220"


class Greeting(HealthCheck[Settings]):
    name = "greeting"
    settings = Settings

    async def check(self, endpoint: Endpoint, settings: Settings, timeout: float) -> str | None:  # noqa: ARG002, ASYNC109
        reader, writer = await endpoint.connect()
        try:
            said = await reader.readexactly(len(settings.greeting))
        finally:
            writer.close()
        return None if said == settings.greeting.encode() else f"it begins with {said.decode()}"

    def problems(self, settings: Settings) -> Iterator[tuple[str, str]]:
        if not settings.greeting:
            yield "greeting", "must not be empty"


def saying(banner: bytes) -> Backend:
    return Backend.scripted((b"", banner))


def test_a_healthy_backend_has_no_reason() -> None:
    assert run_check(Greeting(), saying(b"220 ready\r\n")) is None
    assert run_check(Greeting(), saying(b"+OK"), Settings("+OK")) is None
    with saying(b"220 ready\r\n") as backend:
        assert run_check(Greeting(), backend) is None
        assert run_check(Greeting(), str(backend)) is None
        assert backend.is_running


def test_the_reason_is_the_reason_in_the_log_and_the_status() -> None:
    assert run_check(Greeting(), saying(b"421 busy\r\n")) == "it begins with 421"
    assert "IncompleteReadError" in (run_check(Greeting(), saying(b"22")) or "")
    with refusing() as address:
        assert run_check(Greeting(), address) == "Connection refused"
    assert run_check(Greeting(), Backend(), timeout_ms=50) == "no answer within 50 ms"


def test_a_check_over_udp_has_a_backend_of_its_transport() -> None:
    answer = b"\0\0\x80\0\0\0\0\0\0\0\0\0"
    silent = Backend(Transport.UDP)
    assert run_check(CHECKS["dns"], silent, timeout_ms=50) == "no answer within 50 ms"
    assert run_check(CHECKS["dns"], Backend.named(answer.decode("latin-1"), Transport.UDP), timeout_ms=50)
    with pytest.raises(AssertionError, match='a check of kind "greeting" is not for udp'):
        run_check(Greeting(), Backend(Transport.UDP))


def test_the_backend_gets_the_proxy_header() -> None:
    version_2 = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")
    assert run_check(Greeting(), Backend.scripted((version_2, b"220")), proxy_protocol="v2") is None


def test_a_script_that_does_not_fit_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=re.escape("step 1 of 1: expected b'HELO'")):
        run_check(Greeting(), Backend.scripted((b"HELO", b"220")), timeout_ms=50)


def test_settings_that_the_check_refuses_are_reported() -> None:
    with pytest.raises(
        AssertionError, match=r"check greeting refuses the settings: .*greeting: must not be empty"
    ):
        run_check(Greeting(), saying(b""), Settings(greeting=""))


class Broken(HealthCheck[NoSettings]):
    name = "broken"
    settings = NoSettings

    def __init__(self, result: object) -> None:
        self._result = result

    async def check(self, endpoint: Endpoint, settings: NoSettings, timeout: float) -> Any:  # noqa: ARG002, ASYNC109
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (LookupError("no rule"), "check broken failed: LookupError: no rule"),
        (SystemExit(3), "check broken failed: SystemExit: 3"),
        (False, "check broken failed: TypeError: check broken returned False, not str or None"),
        (asyncio.CancelledError("own"), "check broken failed: .*CancelledError"),
    ],
    ids=repr,
)
def test_a_fault_of_the_check_fails_the_test(result: object, error: str) -> None:
    with pytest.raises(AssertionError, match=error):
        run_check(Broken(result), Backend.echo())


def test_an_object_that_is_not_a_check_is_refused() -> None:
    with pytest.raises(AssertionError, match="is not a HealthCheck"):
        run_check(Greeting, Backend.echo())  # type: ignore[arg-type]
