"""Assembly of a configuration that can be served, from file and flags: sources, routes, hooks, checks."""
