"""The program starts as root and serves as another user: the rights that are left, and errors for missing
ones."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import refractium
from refractium.observe.control import ask as ask_control
from refractium.observe.control import decode
from support.activation import handing_down
from support.backends import Backend, echo, named
from support.clients import ask, connect, receive
from support.datagrams import UdpBackend
from support.datagrams import ask as ask_datagram
from support.datagrams import echo as echo_datagram
from support.process import Running, children, environment, family, run
from support.proxy import eventually
from support.rights import Rights, for_every_user, require_root, rights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from refractium.observe.status import Status

    Network = Callable[..., None]

NOBODY: Final = pwd.getpwnam("nobody")
AS_NOBODY: Final = Rights(
    {NOBODY.pw_uid}, {NOBODY.pw_gid}, {NOBODY.pw_gid}, no_new_privileges=True, capabilities=0, bounding=0
)
PORT: Final = 443
"""A port that only root may bind; the tests that bind it run in a network of their own."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Make a folder that every user may enter, owned by the user that the program becomes."""
    require_root()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        path.chmod(0o755)
        yield path


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    if "network" in request.fixturenames:
        request.getfixturevalue("network")
    with Backend(named("a")) as found:
        yield found


def configured(folder: Path, backend: Backend, *, more: str = "", **server: object) -> Path:
    """Write a configuration, with the user nobody unless another user is given."""
    values = {
        "fallback_tcp": backend.address,
        "bind": "127.0.0.1",
        "port": 0,
        "user": "nobody",
        "control": str(folder / "control"),
        "max_connections_per_ip": 1000,
        **server,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
    path = folder / "refractium.toml"
    new = folder / "new"
    new.write_text("\n".join(["[server]", *lines, more]), encoding="utf-8")
    new.rename(path)
    return path


def started(folder: Path, *, then: str = "", **running: Any) -> Running:
    place = Path(tempfile.mkdtemp(dir=folder))
    # A process of another user could not write the data of a coverage measurement.
    running.setdefault("env", {key: of for key, of in environment().items() if "COVERAGE" not in key})
    return Running("-c", folder / "refractium.toml", shell=for_every_user(place, then), **running)


def status(folder: Path) -> Status:
    return decode(ask_control([folder / "control"]))


def assert_rights(program: Running, processes: int, wanted: Rights) -> None:
    """Wait until `processes` processes run, and assert the rights of each of their threads."""
    eventually(lambda: len(family(program.pid)) == processes, f"there are {processes} processes")
    for pid in family(program.pid):
        assert {*map(str, rights_of(pid))} == {str(wanted)}


def sockets_on(port: int, kind: str) -> int:
    """Return the number of sockets on an IPv4 port in the network of this thread (proc(5), net)."""
    lines = Path(f"/proc/thread-self/net/{kind}").read_text().splitlines()[1:]
    states = [line.split()[3] for line in lines if line.split()[1].endswith(f":{port:04X}")]
    return sum(state in {"0A", "07"} for state in states)  # TCP_LISTEN, TCP_CLOSE


def oom_score_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_has_the_rights_of_the_user_and_no_more(
    network: Network, backend: Backend, folder: Path, workers: int
) -> None:
    del network
    captures = f'[plugins.pcap]\npath = "{folder}/a.pcapng"\n'
    with UdpBackend(echo_datagram) as datagrams:
        configured(
            folder,
            backend,
            more=captures,
            port=PORT,
            workers=workers,
            hooks=["pcap"],
            fallback_udp=datagrams.address,
            control=None,
        )
        with started(folder) as program:
            program.await_out(f"Listening on udp://127.0.0.1:{PORT}")

            def is_served() -> None:
                for _ in range(5 * workers):
                    assert ask(program.address, b"hello").data == b"ahello"
                    assert ask_datagram(program.address, b"hello") == b"hello"

            processes = 2 if workers == 1 else 1 + 2 * workers
            assert_rights(program, processes, AS_NOBODY)
            is_served()
            # Each worker has a socket of its own, although no worker could bind it.
            assert [sockets_on(PORT, kind) for kind in ("tcp", "udp")] == [workers, workers]
            assert oom_score_of(program.pid) == oom_score_of(os.getpid())
            for pid in family(program.pid)[1:]:
                eventually(
                    lambda pid=pid: oom_score_of(pid) > oom_score_of(program.pid),  # type: ignore[misc]
                    "the process is killed before the program",
                )

            killed = children(program.pid)[0]  # either a worker or the process of the hook
            os.kill(killed, signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{killed}").exists(), "the killed process is gone")
            assert_rights(program, processes, AS_NOBODY)
            is_served()

            program.signal(signal.SIGHUP)
            program.await_err("configuration 2 is in force")
            assert_rights(program, processes, AS_NOBODY)
            is_served()

            place = Path(f"/run/refractium-nobody/refractium-{PORT}.sock")
            assert (place.stat().st_uid, place.stat().st_mode & 0o777) == (NOBODY.pw_uid, 0o600)
            assert run("status", "-p", PORT).code == 0
            assert program.terminate() == 0
            assert "Traceback" not in program.err
            assert not place.exists()
            with suppress(OSError):
                place.parent.rmdir()
            assert (folder / "a.pcapng").stat().st_uid == NOBODY.pw_uid


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_every_process_on_handed_down_sockets_has_the_rights_of_the_user(
    backend: Backend, folder: Path, workers: int
) -> None:
    configured(folder, backend, workers=workers)
    place = Path(tempfile.mkdtemp(dir=folder))
    with socket.create_server(("127.0.0.1", 0)) as sock:
        line = for_every_user(place).removesuffix('"$@"') + handing_down(sock)
        env = {key: of for key, of in environment().items() if "COVERAGE" not in key}
        with Running("tcp", cwd=folder, env=env, shell=line, pass_fds=[sock.fileno()]) as program:
            program.await_out("Listening on tcp://")
            assert ask(sock.getsockname(), b"x").data == b"ax"
            assert_rights(program, 2 if workers == 1 else 2 + workers, AS_NOBODY)
            assert program.terminate() == 0


@pytest.mark.slow
def test_numeric_ids_need_no_passwd_entry_and_a_user_brings_its_groups(
    backend: Backend, folder: Path
) -> None:
    configured(folder, backend, user=54321, group=65432)
    with started(folder) as program:
        program.await_out("Listening on")
        assert_rights(program, 1, AS_NOBODY._replace(uids={54321}, gids={65432}, groups={65432}))
        program.await_err("no control socket at .*: Permission denied")
        assert program.terminate() == 0
    (folder / "group").write_text("nogroup:x:65534:\nother:x:4711:someone,nobody\ntheirs:x:4712:someone\n")
    configured(folder, backend)
    with started(folder, then=f"mount --bind {folder}/group /etc/group") as program:
        program.await_out("Listening on")
        assert_rights(program, 1, AS_NOBODY._replace(groups={NOBODY.pw_gid, 4711}))
        assert program.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_that_needs_lost_rights_changes_nothing_and_names_the_remedy(
    network: Network, backend: Backend, folder: Path, workers: int
) -> None:
    del network
    configured(folder, backend, port=PORT, workers=workers, hot_reload=False)
    with started(folder) as program:
        program.await_out("Listening on")
        for change in ({"port": 444}, {"bind": "0.0.0.0"}):
            server = {"port": PORT, "workers": workers, "hot_reload": False, **change}
            configured(folder, backend, more="", **server)
            before = program.err.count("not reloaded")
            program.signal(signal.SIGHUP)
            eventually(
                lambda before=before: program.err.count("not reloaded") > before,  # type: ignore[misc]
                "the reload is refused",
            )
            assert ask(("127.0.0.1", PORT), b"hello").data == b"ahello"
            (reason,) = status(folder).last_reload.errors  # type: ignore[union-attr]
            assert "user nobody has neither: restart Refractium, or lower net.ipv4" in reason
            assert reason in program.err
        assert status(folder).generation == 1
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("444")
        configured(folder, backend, port=444, workers=workers, hot_reload=False)
        program.signal(signal.SIGHUP)
        program.await_err("configuration 2 is in force")
        for _ in range(5 * workers):
            assert ask(("127.0.0.1", 444), b"hello").data == b"ahello"
        assert sockets_on(444, "tcp") == workers
        assert program.terminate() == 0


def test_a_file_that_the_user_cannot_read_causes_a_warning_until_it_is_readable(
    backend: Backend, folder: Path
) -> None:
    file = configured(folder, backend)
    file.chmod(0o600)
    os.chown(folder, 0, 0)
    with started(folder) as program:
        program.await_err(
            "warning server.user: nobody cannot read .*refractium.toml, so every reload will fail"
        )
        program.signal(signal.SIGHUP)
        program.await_err("not reloaded: .*refractium.toml: Permission denied")
        assert ask(program.address, b"hello").data == b"ahello"
        eventually(program.watches_files, "the program watches its configuration")
        assert program.err.count("not reloaded") == 1
        file.chmod(0o644)
        program.await_err("configuration 2 is in force")
        assert program.terminate() == 0


def test_check_warns_about_a_file_that_the_user_cannot_read(backend: Backend, folder: Path) -> None:
    file = configured(folder, backend)
    assert "server.user" not in run("check", "-c", file).err
    file.chmod(0o600)
    os.chown(folder, 0, 0)
    folder.chmod(0o700)
    done = run("check", "-c", file)
    assert done.code == 0
    assert f"warning: {file}:5: server.user: nobody cannot read {file}, so every reload will fail" in done.err


def test_a_change_of_the_user_needs_a_restart(backend: Backend, folder: Path) -> None:
    configured(folder, backend)
    with started(folder) as program:
        program.await_out("Listening on")
        eventually(program.watches_files, "the program watches its configuration")
        configured(folder, backend, user=NOBODY.pw_uid)  # the user that it runs as already
        program.await_err("configuration 2 is in force")
        assert "until a restart" not in program.err
        configured(folder, backend, user="daemon")
        program.await_err("warning server.user: .* runs as nobody until a restart")
        program.await_err("configuration 3 is in force")
        assert_rights(program, 1, AS_NOBODY)
        assert program.terminate() == 0


@pytest.mark.slow
def test_only_root_can_become_another_user(network: Network, backend: Backend, folder: Path) -> None:
    del network
    as_nobody = f"exec setpriv --reuid={NOBODY.pw_uid} --regid={NOBODY.pw_gid} --clear-groups"
    configured(folder, backend, user="daemon")
    with started(folder, then=f'{as_nobody} "$@"') as program:
        assert program.wait() == 2
        assert "refractium.toml:5: server.user: only root can run as another user or group" in program.err
        assert "Listening" not in program.out
    # Becoming its own user takes no right, and the process that binds keeps the right to bind.
    configured(folder, backend, port=PORT, workers=2)
    may_bind = "--inh-caps=+net_bind_service --ambient-caps=+net_bind_service"
    with started(folder, then=f'{as_nobody} {may_bind} "$@"') as program:
        program.await_out(f"Listening on tcp://127.0.0.1:{PORT}")
        assert ask(program.address, b"hello").data == b"ahello"
        for pid in family(program.pid):
            for rights in rights_of(pid):
                assert (rights.uids, rights.no_new_privileges) == ({NOBODY.pw_uid}, True)
                assert pid == program.pid or rights.capabilities == 0
        eventually(program.watches_files, "the program watches its configuration")
        configured(folder, backend, port=444, workers=2)
        program.await_err("configuration 2 is in force")
        assert ask(("127.0.0.1", 444), b"hello").data == b"ahello"
        assert program.terminate() == 0


def test_without_the_right_to_change_the_user_the_start_fails(backend: Backend, folder: Path) -> None:
    configured(folder, backend)
    drop = 'exec setpriv --bounding-set=-setuid --inh-caps=-setuid "$@"'
    with started(folder, then=drop) as program:
        assert program.wait() == 1
        assert (
            "cannot run as user nobody: Operation not permitted: a container must leave root" in program.err
        )
        assert "Listening" not in program.out


def test_a_user_who_cannot_read_the_program_is_an_error_at_the_start(backend: Backend, folder: Path) -> None:
    configured(folder, backend)
    package = refractium.__file__
    closed = f"cp {package} {folder}/closed && chmod 600 {folder}/closed"
    with started(folder, then=f"{closed} && mount --bind {folder}/closed {package}") as program:
        assert program.wait() == 1
        assert f"user nobody cannot read {package}: install Python and Refractium where" in program.err
        assert "Listening" not in program.out


def test_a_process_of_another_user_still_counts_its_descriptors(folder: Path) -> None:
    with Backend(echo) as backend, ExitStack() as stack:
        configured(folder, backend)
        with started(folder, then="ulimit -n 100") as program:
            program.await_out("Listening on")
            clients = [stack.enter_context(connect(program.address)) for _ in range(150)]
            for client in clients:
                client.sendall(b"?")
            program.await_err("cannot accept: Too many open files")
            for client in clients:  # each client that leaves makes room for a waiting one
                assert receive(client, 1) == b"?"
                client.close()
            assert program.terminate() == 0


def test_a_control_socket_that_the_user_cannot_make_causes_a_warning(backend: Backend, folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir()
    configured(folder, backend, control=str(closed / "control"))
    with started(folder) as program:
        program.await_err("warning no control socket at .*/closed/control: Permission denied")
        program.await_out("Listening on")
        assert ask(program.address, b"hello").data == b"ahello"
        assert program.terminate() == 0
