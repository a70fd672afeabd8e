"""The version, in a module that imports nothing else of Refractium."""

from __future__ import annotations

TYPE_CHECKING = False  # `refractium.TYPE_CHECKING` gives the reason

if TYPE_CHECKING:
    from typing import Final

__version__: Final = "0.1.0"
VERSION_LINE: Final = f"refractium, version {__version__}"
