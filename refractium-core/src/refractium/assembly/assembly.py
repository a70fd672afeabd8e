"""Assembly of a file, flags and plugins into a configuration that the engine can serve.

A configuration passes through four steps. Each step passes its whole result to the next step:

decode
    from the text to typed values with positions (`refractium.config.decode`)

overlay
    from the file alone to the file with the flags, which outrank the file (`refractium.assembly.sources`)

resolve
    from names to the installed protocols, hooks and checks (`refractium.assembly.resolve`)

judge
    from the resolved configuration to all problems (`refractium.assembly.judge`) and all warnings
    (`refractium.assembly.lint`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from refractium.assembly import judge, lint
from refractium.assembly.plugin_files import read_plugin_files
from refractium.assembly.resolve import resolve
from refractium.assembly.sources import Overrides, overlay, read_file
from refractium.contract import Transport
from refractium.engine.spec import EngineSpec
from refractium.errors import ConfigError
from refractium.plugins.loading import load_with_files
from refractium.problems import Problem, in_order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from refractium.config import Decoded, ListenerConfig, LogConfig, MetricsConfig, ServerConfig, Source
    from refractium.hooks import HookUse
    from refractium.plugins.installed import Plugins
    from refractium.plugins.local import PluginFile
    from refractium.routing import Route


@dataclass(frozen=True, slots=True)
class Assembly:
    """A configuration that the engine can serve.

    Attributes:
        server: the limits, timeouts and fallbacks.
        listeners: the addresses to listen on, each with the routes that the listener serves.
        tcp: the routes for connections.
        udp: the routes for datagrams.
        warnings: the valid settings that are probably mistakes, and the plugins that failed to load.
        log: the limits of the log.
        metrics: the address and host names of the metrics server.
        hooks: the packet hooks of ``[server]``, which apply to every route and to the fallbacks.
        source: the text of the configuration file and its name.
        plugins: the installed plugins.
    """

    server: ServerConfig
    listeners: tuple[ListenerConfig, ...]
    tcp: tuple[Route, ...]
    udp: tuple[Route, ...]
    warnings: tuple[Problem, ...]
    log: LogConfig
    metrics: MetricsConfig
    hooks: tuple[HookUse, ...]
    source: Source
    plugins: Plugins

    def wanted(self, transports: Sequence[Transport]) -> list[tuple[Transport, ListenerConfig]]:
        """Return the listeners to open for some transports, each with its transport.

        These are the listeners with a route for the transport. If no listener has a route for any of these
        transports, return only the first listener that serves one of the transports.
        """
        return self._reachable(transports) or self._everywhere(transports)[:1]

    def unserved(self, transports: Sequence[Transport], inline: Iterable[str]) -> Iterator[Problem]:
        """Yield a problem for each inline route, or for all routes, that no listener serves.

        Args:
            transports: the transports to serve.
            inline: the names of the inline routes (``-f``). A user who gives such a route wants to serve it.
        """
        reachable = self._reachable(transports)
        names = " or ".join(transports)
        found = False
        for name in dict.fromkeys(inline):
            routes = [route for route in (*self.tcp, *self.udp) if route.name == name]
            if not any(
                route.transport is transport and listener.rules.serves(route.label, route.name)
                for transport, listener in reachable
                for route in routes
            ):
                found = True
                yield Problem(f"no listener serves this route over {names}", where=f"-f {name}")
        if not reachable and not found:
            yield Problem(f"nothing to serve: no listener has a route or a fallback for {names}: add one")

    def _everywhere(self, transports: Sequence[Transport]) -> list[tuple[Transport, ListenerConfig]]:
        return [
            (transport, listener)
            for listener in self.listeners
            for transport in transports
            if transport in listener.transports
        ]

    def _reachable(self, transports: Sequence[Transport]) -> list[tuple[Transport, ListenerConfig]]:
        return [
            (transport, listener)
            for transport, listener in self._everywhere(transports)
            if any(
                route.transport is transport and listener.rules.serves(route.label, route.name)
                for route in (*self.tcp, *self.udp)
            )
        ]

    @property
    def hook_uses(self) -> list[HookUse]:
        """The packet hooks of ``[server]`` and of all routes."""
        return [*self.hooks, *(use for route in (*self.tcp, *self.udp) for use in route.hooks)]

    @property
    def spec(self) -> EngineSpec:
        """The part of this configuration that an engine serves."""
        return EngineSpec(
            self.tcp,
            self.udp,
            settings=self.server,
            listeners={one.name: one.rules for one in self.listeners},
            hooks=self.hooks,
        )


def assembled(
    overrides: Overrides, decoded: Decoded | None = None, files: Sequence[PluginFile] | None = None
) -> Assembly:
    """Read the file, load the plugins, and assemble both with the flags.

    Args:
        overrides: the flags.
        decoded: the file, if the caller has read it already.
        files: the files of the local plugins, if the caller has read them already.

    Raises:
        ConfigError: file, flags or plugins have problems. The error contains all problems.
    """
    decoded = decoded or read_file(overrides)
    return assemble(decoded, overrides, installed(overrides, decoded, files))


def installed(
    overrides: Overrides, decoded: Decoded | None, files: Sequence[PluginFile] | None = None
) -> Plugins:
    """Load the plugins that flags, file and environment do not disable.

    Args:
        overrides: the flags.
        decoded: the file; None if the file cannot be read.
        files: the files of the local plugins, if the caller has read them already.
    """
    by_file = decoded.config.plugins.disable if decoded is not None else ()
    if files is None:
        files = read_plugin_files(overrides, decoded)
    return load_with_files((*by_file, *overrides.disabled), files)


def assemble(decoded: Decoded, overrides: Overrides, plugins: Plugins) -> Assembly:
    """Assemble file, flags and plugins.

    Args:
        decoded: the file.
        overrides: the flags.
        plugins: the installed plugins.

    Raises:
        ConfigError: file, flags or plugins have problems. The error contains all problems, in the order of
            the file.
    """
    overlaid = overlay(decoded, overrides)
    resolved = resolve(overlaid, plugins)
    if problems := in_order(judge.problems(resolved)):
        raise ConfigError(problems)
    routes = [route for _, route in resolved.routes]
    return Assembly(
        overlaid.server,
        tuple(listener for _, listener in overlaid.listeners),
        tuple(route for route in routes if route.transport is Transport.TCP),
        tuple(route for route in routes if route.transport is Transport.UDP),
        tuple(lint.warnings(resolved)),
        decoded.config.log,
        decoded.config.metrics,
        resolved.hooks,
        decoded.source,
        plugins,
    )
