"""The running program: what happens after a command has begun to serve."""
