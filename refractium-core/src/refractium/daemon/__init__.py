"""The running program, after a command has begun to serve."""
