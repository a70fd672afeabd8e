"""What only root may do."""

from __future__ import annotations

import os

import pytest


def require_root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
