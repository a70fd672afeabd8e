"""One engine: its arguments, its plan, its start, changes, drain and stop."""
