"""The logs of a run: rich on a terminal, plain lines for files and journals, JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from refractium.daemon.access_log import AccessLog
from refractium.logs import install

if TYPE_CHECKING:
    from refractium.proxy.summary import Reporter


def configure(style: str | None, *, debug: bool) -> Reporter:
    """Send all logs to stderr.

    Args:
        style: ``rich``, ``plain`` or ``json``; None selects rich on a terminal, else plain.
        debug: whether to show the log lines that are for developers only.

    Returns:
        The access log.
    """
    handler = install(style or ("rich" if sys.stderr.isatty() else "plain"))
    access = AccessLog(handler, debug=debug)
    handler.before, handler.before_end = access.flush, access.end
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    logging.getLogger("refractium").setLevel(logging.DEBUG if debug else logging.INFO)
    return access
