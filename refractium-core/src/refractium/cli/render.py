"""Everything that is drawn with rich."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from refractium import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from refractium.assembly import Assembly
    from refractium.routing import Route


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller whether the program ends because nobody reads; rich would end it."""
        raise  # noqa: PLE0704 - rich calls this while it handles the error


def console(*, stderr: bool = False) -> Console:
    """A console that shows names from files and wires as they are, not as markup."""
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; on a terminal too narrow for it, cells wrap rather than vanish."""
    drawn = Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in drawn.columns:
        column.overflow = "fold"
    for row in rows:
        drawn.add_row(*row)
    out = console()
    if not out.is_terminal:
        out.width = 200  # into a file or a pipe, where no line needs to end at 80
    out.print(drawn)


def banner() -> None:
    """Say what this is."""
    console().print(f"refractium {__version__} - one port, many protocols", style="bold")


def routes(assembly: Assembly) -> None:
    """Print where everything goes."""
    rows = [route_row(route) for route in (*assembly.tcp, *assembly.udp)]
    for transport, fallback in (("tcp", assembly.server.fallback_tcp), ("udp", assembly.server.fallback_udp)):
        if fallback is not None:
            rows.append(("(anything else)", transport, "", fallback))
    table(None, ("protocol", "transport", "when", "forward to"), rows)


def route_row(route: Route) -> tuple[str, str, str, str]:
    """Protocol, transport, conditions, backends."""
    when = [f"{key} {' or '.join(names)}" for key, names in route.conditions.items() if names]
    if route.takes_silent:
        when.append("or silent" if when else "also if silent")
    return route.name, route.transport.value, ", ".join(when), ", ".join(map(str, route.backends))


def route_as_dict(route: Route) -> dict[str, Any]:
    """The same for JSON."""
    return {
        "protocol": route.name,
        "transport": route.transport.value,
        **{key: list(names) for key, names in route.conditions.items() if names},
        "on_timeout": route.takes_silent,
        "forward_to": list(map(str, route.backends)),
    }
