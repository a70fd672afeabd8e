"""Routes by name in a file, for real TLS hellos and HTTP requests: every form of a name, and a reload."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from support.backends import Backend, named
from support.clients import ask
from support.hellos import records, typical_hello
from support.process import Running, free_port

if TYPE_CHECKING:
    from pathlib import Path

FORMS: Final = {
    "exact": '"www.example.org"',
    "one": '"*.example.org"',
    "deep": '"**.example.org"',
    "regex": r"{ regex = '(api|cdn)-\d+\.example' }",
    "none": "",
}
EXPECTED: Final = {
    "www.example.org": "exact",
    "WWW.Example.ORG": "exact",
    "ftp.example.org": "one",
    "a.b.example.org": "deep",
    "API-1.example": "regex",
    "api-1.example.org": "one",
    "example.org": "none",
    "api-x.example": "none",
}


def request(protocol: str, name: str) -> bytes:
    if protocol == "http":
        return f"GET / HTTP/1.1\r\nHost: {name}:8080\r\n\r\n".encode()
    return records(typical_hello(name=name.encode()))


def test_every_form_of_a_name_holds_for_tls_and_http_and_after_a_reload(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "refractium.toml"
    server = f'[server]\nbind = "127.0.0.1"\nport = {port}\nworkers = 2\n'

    def answers(protocol: str) -> dict[str, str]:
        found = {}
        for name in EXPECTED:
            sent = request(protocol, name)
            found[name] = ask(("127.0.0.1", port), sent).data.removesuffix(sent).decode()
        return found

    with ExitStack() as stack:
        backends = {form: stack.enter_context(Backend(named(form))) for form in FORMS}

        def routes(order: list[str]) -> str:
            return "".join(
                f'[[protocols]]\nname = "{protocol}"\nforward_to = "{backends[form].address}"\n'
                + (f"{key} = {FORMS[form]}\n" if FORMS[form] else "")
                for protocol, key in (("http", "host"), ("https", "sni"))
                for form in order
            )

        file.write_text(server + routes(["none", "regex", "deep", "one", "exact"]))
        program = stack.enter_context(Running("tcp", cwd=tmp_path))
        program.await_out(f"Listening on tcp://127.0.0.1:{port}\n")
        assert answers("http") == answers("https") == EXPECTED
        file.write_text(server + routes(["exact", "none"]))
        program.await_err("reloaded: configuration 2")
        left = {name: form if form == "exact" else "none" for name, form in EXPECTED.items()}
        assert answers("http") == answers("https") == left
        assert program.terminate() == 0
