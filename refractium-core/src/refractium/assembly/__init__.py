"""From a file and flags to a configuration that can be served: sources, routes, hooks, checks."""
