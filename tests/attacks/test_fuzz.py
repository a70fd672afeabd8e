"""Random programs at both ends of many connections, through a program that is reloaded and loses workers."""

from __future__ import annotations

import os
from typing import Final

import pytest

from attacks.fuzz import SCENARIOS, Scenario, run

SEED: Final = int(os.environ.get("FUZZ_SEED", "20261130"))
"""The seed of all programs, always the same unless FUZZ_SEED asks for other programs."""


@pytest.mark.parametrize("scenario", [SCENARIOS[1], SCENARIOS[2]], ids=str)
def test_both_ends_see_every_byte_and_the_ending_of_the_other(scenario: Scenario) -> None:
    said: list[str] = []
    failures = run(SEED, connections=400, scenarios=[scenario], say=said.append)
    assert not failures, "\n".join(said)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_both_ends_of_thousands_of_connections_see_every_byte_and_the_ending(scenario: Scenario) -> None:
    said: list[str] = []
    failures = run(SEED + 1, connections=4_000, scenarios=[scenario], say=said.append)
    assert not failures, "\n".join(said)
