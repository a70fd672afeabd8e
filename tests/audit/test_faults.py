"""Each rule finds the fault that is planted into a sound new plugin, and nothing else."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from refractium.audit import RULES, Limits, audit
from refractium.scaffold import KINDS, write_package
from support.process import TIMEOUT

ID: Final = "planted"
PYPROJECT: Final = "pyproject.toml"
CODE: Final = "src/PACKAGE/__init__.py"
SAMPLE: Final = "src/PACKAGE/samples/hello.bin"
COMMAND: Final = "src/PACKAGE/command.py"
IDENTIFY: Final = "    def identify(self, data: bytes) -> Identification:\n"
IMPORTS: Final = "from __future__ import annotations\n"
MATCHES: Final = 'return ProtocolMatch({"host": host} if host else {})'
ORDER: Final = "        del client\n"
ON_CLOSE: Final = "        largest = self._largest.pop(context.session)\n"
CONNECT: Final = "        reader, writer = await endpoint.connect()\n"
READ: Final = "            received = await reader.readexactly(len(expected))\n"
BROKEN_COMMAND: Final = """\
class Broken(click.Command):
    def get_params(self, context):
        raise OSError

@click.command("planted", cls=Broken)"""
LIMITS: Final = Limits(cpu_seconds=2, seconds=30)


@dataclass(frozen=True)
class Fault:
    """A fault in a new plugin.

    Attributes:
        code: the rule that finds the fault.
        kind: the kind of the plugin.
        file: the file to change, with ``PACKAGE`` in place of the name of the package.
        old: a text in the file; empty for the whole file.
        new: the text in its place.
        found: a part of what the finding says.
        with_: other rules that this fault must also break.
    """

    code: str
    kind: str
    file: str
    old: str
    new: str
    found: str
    with_: tuple[str, ...] = ()


def asked(statement: str) -> str:
    """Return the beginning of `identify`, with a statement before everything else."""
    return f"{IDENTIFY}        {statement}\n"


def at_import(statement: str) -> str:
    modules = "logging, os, signal, socket, subprocess, sys, threading, time"
    return f"{IMPORTS}import {modules}\n{statement}\n"


def in_protocol(code: str, old: str, new: str, found: str, *with_: str) -> Fault:
    return Fault(code, "protocol", CODE, old, new, found, with_)


def in_project(code: str, old: str, new: str, found: str, *with_: str) -> Fault:
    return Fault(code, "protocol", PYPROJECT, old, new, found, with_)


def importing(code: str, statement: str, found: str, *with_: str, kind: str = "balancer") -> Fault:
    return Fault(code, kind, CODE, IMPORTS, at_import(statement), found, with_)


EFFECTS: Final = {
    "os.environ['ANY'] = '1'": "changes the environment",
    "open('file', 'w').close()": "writes the file file",
    "os.remove(b'file')": "changes the file file",
    "subprocess.run(['true'])": "starts a program",
    "socket.getaddrinfo('localhost', 1)": "looks a host name up",
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)": "changes the handler of a signal",
    "logging.basicConfig()": "changes the handlers or the level of the root logger",
    "socket.setdefaulttimeout(3)": "changes the default timeout of sockets",
}
"""Statements that change something outside of a plugin, with the words of the finding."""

PROJECT = (
    in_project(
        "entry-point", "[project.entry-points.refractium]", "[project.entry-points.other]", "no entry point"
    ),
    in_project(
        "entry-point", '"refractium_proto_planted"\n\n', '"refractium_proto_plant"\n\n', "No module named"
    ),
    in_project(
        "entry-point", '"refractium_proto_planted"\n\n', '"refractium_proto_planted:it"\n\n', "no attribute"
    ),
    in_project("entry-point", '"refractium_proto_planted"\n\n', '"not a module"\n\n', "not a module"),
    in_project("id", 'planted = "', 'Planted = "', "Planted", "id-name"),
    in_project("id-name", 'planted = "', 'other = "', "'planted'", "distribution-name"),
    in_project(
        "distribution-name", 'name = "refractium-proto-planted"', 'name = "planted"', "not 'refractium-proto-"
    ),
    in_project("summary", 'description = "', 'description = ""\n# "', "set description"),
    in_project("core-missing", "refractium-core>=0.1.0,<1", "packaging>=1", "no dependency"),
    in_project("core-lower-bound", "refractium-core>=0.1.0,<1", "refractium-core<1", "refractium-core<1"),
    in_project("core-upper-bound", "refractium-core>=0.1.0,<1", "Refractium_Core>=0.1.0", ">=0.1.0"),
    in_project("core-version", "refractium-core>=0.1.0,<1", "refractium-core>=7,<8", "this is version"),
    in_project("python-range", 'requires-python = ">=3.11"\n', "", "absent"),
    in_project("python-range", '">=3.11"\n', '"<4"\n', "no lower bound"),
    in_project("python-version", '">=3.11"\n', '">=3.99"\n', "this is Python"),
    in_project(
        "dependency-missing",
        'dependencies = ["',
        'dependencies = ["nobody-has-this>=3", "packaging>=999", "',
        "pip install 'nobody-has-this>=3' 'packaging>=999'",
    ),
    in_protocol("undeclared-import", IMPORTS, f"{IMPORTS}import rich\n", "imports rich"),
    in_protocol(
        "undeclared-import", IMPORTS, f"{IMPORTS}def late():\n    import nobody_has\n", "imports nobody_has"
    ),
    in_protocol(
        "private-import",
        IMPORTS,
        f"{IMPORTS}from refractium.contract.protocol import NO as no\n",
        "contract.protocol",
    ),
    in_protocol("private-import", IMPORTS, f"{IMPORTS}from refractium import Route\n", "refractium.Route"),
)
IMPORT = (
    importing("import-fails", "import nobody_has_this_module", "No module named", "undeclared-import"),
    importing("import-fails", "1 / 0", "ZeroDivisionError"),
    importing("import-fails", "sys.no_such_name", "AttributeError"),
    importing("import-fails", "sys.exit(0)", "SystemExit"),
    importing("import-fails", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    importing("import-fails", "def f(:", "SyntaxError"),
    importing("import-output", "print('hello you')", "hello you"),
    importing("import-output", "os.write(1, b'hello you')", "hello you"),
    importing("import-output", "logging.getLogger('x').warning('hello you')", "hello you"),
    importing(
        "import-threads", "threading.Thread(target=time.sleep, args=(999,), name='mine').start()", "mine"
    ),
    importing("import-effects", "\n".join(EFFECTS), "; ".join(EFFECTS.values())),
    importing(
        "import-slow",
        "end = time.thread_time() + 0.6\nwhile time.thread_time() < end: pass",
        "ms of processor",
    ),
    importing("api-version", "refractium_api_version = 99", "99"),
)
OBJECTS = (
    Fault("hookspec", "hook", CODE, "def refractium_hooks()", "def refractium_hook()", "refractium_hook"),
    Fault("hookspec", "hook", CODE, "def refractium_hooks()", "def refractium_hooks(what)", "what"),
    Fault("hookspec", "hook", CODE, "    return [", "    return 1 / 0, [", "ZeroDivisionError"),
    Fault(
        "hookspec",
        "hook",
        CODE,
        "    return [PlantedPacketHook]",
        "    return PlantedPacketHook",
        "not iterable",
    ),
    Fault("no-objects", "hook", CODE, "@hookimpl\n", "", "no function"),
    Fault("attributes", "hook", CODE, '    name = "planted"', '    name = "Planted"', "Planted"),
    Fault("attributes", "balancer", CODE, "    def order", "    async def order", "async"),
    Fault("attributes", "health-check", CODE, "    settings = Settings\n", "", "settings"),
    Fault("attributes", "health-check", CODE, "    greeting: str", "    rise: str", "rise"),
    Fault("attributes", "command", CODE, "    return [command]", "    return [print]", "click.Command"),
    in_protocol("attributes", "    max_bytes = MAX_BYTES", "    max_bytes = '255'", "max_bytes"),
    in_protocol("attributes", "    prefixes = (MAGIC,)", "    prefixes = MAGIC", "prefixes"),
    in_protocol(
        "name-twice", "return [PlantedProtocol()]", "return [PlantedProtocol(), PlantedProtocol()]", "2"
    ),
    in_protocol("name-built-in", '    name = "planted"', '    name = "any"', "built in", "id-name"),
    in_protocol("name-taken", '    name = "planted"', '    name = "ssh"', "refractium-proto-ssh", "id-name"),
    in_protocol("summary", '    summary = "', '    summary = "" # "', "empty"),
)
PROTOCOL = (
    Fault("sample-unknown", "protocol", SAMPLE, "", "GET / HTTP/1.1\r\n\r\n", "no protocol matches"),
    Fault("no-samples", "protocol", SAMPLE, "", "", "no sample"),
    in_protocol(
        "not-total", IDENTIFY, asked("data[200:].index(b'x') if len(data) > 200 else 0"), "ValueError"
    ),
    in_protocol(
        "not-total", IDENTIFY, asked("sys.exit() if len(data) == 3 else None\n        import sys"), "Error"
    ),
    in_protocol(
        "not-stateless",
        IDENTIFY,
        asked("self.n = getattr(self, 'n', 0) + 1\n        if self.n % 2: return NO"),
        "then",
        "sample-unknown",
    ),
    in_protocol(
        "not-bounded",
        "        if not end:\n",
        "        if not end:\n            return NEED_MORE\n",
        "max_bytes",
    ),
    in_protocol("not-monotone", IDENTIFY, asked("if len(data) == 9: return NO"), "then"),
    in_protocol("not-monotone", '"host": host}', '"host": str(len(data))}', "then"),
    in_protocol(
        "not-patient",
        "return NEED_MORE if",
        "from refractium.contract import NeedMore\n            return NeedMore(99) if",
        "needs 99",
    ),
    in_protocol("answer-type", "else NO", "else None", "None is not an answer"),
    in_protocol("answer-type", "return NEED_MORE if", "return True if", "True is not an answer"),
    in_protocol("metadata-key", '{"host": host}', '{"name": host}', "name"),
    in_protocol("metadata-type", "if host else {})", 'if host else {"host": None})', "host"),
    in_protocol(
        "prefix-undeclared",
        "    prefixes = (MAGIC,)",
        '    prefixes = (b"other ",)',
        "unlike prefixes",
        "prefix-rejected",
    ),
    in_protocol(
        "prefix-rejected", "    prefixes = (MAGIC,)", "    prefixes = (MAGIC, b'PLANTED')", "PLANTED"
    ),
    in_protocol(
        "identify-slow", IDENTIFY, asked("for _ in range(len(data) * 500): pass"), "ms of processor time"
    ),
    in_protocol("identify-effects", IDENTIFY, asked("open('log', 'a').close()"), "writes the file log"),
    in_protocol(
        "settings",
        IDENTIFY,
        f"    def with_settings(self, settings): return 7\n\n{IDENTIFY}",
        "not a Protocol",
    ),
    in_protocol(
        "settings",
        IDENTIFY,
        f"    def with_settings(self, settings): return self.settings.x\n\n{IDENTIFY}",
        "AttributeError",
    ),
    in_protocol(
        "conflict",
        IDENTIFY,
        asked(
            "if data[:4] == b'SSH-'[:len(data)]: return ProtocolMatch() if data[3:] else NEED_MORE"
        ).replace(IDENTIFY, f"    prefixes = ()\n\n{IDENTIFY}"),
        "ssh/tcp",
    ),
)
OTHERS = (
    Fault(
        "hook-fails",
        "hook",
        CODE,
        ON_CLOSE,
        f"{ON_CLOSE}        1 / largest[Direction.INBOUND]\n",
        "ZeroDivisionError",
    ),
    Fault(
        "hook-process",
        "hook",
        CODE,
        "    return [PlantedPacketHook]",
        '    return [type("Made", (PlantedPacketHook,), {"isolation": "process"})]',
        "Made",
    ),
    Fault(
        "settings-problems",
        "hook",
        CODE,
        "        if settings.min_bytes < 0:",
        "        if settings.min_byte < 0:",
        "min_byte",
    ),
    Fault(
        "settings-problems",
        "health-check",
        CODE,
        '            yield "greeting", "must not be empty"',
        "            pass\n        yield 1",
        "TypeError",
    ),
    Fault("balancer-fails", "balancer", CODE, ORDER, f"{ORDER}        backends[1]\n", "IndexError"),
    Fault("balancer-fails", "balancer", CODE, ORDER, f"{ORDER}        return None\n", "TypeError"),
    Fault("balancer-order", "balancer", CODE, ORDER, f"{ORDER}        return []\n", "no backend"),
    Fault(
        "balancer-order", "balancer", CODE, ORDER, f"{ORDER}        return [*backends, *backends]\n", "twice"
    ),
    Fault(
        "balancer-order",
        "balancer",
        CODE,
        ORDER,
        f"{ORDER}        return [b.address for b in backends]\n",
        "not one of",
    ),
    Fault(
        "balancer-slow",
        "balancer",
        CODE,
        ORDER,
        f"{ORDER}        [0 for a in backends for b in backends for _ in range(30)]\n",
        "ms for 100",
    ),
    Fault("health-answer", "health-check", CODE, CONNECT, "        return None\n" + CONNECT, "passes"),
    Fault("health-answer", "health-check", CODE, CONNECT, "        return True\n" + CONNECT, "True"),
    Fault(
        "health-answer", "health-check", CODE, CONNECT, "        raise SystemExit\n" + CONNECT, "SystemExit"
    ),
    Fault("health-answer", "health-check", CODE, CONNECT, "        self.x\n" + CONNECT, "AttributeError"),
    Fault(
        "health-blocks",
        "health-check",
        CODE,
        CONNECT,
        CONNECT + "        import time\n        time.sleep(2)\n",
        "blocks",
    ),
    Fault(
        "health-blocks",
        "health-check",
        CODE,
        READ,
        f"            import asyncio\n            while True:\n                try:\n        {READ}"
        "                except asyncio.CancelledError: pass\n",
        "cancellation",
    ),
    Fault(
        "health-leaks",
        "health-check",
        CODE,
        CONNECT,
        "        self.sock = await endpoint.open_socket()\n" + CONNECT,
        "open",
    ),
    Fault("command-help", "command", COMMAND, '@click.command("planted")', BROKEN_COMMAND, "--help"),
)
PROCESS = (
    importing("process-ends", "os._exit(0)", "status 0"),
    importing("process-ends", "os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    importing("process-ends", "os.killpg(0, signal.SIGKILL)", "SIGKILL"),
    importing("time-limit", "while True: pass", "processor time, at __init__.py"),
    in_protocol("time-limit", IDENTIFY, asked("while len(data) == 100: pass"), "in identify"),
    in_protocol(
        "process-ends", IDENTIFY, asked("if len(data) == 100: __import__('os')._exit(0)"), "identify"
    ),
    Fault("time-limit", "hook", CODE, ON_CLOSE, f"{ON_CLOSE}        while True: pass\n", "in on_close"),
    Fault("time-limit", "balancer", CODE, ORDER, f"{ORDER}        while True: pass\n", "in order"),
    Fault("process-ends", "health-check", CODE, CONNECT, "        import os; os._exit(0)\n", "status 0"),
    in_protocol(
        "check-fails",
        '    summary = "',
        '    summary = property(lambda self: 1 / 0) # "',
        "ZeroDivisionError",
    ),
    importing("process-ends", "os.closerange(0, 99)", "status 1"),
    importing("process-ends", "import ctypes; ctypes.string_at(0)", "SIGSEGV"),
)
FAULTS: Final = (*PROJECT, *IMPORT, *OBJECTS, *PROTOCOL, *OTHERS, *PROCESS)


def plant(fault: Fault, parent: Path) -> Path:
    """Write a new plugin with a fault, and return its folder."""
    folder = write_package(KINDS[fault.kind], ID, parent)
    file = folder / fault.file.replace("PACKAGE", folder.name.replace("-", "_"))
    text = file.read_text()
    assert fault.old in text
    if new := text.replace(fault.old, fault.new) if fault.old else fault.new:
        file.write_text(new)
    else:
        file.unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda one: one.code)
def test_a_planted_fault_is_found_by_its_rule(fault: Fault, tmp_path: Path) -> None:
    found = audit(str(plant(fault, tmp_path)), LIMITS).findings
    assert {one.rule.code for one in found} == {fault.code, *fault.with_}, [
        (one.rule.code, one.subject, one.found) for one in found
    ]
    assert any(fault.found in one.found for one in found if one.rule.code == fault.code), found


def test_a_fault_is_planted_for_every_rule() -> None:
    assert {fault.code for fault in FAULTS} == set(RULES)


def test_several_faults_are_found_at_once(tmp_path: Path) -> None:
    folder = write_package(KINDS["protocol"], ID, tmp_path)
    code = folder / "src/refractium_proto_planted/__init__.py"
    text = code.read_text().replace(IMPORTS, at_import("print('hello')"))
    code.write_text(
        text.replace(MATCHES, "return ProtocolMatch({'size': 7})").replace("else NO", "else None")
    )
    project = folder / PYPROJECT
    project.write_text(project.read_text().replace(",<1", "").replace('requires-python = ">=3.11"\n', ""))
    found = audit(str(folder)).findings
    assert {one.rule.code for one in found} == {
        *("python-range", "core-upper-bound", "import-output", "answer-type", "metadata-key")
    }


def test_a_sample_that_another_installed_protocol_takes_is_a_conflict(tmp_path: Path) -> None:
    folder = write_package(KINDS["protocol"], ID, tmp_path)
    for name in (CODE, SAMPLE):
        file = folder / name.replace("PACKAGE", "refractium_proto_planted")
        file.write_text(file.read_text().replace("planted/1 ", "SSH-2.0-planted/1 "))
    (found,) = audit(str(folder)).findings
    assert found.rule.code == "conflict"
    assert "ssh/tcp, exact, matches the sample hello.bin of protocol planted/tcp" in found.found


def test_a_weaker_protocol_takes_no_client_of_a_stronger_protocol(tmp_path: Path) -> None:
    (conflict,) = (one for one in PROTOCOL if one.code == "conflict")
    code = plant(conflict, tmp_path) / "src/refractium_proto_planted/__init__.py"
    code.write_text(code.read_text().replace("Strength.EXACT", "Strength.WEAK"))
    assert not audit(str(code.parents[2])).findings


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "time.sleep(999)",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "os.read(os.pipe()[0], 1)",
    ],
)
def test_an_import_without_end_is_ended(statement: str, tmp_path: Path) -> None:
    fault = importing("time-limit", statement, "")
    (found,) = audit(str(plant(fault, tmp_path)), Limits(seconds=5)).findings
    assert found.rule.code == "time-limit"
    assert "has not ended after 5 s" in found.found


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement", ["os.fork()", "os.fork() or time.sleep(999)", "subprocess.Popen(['sleep', '999'])"]
)
def test_a_process_that_a_plugin_starts_neither_reports_nor_stays(statement: str, tmp_path: Path) -> None:
    group = tmp_path / "group"
    note = f"with open({str(group)!r}, 'x') as file: file.write(str(os.getpgid(0)))"
    folder = plant(importing("import-effects", f"{note}\n{statement}", ""), tmp_path)
    (found,) = audit(str(folder)).findings
    assert found.rule.code == "import-effects"
    assert "forks the process" in found.found or "starts a program" in found.found
    until = time.monotonic() + TIMEOUT
    while alive(group.read_text()) and time.monotonic() < until:  # SIGKILL ends a process soon, not at once
        time.sleep(0.01)
    assert not alive(group.read_text())


def alive(group: str) -> list[str]:
    """Return the processes of a group, without processes that have ended and that nobody has waited for."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if its_group == group and state not in "ZX":
                found.append(file.parent.name)
    return found


def test_the_folder_of_a_project_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_package(KINDS["hook"], ID, tmp_path / "project")
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("HOME", "TMPDIR"):
        monkeypatch.setenv(variable, str(home))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    code = folder / "src/refractium_hooks_planted/__init__.py"
    code.write_text(code.read_text().replace(ON_CLOSE, f"{ON_CLOSE}        open('file', 'w').close()\n"))
    before[code] = code.stat().st_mtime_ns
    assert not audit(str(folder)).findings
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not list(home.iterdir())
