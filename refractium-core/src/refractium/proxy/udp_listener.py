"""The UDP listener: it receives the datagrams of clients, and passes each datagram to a session."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Final

from refractium.addresses.address import join_host_port
from refractium.sockets.pktinfo import CONTROL_BYTES, IP_PKTINFO, Control, as_source
from refractium.sockets.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from refractium.addresses.address import Peer
    from refractium.proxy.udp import UdpService
    from refractium.routing import Router

log = logging.getLogger(__name__)

_DATAGRAMS_A_TURN: Final = range(64)
"""The datagrams after which a listener lets other sockets have their turn."""


class UdpListener:
    """A bound UDP socket that receives the datagrams of clients.

    Args:
        service: the UDP service that owns the listener.
        sock: the bound socket.
        name: the listener's name, by which the service finds the listener's routes.
        router: the router for new sessions.
    """

    def __init__(self, service: UdpService, sock: socket.socket, name: str, router: Router) -> None:
        self._service = service
        self.sock = sock
        self.name = name
        self.router = router
        self.address: Peer = sock.getsockname()
        self._tells_destination = self.address[0] in {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
        if self._tells_destination:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self.watching = Watching(service.reactor, sock, self._on_event)

    @property
    def paused(self) -> str:
        """The reason why the listener receives no datagrams now; empty while it receives datagrams."""
        return self.watching.why_paused

    def __repr__(self) -> str:
        return f"<UdpListener {join_host_port(self.address[0], self.address[1])}>"

    def crash(self) -> None:
        """Pause, then receive datagrams again: no fault with a datagram ends a listener."""
        self.watching.rest()

    def _on_event(self, _mask: int) -> None:
        service, sock = self._service, self.sock
        buffer, view = service.buffer, service.view
        sessions = service.sessions
        control: Control = ()
        for _ in _DATAGRAMS_A_TURN:
            try:
                if self._tells_destination:
                    size, ancillary, _, client = sock.recvmsg_into([buffer], CONTROL_BYTES)
                    control = tuple((level, kind, as_source(kind, data)) for level, kind, data in ancillary)
                else:
                    size, client = sock.recvfrom_into(buffer)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("%s: %s", self, error)
                return
            key = (sock, client, control)
            session = sessions.get(key)
            if session is None:
                session = service.begin(self, client, control, key, bytes(view[:size]))
            if session is not None:
                session.send_up(view[:size])

    def answerer(self, control: Control) -> Callable[[memoryview, Peer], int]:
        """Return a function that sends a datagram to a client, and that raises the kernel's OSError.

        Args:
            control: the control messages of each datagram, such as its source address.
        """
        sock = self.sock
        if not control:
            return sock.sendto
        return lambda datagram, client: sock.sendmsg([datagram], control, 0, client)
