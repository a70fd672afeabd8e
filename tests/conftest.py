"""For the whole suite."""

from __future__ import annotations

import signal

from hypothesis import settings

# How long an example takes says more about what else the machine is doing than about the code.
settings.register_profile("refractium", deadline=None)
settings.load_profile("refractium")

# A shell has what it starts in the background ignore Ctrl-C, which the programs under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
