"""The listening sockets of a run. A changed configuration opens and closes some of these sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from refractium.addresses.address import join_host_port
from refractium.contract import Transport
from refractium.daemon.stdout import say
from refractium.errors import ListenError
from refractium.sockets.bind import addresses_of, bind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from refractium.config import ListenerConfig
    from refractium.daemon.instance import Instance
    from refractium.sockets.names import Found

log = logging.getLogger("refractium")

Wanted: TypeAlias = "Sequence[tuple[Transport, ListenerConfig]]"
Key: TypeAlias = tuple[Transport, str, int]
"""A listener's transport, host and port as configured. A configured port 0 stays 0 in the key.

A listener with port 0 keeps the port that the kernel has chosen.
"""

_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
_TRIES: Final = 10
_PAUSE: Final = 0.2
"""Seconds between two attempts of `Listening.undo` to reopen a listener."""


@dataclass
class Change:
    """A change of the listeners: new sockets, and listeners that were closed for the new sockets.

    Attributes:
        bound: the new sockets of each listener.
        closed: the listeners that `prepare` closed because they blocked a new address, with their addresses.
        taken: sockets that were handed down to the process, each with the name of its listener.
    """

    bound: dict[Key, list[socket.socket]] = field(default_factory=dict)
    closed: dict[Key, Found] = field(default_factory=dict)
    taken: list[tuple[socket.socket, str]] = field(default_factory=list)

    @property
    def opened(self) -> list[socket.socket]:
        """The new sockets of all listeners."""
        return [sock for found in self.bound.values() for sock in found]

    @property
    def sockets(self) -> list[socket.socket]:
        """All sockets on which `Listening.carry_out` is going to serve."""
        return [*(sock for sock, _ in self.taken), *self.opened]


class Listening:
    """The open listeners of a run. All transports of a listener share one port, even if port 0 is configured.

    Args:
        instance: the engine or the supervisor.
    """

    def __init__(self, instance: Instance[Any]) -> None:
        self._instance = instance
        self._open: dict[Key, tuple[str, ...]] = {}
        self._bound: dict[Key, Found] = {}
        self._handed_down: dict[tuple[Transport, str], str] = {}

    @property
    def opened(self) -> list[str]:
        """The addresses of the listeners whose sockets were not handed down, but opened by this process."""
        return [
            f"{transport}://{address}" for (transport, *_), found in self._open.items() for address in found
        ]

    async def begin(self, sockets: Sequence[socket.socket], wanted: Wanted) -> Change:
        """Prepare the first listeners, like `prepare`, with sockets that were handed down to the process.

        Args:
            sockets: the sockets that were handed down. Each socket belongs to the listener with the address
                of the socket or, if there is none, to the first listener with the port of the socket; such a
                listener opens no other sockets. If only one listener is
                configured for a transport, all sockets of this transport belong to that listener, whatever
                their addresses.
            wanted: the configured listeners, with their transports.

        Raises:
            ListenError: an address cannot be bound, or a socket belongs to none of the listeners.
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
        """Look up the host names of the listeners that `prepare` is going to open.

        Args:
            wanted: the configured listeners, with their transports.
            timeout: the time that a name server may take (s); by default the time in resolv.conf(5).

        Returns:
            The addresses of each host, for `prepare`.

        Raises:
            ListenError: a name cannot be resolved, or a listener whose socket was handed down is no longer
                configured.
        """
        hosts: dict[str, Found] = {}
        for transport, host, port in self._missing(wanted):
            if host not in hosts:
                hosts[host] = await addresses_of(transport, host, port, timeout)
        return hosts

    async def prepare(self, wanted: Wanted, hosts: Mapping[str, Found]) -> Change:
        """Bind the addresses of the configured listeners that are not open yet.

        Open listeners stay open, except a listener that blocks a new listener on the same port.

        Args:
            wanted: the configured listeners, with their transports.
            hosts: the addresses that `resolve` has returned for these listeners.

        Returns:
            The change, for `carry_out` or `undo`.

        Raises:
            ListenError: an address cannot be bound; nothing has changed.
        """
        missing = self._missing(wanted)
        # A port that is free for one transport may be in use for the other: then try another free port.
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
            if name not in names:  # the socket would keep its former rules, whatever the file says
                reason = f"the socket is for the listener {name}: restart Refractium to change that"
                raise ListenError(f"{transport}://{address}, handed down", reason)
        keys = [
            (transport, one.bind, one.port)
            for transport, one in wanted
            if (transport, one.name) not in self._handed_down
        ]
        return [key for key in keys if key not in self._open]

    async def carry_out(self, change: Change) -> list[ListenError]:
        """Serve on the sockets that were bound or handed down, and print each address on stdout.

        Returns:
            The errors of the listeners that could not start. The sockets of these listeners are closed. The
            next `prepare` binds their addresses again.
        """
        failures = []
        for sock, name in change.taken:
            transport = Transport.TCP if sock.type == socket.SOCK_STREAM else Transport.UDP
            try:
                say(f"Listening on {transport}://{await self._instance.start_on(sock, name, is_shared=True)}")
            except OSError as error:
                failures.append(_failure(transport, self._handed_down[transport, name], error))
        for key, sockets in change.bound.items():
            try:
                await self._start(key, sockets)
            except OSError as error:
                failures.append(_failure(key[0], join_host_port(*key[1:]), error))
        return failures

    async def undo(self, change: Change) -> None:
        """Close the sockets of the change, and reopen the listeners that were closed for these sockets."""
        for sock in change.sockets:
            sock.close()
        for key, found in change.closed.items():
            for failure in await self.carry_out(Change({key: await self._bind_again(key, found)})):
                log.error("%s", failure)

    async def close_others(self, wanted: Wanted) -> None:
        """Close the listeners that are no longer configured. The connections of these listeners stay open."""
        keys = {(transport, one.bind, one.port) for transport, one in wanted}
        for key in [key for key in self._open if key not in keys]:
            await self._end(key)

    async def _start(self, key: Key, sockets: Sequence[socket.socket]) -> None:
        transport, host, port = key
        started: list[str] = []
        try:
            bound = tuple((sock.family, sock.getsockname()) for sock in sockets)
            for sock in sockets:
                started.append(await self._instance.start_on(sock, join_host_port(host, port)))  # noqa: PERF401
        except OSError:
            for sock in sockets[len(started) :]:
                sock.close()
            for address in started:
                await self._instance.stop_listening(transport, address)
            raise
        self._bound[key], self._open[key] = bound, tuple(started)
        for address in started:
            say(f"Listening on {transport}://{address}")

    async def _bind_all(self, missing: Sequence[Key], hosts: Mapping[str, Found]) -> Change:
        change = Change()
        for key in missing:
            try:
                change.bound[key] = await self._bind_here(key, hosts[key[1]], change)
            except BaseException:
                await self.undo(change)
                raise
        return change

    async def _bind_here(self, key: Key, found: Found, change: Change) -> list[socket.socket]:
        transport, _, port = key
        try:
            return self._bind(key, found, change.bound)
        except ListenError as error:
            in_the_way = [one for one in self._open if one[0] is transport and one[2] == port]
            # A process that lacks the right to bind this address could not reopen a listener that it closed.
            if not in_the_way or error.errno in _FORBIDDEN:
                raise
        for one in in_the_way:
            change.closed[one] = self._bound[one]
            await self._end(one)
        return self._bind(key, found, change.bound)

    def _bind(
        self, key: Key, found: Found, beside: Mapping[Key, Sequence[socket.socket]]
    ) -> list[socket.socket]:
        """Bind one transport of a listener. For port 0, use the port of the other transport, if bound."""
        transport, host, port = key
        ports = [
            *(found[0].getsockname()[1] for at, found in beside.items() if at[1:] == key[1:]),
            *(int(found[0].rpartition(":")[2]) for at, found in self._open.items() if at[1:] == key[1:]),
        ]
        return bind(transport, host, port or (ports[0] if ports else 0), found)

    async def _bind_again(self, key: Key, found: Found) -> list[socket.socket]:
        """Bind the address of a closed listener again. After an error, retry: the port may become free."""
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
            await self._instance.stop_listening(key[0], address)


def _failure(transport: Transport, address: str, error: OSError) -> ListenError:
    return ListenError(f"{transport}://{address}", error.strerror or str(error), error.errno or 0)


def _listener_on(sock: socket.socket, listeners: Sequence[ListenerConfig]) -> str:
    """Return the name of the listener to which a socket belongs.

    Raises:
        ListenError: the socket belongs to none of the listeners.
    """
    host, port = sock.getsockname()[:2]
    if len(listeners) == 1:
        return listeners[0].name
    fitting = [one for one in listeners if one.port == port and one.bind == host] or [
        one for one in listeners if one.port == port
    ]
    if not fitting:
        address = join_host_port(host, port)
        raise ListenError(f"{address}, handed down", "no entry of [[listeners]] has this port")
    return fitting[0].name
