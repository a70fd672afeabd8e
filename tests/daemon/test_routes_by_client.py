"""Routes by client address in a file: in several processes, on several listeners, and after a reload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from support.backends import Backend, named
from support.clients import ask, connect, receive
from support.process import Running, free_port

if TYPE_CHECKING:
    from pathlib import Path

SSH: Final = b"SSH-2.0-test\r\n"
NEAR, FAR, ELSEWHERE = "127.0.1.9", "127.0.0.9", "127.0.2.9"


def route(backend: Backend, *keys: str) -> str:
    return "\n".join(("[[protocols]]", 'name = "ssh"', f'forward_to = "{backend.address}"', *keys, ""))


def answers(port: int) -> list[bytes]:
    """Return the first word of the answer to each of ten clients of different processes."""
    found = []
    for source in (NEAR, FAR, ELSEWHERE):
        told = {ask(("127.0.0.1", port), SSH, source=source).data.partition(b" ")[0] for _ in range(5)}
        found.append(b" ".join(sorted(told)))
    return found


def test_routes_by_client_hold_in_every_process_on_every_listener_and_after_a_reload(tmp_path: Path) -> None:
    both, one = free_port(), free_port()
    file = tmp_path / "refractium.toml"
    head = f'[server]\nworkers = 2\npeek_timeout_ms = 200\n[[listeners]]\nbind = "127.0.0.1"\nport = {both}\n'
    head += f'[[listeners]]\nbind = "127.0.0.1"\nport = {one}\nroutes = ["everybody"]\n'
    with Backend(named("near ")) as near, Backend(named("far ")) as far:
        lan = route(near, 'id = "lan"', 'client = ["127.0.1.0/24"]', "on_timeout = true")
        everybody = route(far, 'id = "everybody"', "on_timeout = true")
        file.write_text(head + lan + everybody)
        with Running("tcp", cwd=tmp_path) as program:
            for port in (both, one):
                program.await_out(f"Listening on tcp://127.0.0.1:{port}\n")
            assert answers(both) == [b"near", b"far", b"far"]
            assert answers(one) == [b"far", b"far", b"far"]
            for source, greeting in ((NEAR, b"near "), (FAR, b"far ")):
                with connect(("127.0.0.1", both), source=source) as silent:
                    assert receive(silent, len(greeting)) == greeting
            guarded = route(far, 'id = "everybody"', 'allow = ["127.0.0.0/24"]')
            file.write_text(
                head + lan.replace("client =", "allow =").replace("on_timeout = true", "") + guarded
            )
            program.await_err("reloaded: configuration 2")
            assert answers(both) == [b"near", b"far", b""]
            assert answers(one) == [b"", b"far", b""]
            assert program.terminate() == 0
