"""Several processes that serve the same on the same addresses.

A `Supervisor` listens, starts the workers, hands each its own sockets, watches and replaces them, and checks
the backends for all. Each worker is a process with an engine of its own (`worker`). They talk over a socket
(`channel`, `messages`), and count connections in memory that they share (`limits`).
"""

from refractium.workers.supervisor import Supervisor

__all__ = ["Supervisor"]
