"""A check after each test that the helpers leave nothing open."""

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps

__all__ = ["nothing_is_left_open", "uvloop_has_what_it_keeps"]
