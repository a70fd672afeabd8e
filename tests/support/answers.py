"""The answers of protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refractium.contract import NEED_MORE, NeedMore

if TYPE_CHECKING:
    from refractium.contract import Identification


def needs_more(answer: Identification) -> bool:
    """Return whether a protocol needs more bytes."""
    return answer is NEED_MORE or isinstance(answer, NeedMore)
