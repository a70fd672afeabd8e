"""One call of a health check, as the proxy makes it, for tests."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from refractium.addresses.address import Address
from refractium.backends.backend import Backend as PoolBackend
from refractium.backends.checker import Checker
from refractium.backends.health_settings import Health
from refractium.backends.state import Availability, BackendState
from refractium.contract import Transport, problems_of_health_check
from refractium.errors import ConfigError
from refractium.testing.backend import PATIENCE, Backend
from refractium.testing.faults import FaultsOfTest

if TYPE_CHECKING:
    from msgspec import Struct

    from refractium.contract import HealthCheck
    from refractium.settings import ProxyVersion

S = TypeVar("S", bound="Struct")


def run_check(
    check: HealthCheck[S],
    backend: str,
    settings: S | None = None,
    *,
    timeout_ms: int = 5_000,
    proxy_protocol: ProxyVersion | None = None,
) -> str | None:
    r"""Check one backend once, as Refractium does.

    ::

        assert run_check(GreetingCheck(), Backend.scripted((b"", b"220 ready\r\n"))) is None

    Args:
        check: the health check.
        backend: a `Backend`, or an address in the form of `Route.forward_to`. If a `Backend` does not run,
            this function starts and stops it.
        settings: the settings of the check; None for the defaults.
        timeout_ms: time for the check (ms).
        proxy_protocol: version of the PROXY header that the backend expects.

    Returns:
        None if the backend is healthy, else the reason.

    Raises:
        AssertionError: the check violates the contract, refuses the settings, or raises an exception other
            than `OSError` and `EOFError`; or a backend with a script received other bytes.
    """
    if problems := list(problems_of_health_check(check)):
        raise AssertionError("; ".join(problems))
    transport = Transport.TCP if Transport.TCP in check.transports else Transport.UDP
    with ExitStack() as stack:
        if isinstance(backend, Backend):
            transport = backend.transport
            if not backend.is_running:
                stack.enter_context(backend)
        if transport not in check.transports:
            raise AssertionError(f'a check of kind "{check.name}" is not for {transport}')
        health = _health(check, settings, timeout_ms)
        state = BackendState(Address.parse(backend), health, proxy_protocol=proxy_protocol)
        return asyncio.run(_checked(transport, state))


def _health(check: HealthCheck[Any], settings: Struct | None, timeout_ms: int) -> Health:
    options = {} if settings is None else msgspec.to_builtins(settings)
    try:
        return Health(kind=check, options=options, timeout_ms=timeout_ms, rise=1, fall=1)
    except ConfigError as error:
        raise AssertionError(f"check {check.name} refuses the settings: {error}") from error


async def _checked(transport: Transport, state: BackendState) -> str | None:
    faults = FaultsOfTest()
    checker = Checker(transport, [PoolBackend(state.address, state=state)], faults)
    result = _Result()
    state.watch(result)
    await checker.start()  # on a busy machine, it can return before the result
    try:
        await asyncio.wait_for(result.has_come.wait(), PATIENCE)
    except TimeoutError:
        raise AssertionError(f"this machine cannot check {state.address} now: see the log") from None
    finally:
        await checker.stop()
    faults.raise_first()
    name = f"{state.health.check.name} check: " if state.health.check is not None else ""
    return state.reason.removeprefix(name) if state.availability is Availability.DOWN else None


class _Result:
    """A watcher of a backend that waits for the result of the first check."""

    def __init__(self) -> None:
        self.has_come = asyncio.Event()

    def refresh(self) -> None:
        self.has_come.set()
