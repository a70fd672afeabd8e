"""As for every test of the engine: nothing is left open. Some are run on every path that bytes may take."""

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps
from support.paths import data_path

__all__ = ["data_path", "nothing_is_left_open", "uvloop_has_what_it_keeps"]
