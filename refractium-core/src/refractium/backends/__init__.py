"""Which backends there are and how well they are: state, health checks, names."""
