"""Skips the tests of this distribution where the distribution is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("refractium_proto_knock") else ["tests"]
