"""Several worker processes that serve the same routes on the same addresses.

A `Supervisor` listens, starts the workers, and sends each worker its own sockets. It watches and replaces
workers, and checks the backends for all workers. Each worker is a process with its own engine (`worker`).
Supervisor and workers exchange messages over a socket (`channel`, `messages`). The workers count connections
in memory that they share (`shared_limiter`).
"""

from refractium.workers.supervisor import Supervisor

__all__ = ["Supervisor"]
