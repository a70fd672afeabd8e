"""The sockets of a run: which are open, and which a changed configuration opens and closes."""

from __future__ import annotations

import asyncio
import errno
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.addresses.address import join_host_port
from refractium.config.model import listener_name
from refractium.contract import Transport
from refractium.daemon.stdout import say
from refractium.errors import ListenError
from refractium.sockets.bind import addresses_of, bind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.config import ListenerConfig
    from refractium.daemon.serving import Service
    from refractium.sockets.names import Found

Wanted: TypeAlias = "Sequence[tuple[Transport, ListenerConfig]]"
Key: TypeAlias = tuple[Transport, str, int]
"""As it is configured: port 0 stays 0, and stays the port that it was given."""

_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
_TRIES: Final = 10
_PAUSE: Final = 0.2
"""Seconds between attempts to have a port again that was given up for one which could not be bound."""


@dataclass
class Change:
    """What is going to be listened on beside what is open.

    Attributes:
        bound: the sockets.
        closed: what was open and in the way, with the addresses it was bound on.
        taken: sockets that were handed down, each with the name of its listener.
    """

    bound: dict[Key, list[socket.socket]] = field(default_factory=dict)
    closed: dict[Key, Found] = field(default_factory=dict)
    taken: list[tuple[socket.socket, str]] = field(default_factory=list)

    @property
    def sockets(self) -> list[socket.socket]:
        """All sockets that are going to be served."""
        return [*(sock for sock, _ in self.taken), *(sock for found in self.bound.values() for sock in found)]


