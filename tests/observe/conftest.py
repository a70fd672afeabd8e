"""As for every test of the engine: nothing is left open."""

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps

__all__ = ["nothing_is_left_open", "uvloop_has_what_it_keeps"]
