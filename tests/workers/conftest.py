"""A check after each test that nothing is left open, as for every test of the engine."""

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps

__all__ = ["nothing_is_left_open", "uvloop_has_what_it_keeps"]
