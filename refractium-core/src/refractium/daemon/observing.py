"""The control socket and the metrics of a run, which show the status of the run to other programs."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from refractium.config.values import metrics_address
from refractium.daemon.stdout import say
from refractium.observe import control

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refractium.assembly.assembly import Assembly
    from refractium.observe.metrics import Exporter
    from refractium.observe.status import Status

log = logging.getLogger("refractium")


class Observing:
    """The control socket and the metrics server of the configuration in force.

    Args:
        status: the function that returns the status of the run.
        folder: the folder of the control socket, if the configuration names no path.
    """

    def __init__(self, status: Callable[[], Awaitable[Status]], folder: Path) -> None:
        self._status = status
        self._folder = folder
        self._bind: str | None = None
        self._exporter: Exporter | None = None
        self._control: control.ControlSocket | None = None

    async def prepare(self, assembly: Assembly, timeout: float | None = None) -> Exporter | None:  # noqa: ASYNC109
        """Open the metrics server of a configuration, if no server is open at the configured address.

        Args:
            assembly: the configuration.
            timeout: the time that a name server may take (s); by default the time in resolv.conf(5).

        Returns:
            The server, for `change`; None if no new server is needed. A caller that does not call `change`
            must close the server.

        Raises:
            ListenError: the server cannot listen on the address; nothing has changed.
        """
        bind = assembly.metrics.bind
        if bind is None or bind == self._bind:
            return None
        from refractium.observe.metrics import Exporter  # noqa: PLC0415 - slow to import, and not always needed

        exporter = Exporter(*metrics_address(bind), self._status, assembly.metrics.hosts)
        await exporter.open(timeout)
        return exporter

    async def change(self, assembly: Assembly, prepared: Exporter | None) -> None:
        """Change to a configuration. The engine must already listen on the configured addresses."""
        bind = assembly.metrics.bind
        if bind != self._bind:
            former, self._exporter, self._bind = self._exporter, prepared, bind
            if former is not None:
                await former.close()
            if prepared is not None:
                say(f"Metrics on http://{prepared.address}/metrics")
        if self._exporter is not None:
            self._exporter.hosts = assembly.metrics.hosts
        await self._change_control(assembly.server.control)

    async def close(self) -> None:
        """Close the metrics server and the control socket."""
        if self._exporter is not None:
            await self._exporter.close()
            self._exporter = None
        if self._control is not None:
            await self._control.close()
            self._control = None

    async def _change_control(self, configured: str | None) -> None:
        path = Path(configured) if configured is not None else await self._default()
        if self._control is not None and self._control.path == path:
            return
        if self._control is not None:
            await self._control.close()
            self._control = None
        wanted = control.ControlSocket(path, self._status)
        try:
            await wanted.open()
        except OSError as error:
            remedy = ": set XDG_RUNTIME_DIR to a folder of this user, or server.control to a path"
            hint = "" if configured is not None or error.errno == errno.EADDRINUSE else remedy
            # The default socket is optional, so a user without rights for its folder gets no warning.
            level = logging.INFO if hint and isinstance(error, PermissionError) else logging.WARNING
            log.log(level, "no control socket at %s: %s%s", path, error.strerror or error, hint)
        else:
            self._control = wanted

    async def _default(self) -> Path:
        port = int((await self._status()).listeners[0].address.rpartition(":")[2])
        return self._folder / control.file_name(port)
