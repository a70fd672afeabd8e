"""This is a distribution of its own: where it is not installed, its tests have nothing to test."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("refractium_proto_knock") else ["tests"]