class Listening:
    """Every transport of a listener on one port, even where that port was to be any free one.

    Args:
        service: what serves.
    """

    def __init__(self, service: Service[Any]) -> None:
        self._service = service
        self._open: dict[Key, tuple[str, ...]] = {}
        self._bound: dict[Key, Found] = {}
        self._handed_down: dict[tuple[Transport, str], str] = {}

    async def begin(self, sockets: Sequence[socket.socket], wanted: Wanted) -> Change:
        """Do what `prepare` does, for the first time.

        Args:
            sockets: what was handed down, each for the listener that is configured to be there. Such a
                listener is bound nowhere else. If only one listener is configured for a transport, the
                sockets are for that one, wherever they are.
            wanted: as for `prepare`.

        Raises:
            ListenError: an address cannot be listened on, or a socket is for none of the listeners.
        """
        taken = []
        for sock in sockets:
            transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
            name = _listener_on(sock, [listener for one, listener in wanted if one is transport])
            self._handed_down[transport, name] = join_host_port(*sock.getsockname()[:2])
            taken.append((sock, name))
        change = await self.prepare(wanted, await self.resolve(wanted))
        change.taken = taken
        return change

    async def resolve(self, wanted: Wanted, timeout: float | None = None) -> dict[str, Found]:  # noqa: ASYNC109
        """Look up the names on which `prepare` is going to listen.

        Args:
            wanted: what is to be listened on.
            timeout: how long a name server may take (s); by default as long as resolv.conf(5) says.

        Returns:
            The addresses of each host, which `prepare` takes.

        Raises:
            ListenError: a name cannot be resolved.
        """
        hosts: dict[str, Found] = {}
        for transport, host, port in self._missing(wanted):
            if host not in hosts:
                hosts[host] = await addresses_of(transport, host, port, timeout)
        return hosts

    async def prepare(self, wanted: Wanted, hosts: Mapping[str, Found]) -> Change:
        """Bind what is to be listened on and is not yet.

        What is open stays open, but for an address that is in the way of a new one with the same port.

        Args:
            wanted: what is to be listened on.
            hosts: what `resolve` has returned for that.

        Returns:
            What `carry_out` takes; or `undo`.

        Raises:
            ListenError: nothing has changed.
        """
        missing = self._missing(wanted)
        # A port that is free for one transport may be taken for the other; then there is another one.
        for tries_left in reversed(range(_TRIES if any(not port for _, _, port in missing) else 1)):
            try:
                return await self._bind_all(missing, hosts)
            except ListenError:
                if not tries_left:
                    raise
        raise AssertionError

    def _missing(self, wanted: Wanted) -> list[Key]:
        names = {one.name for _, one in wanted}
        for (transport, name), address in self._handed_down.items():
            if name not in names:  # it would go on by the rules that it had, whatever the file says
                reason = f"it is for the listener {name}, and to change that takes a restart"
                raise ListenError(f"{transport}://{address}, handed down", reason)
        keys = [
            (transport, one.bind, one.port)
            for transport, one in wanted
            if (transport, one.name) not in self._handed_down
        ]
        return [key for key in keys if key not in self._open]

    async def carry_out(self, change: Change) -> None:
        """Serve on what was bound or handed down, and tell of each socket on stdout."""
        for sock, name in change.taken:
            transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
            say(f"Listening on {transport}://{await self._service.start_on(sock, name)}")
        for key, sockets in change.bound.items():
            transport, host, port = key
            name = listener_name(host, port)
            self._bound[key] = tuple((sock.family, sock.getsockname()) for sock in sockets)
            self._open[key] = tuple([await self._service.start_on(sock, name) for sock in sockets])
            for address in self._open[key]:
                say(f"Listening on {transport}://{address}")

    async def undo(self, change: Change) -> None:
        """Close what was bound; listen again on what was in the way."""
        for sock in change.sockets:
            sock.close()
        for key, found in change.closed.items():
            await self.carry_out(Change({key: await self._bind_again(key, found)}))

    async def close_others(self, wanted: Wanted) -> None:
        """Close what is not to be listened on any more; its connections go on."""
        keys = {(transport, one.bind, one.port) for transport, one in wanted}
        for key in [key for key in self._open if key not in keys]:
            await self._end(key)

    async def _bind_all(self, missing: Sequence[Key], hosts: Mapping[str, Found]) -> Change:
        change = Change()
        for key in missing:
            try:
                change.bound[key] = await self._bind_here(key, hosts[key[1]], change)
            except ListenError:
                await self.undo(change)
                raise
        return change

    async def _bind_here(self, key: Key, found: Found, change: Change) -> list[socket.socket]:
        transport, _, port = key
        try:
            return self._bind(key, found, change.bound)
        except ListenError as error:
            in_the_way = [one for one in self._open if one[0] is transport and one[2] == port]
            # What is closed for an address that this process may not bind could not be bound again either.
            if not in_the_way or error.errno in _FORBIDDEN:
                raise
        for one in in_the_way:
            change.closed[one] = self._bound[one]
            await self._end(one)
        return self._bind(key, found, change.bound)

    def _bind(
        self, key: Key, found: Found, beside: Mapping[Key, Sequence[socket.socket]]
    ) -> list[socket.socket]:
        """Bind a transport of a listener; where any port will do, the one that its other transport has."""
        transport, host, port = key
        ports = [
            *(found[0].getsockname()[1] for at, found in beside.items() if at[1:] == key[1:]),
            *(int(found[0].rpartition(":")[2]) for at, found in self._open.items() if at[1:] == key[1:]),
        ]
        return bind(transport, host, port or (ports[0] if ports else 0), found)

    async def _bind_again(self, key: Key, found: Found) -> list[socket.socket]:
        """Bind where a listener was a moment ago; whoever has taken the port since may leave it."""
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._bind(key, found, {})
            except ListenError:
                if not tries_left:
                    raise
                await asyncio.sleep(_PAUSE)
        raise AssertionError

    async def _end(self, key: Key) -> None:
        del self._bound[key]
        for address in self._open.pop(key):
            await self._service.stop_listening(key[0], address)


def _listener_on(sock: socket.socket, listeners: Sequence[ListenerConfig]) -> str:
    """The name of the listener that a socket is for.

    Raises:
        ListenError: none is.
    """
    host, port = sock.getsockname()[:2]
    if len(listeners) == 1:
        return listeners[0].name
    fitting = [one for one in listeners if one.port == port and one.bind == host] or [
        one for one in listeners if one.port == port
    ]
    if not fitting:
        raise ListenError(f"{host} port {port}, handed down", "none of the [[listeners]] is there")
    return fitting[0].name
