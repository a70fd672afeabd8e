"""A short soak; `attacks.soak` is the long one, run by hand."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import pytest

from attacks.soak import CLIENTS, soak, told

if TYPE_CHECKING:
    from pathlib import Path

SEED: Final = str(random.SystemRandom().randrange(1 << 32))


@pytest.mark.slow
def test_only_clients_of_killed_workers_fail(tmp_path: Path) -> None:
    seen = asyncio.run(soak(45, SEED, tmp_path))
    assert (seen.failures, len(seen.kills)) == ([], 2), SEED
    assert all(seen.asked[kind] > 100 for kind in CLIENTS)
    assert not any("Traceback" in line for line in told(tmp_path / "log"))
