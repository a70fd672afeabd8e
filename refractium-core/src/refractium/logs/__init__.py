"""Log lines, the same in every process of the program: how they look, and how they get to stderr."""
