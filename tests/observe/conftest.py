"""A check after each test that nothing is left open, as for every test of the engine."""

from support.cleanliness import nothing_is_left_open, uvloop_has_what_it_keeps
from support.cli import cli

__all__ = ["cli", "nothing_is_left_open", "uvloop_has_what_it_keeps"]
