"""``refractium capture``: on files, pipes and running instances."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hooks_pcap.capturing import NOON, SECOND, context_of, files_in, opening, passing, read, read_file
from hooks_pcap.connections import closed, connection, tcp
from hooks_pcap.mirroring import await_captured
from refractium_hooks_pcap.hook import PcapHook
from refractium_hooks_pcap.reader import examine
from refractium_hooks_pcap.settings import PcapSettings
from support.backends import Backend, echo
from support.clients import PATIENCE, ask
from support.process import PROGRAM, Running, environment, free_port, is_listening, run, serving
from support.programs import require_program
from support.proxy import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from refractium.contract import Event

REQUEST = b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n"


@contextmanager
def capturing(path: Path, **settings: Any) -> Iterator[PcapHook]:
    """Run the hook, writing to a file, while the block runs."""
    hook = PcapHook(PcapSettings(path=str(path), **settings))
    hook.start()
    try:
        yield hook
    finally:
        hook.stop()


def write(path: Path, events: Sequence[Event], **settings: Any) -> Path:
    with capturing(path, **settings) as hook:
        hook.on_batch(events)
    return path


def numbered(number: int, **changed: Any) -> list[Event]:
    """Return the events of connection number `number`, which begins that many seconds after the first."""
    context = tcp(
        session=number, started=NOON + number * SECOND, client=("10.0.0.1", 40_000 + number), **changed
    )
    return connection(context)


@pytest.fixture
def some(tmp_path: Path) -> Path:
    """Write a capture of three sessions: one closed, one reset and one open."""
    first = numbered(1, metadata={"sni": "www.example.com"})
    *second, end = numbered(2)
    third = context_of(session=3, started=NOON + 3 * SECOND, metadata={"qname": "a b\x1b"})
    return write(
        tmp_path / "some.pcapng",
        [
            *first,
            *second,
            closed(end.context, 2, 5, "idle"),
            opening(third),
            passing(third, b"ask", third.started),
        ],
    )


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def ids_of(out: str) -> list[int]:
    return [int(line["session"], 16) for line in lines_of(out)]


# Output


def test_a_file_is_shown_as_a_table_of_sessions_in_order_of_their_start(some: Path) -> None:
    done = run("capture", some)
    assert (done.code, done.err) == (0, "")
    heading, first, second, third = done.out.splitlines()
    columns = ["session", "protocol", "name", "client", "backend", "in", "out", "state", "began", "took"]
    assert heading.split() == columns
    assert first.split()[:6] == [
        f"{1:016x}",
        "https",
        "www.example.com",
        "10.0.0.1:40001",
        "10.0.0.2:53",
        "2",
    ]
    assert (" closed " in first, " reset " in second, " open " in third) == (True, True, True)
    assert r" a\x20b\x1b " in third


def test_json_has_a_line_for_each_session(some: Path) -> None:
    done = run("capture", "--json", some)
    assert (done.code, done.err) == (0, "")
    first, second, third = lines_of(done.out)
    assert first == {
        "session": f"{1:016x}",
        "transport": "tcp",
        "protocol": "https",
        "route": "web",
        "metadata": {"sni": "www.example.com"},
        "client": "10.0.0.1:40001",
        "backend": "10.0.0.2:53",
        "bytes_in": 2,
        "bytes_out": 5,
        "state": "closed",
        "started": "2026-07-25T12:00:01Z",
        "seconds": 0.0,
    }
    assert (second["state"], third["state"]) == ("reset", "open")
    assert (third["transport"], third["metadata"]) == ("udp", {"qname": r"a\x20b\x1b"})


def test_a_pcap_file_is_shown_although_it_has_no_comments(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pcap", numbered(1))
    [line] = lines_of(run("capture", "--json", path).out)
    assert (line["session"], line["protocol"], line["route"]) == (None, None, None)
    assert (line["client"], line["bytes_in"], line["bytes_out"]) == ("10.0.0.1:40001", 2, 5)
    assert run("capture", path).out.splitlines()[1].split()[0] == "?"


def test_the_table_has_the_latest_of_very_many_sessions_and_json_has_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pcapng", [event for at in range(1_500) for event in numbered(at)])
    first, _, *rows = run("capture", path).out.splitlines()
    assert first == "500 earlier sessions are left out."
    assert [int(row.split()[0], 16) for row in rows] == list(range(500, 1_500))
    assert ids_of(run("capture", "--json", path).out) == list(range(1_500))


def test_packets_that_are_not_bare_ip_are_counted(tmp_path: Path) -> None:
    ethernet = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)
    path = tmp_path / "other.pcap"
    path.write_bytes(ethernet + struct.pack("<4I60x", 1, 1, 60, 60))
    done = run("capture", path)
    assert done.code == 0
    assert done.err.startswith("warning: 1 packets are not shown: ")


# Sources


def test_stdin_is_read_through_a_pipe(some: Path) -> None:
    done = run("capture", "-", "--json", stdin=some.read_bytes())
    assert (done.code, done.err) == (0, "")
    assert ids_of(done.out) == [1, 2, 3]


def test_sessions_are_shown_while_the_pipe_is_open(some: Path) -> None:
    process = subprocess.Popen(
        [PROGRAM, "capture", "-", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(some.read_bytes())
        process.stdin.flush()
        assert ids_of("".join(process.stdout.readline().decode() for _ in "12")) == [1, 2]
        process.stdin.close()
        assert ids_of(process.stdout.read().decode()) == [3]
        assert process.wait(PATIENCE) == 0


def test_a_fifo_is_read(tmp_path: Path, some: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(some.read_bytes()))
    writer.start()
    assert ids_of(run("capture", "--json", fifo).out) == [1, 2, 3]
    writer.join(PATIENCE)


def test_without_a_source_the_configuration_names_the_capture(tmp_path: Path, some: Path) -> None:
    (tmp_path / "refractium.toml").write_text(f'[plugins.pcap]\npath = "{some}"\n')
    (tmp_path / "other.toml").write_text('[plugins.pcap]\npath = "{protocol}.pcapng"\n')
    write(tmp_path / "web.pcapng", numbered(7))
    assert ids_of(run("capture", "--json", cwd=tmp_path).out) == [1, 2, 3]
    for arguments in (["capture", "-c", "other.toml"], ["-c", "other.toml", "capture"]):
        assert sorted(ids_of(run(*arguments, "--json", cwd=tmp_path).out)) == [1, 2, 3, 7]


def test_all_rotated_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "refractium.toml").write_text('[plugins.pcap]\npath = "a.pcapng"\nmax_bytes = 65536\n')
    events = [event for at in range(300) for event in numbered(at)]
    write(tmp_path / "a.pcapng", events, max_bytes=65_536)
    assert len(files_in(tmp_path)) > 3
    done = run("capture", "--json", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert ids_of(done.out) == list(range(300))


@contextmanager
def instance(folder: Path, port: int) -> Iterator[Running]:
    """Run an instance that serves HTTP and sends captures to viewers at a port."""
    with Backend(echo) as backend:
        (folder / "refractium.toml").write_text(
            f"""\
            [server]
            bind = "127.0.0.1"
            port = 0
            [[protocols]]
            name = "http"
            forward_to = "{backend.address}"
            hooks = ["pcap"]
            [plugins.pcap]
            listen = {port}
            """
        )
        with serving("tcp", cwd=folder) as running:
            eventually(lambda: is_listening(port), "a port for viewers")
            yield running


@pytest.mark.parametrize("source", ["", "{port}", "127.0.0.1:{port}", "TCP@localhost:{port}"])
def test_a_running_instance_is_shown(tmp_path: Path, source: str) -> None:
    port = free_port()
    arguments = [source.format(port=port)] if source else []
    with instance(tmp_path, port) as proxy:
        copy = tmp_path / "copy.pcapng"
        with Running("capture", *arguments, "--json", "-w", copy, cwd=tmp_path) as capture:
            eventually(lambda: copy.exists() and copy.stat().st_size > 0, "the beginning of the stream")
            assert ask(proxy.address, REQUEST).data == REQUEST
            [line] = lines_of(capture.await_out(r"^.*$\n")[0])
            capture.signal(signal.SIGINT)
            assert (capture.wait(), capture.err) == (0, "")
        assert (line["protocol"], line["state"]) == ("http", "closed")
        assert line["metadata"]["host"] == "www.example.com"
        assert (line["bytes_in"], line["bytes_out"]) == (len(REQUEST), len(REQUEST))
        assert proxy.terminate() == 0
    assert "session=" + line["session"] in (read_file(copy)[0].comment or "")


def test_when_the_instance_ends_the_table_is_shown(tmp_path: Path) -> None:
    port = free_port()
    with instance(tmp_path, port) as proxy:
        copy = tmp_path / "copy.pcapng"
        with Running("capture", port, "-w", copy) as capture:
            eventually(lambda: copy.exists() and copy.stat().st_size > 0, "the beginning of the stream")
            ask(proxy.address, REQUEST)
            await_captured(proxy)
            assert proxy.terminate() == 0
            assert (capture.wait(), capture.err) == (0, "")
            [_, row] = capture.out.splitlines()
    assert row.split()[1:3] == ["http", "www.example.com"]
    assert read_file(copy)


# Files that grow


@contextmanager
def following(*arguments: object, cwd: Path) -> Iterator[Running]:
    with Running("capture", "--json", "--follow", *arguments, cwd=cwd) as capture:
        yield capture
        capture.signal(signal.SIGINT)
        assert (capture.wait(), capture.err) == (0, "")


def await_session(capture: Running, number: int) -> None:
    capture.await_out(f'^{{"session":"{number:016x}"')


def test_a_file_is_followed_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    with capturing(path) as hook:
        hook.on_batch(numbered(1))
        with following(path, cwd=tmp_path) as capture:
            await_session(capture, 1)
            hook.on_batch(numbered(2))
            await_session(capture, 2)
            *begun, _ = numbered(3)
            hook.on_batch(begun)
            hook.on_batch(numbered(4))
            await_session(capture, 4)
        assert ids_of(capture.out) == [1, 2, 4, 3]
        assert lines_of(capture.out)[-1]["state"] == "open"


def test_a_record_may_arrive_in_pieces_or_be_cut_off_later(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    write(path, numbered(1))
    size = path.stat().st_size
    write(path, numbered(2))
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file, following(path, cwd=tmp_path) as capture:
        await_session(capture, 2)
        file.seek(0, os.SEEK_END)
        file.write(whole[size : size + 200])  # the start of another section, and a partial record
        time.sleep(0.6)  # time to read the partial record before it is cut off
        write(path, numbered(3))  # cuts the partial record off
        await_session(capture, 3)
    assert ids_of(capture.out) == [1, 2, 3]


def test_a_file_that_is_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pcapng", numbered(1))
    with following(path, cwd=tmp_path) as capture:
        await_session(capture, 1)
        path.rename(tmp_path / "old.pcapng")
        write(path, connection(tcp(session=2), bytes(10_000)))
        await_session(capture, 2)
        path.write_bytes(b"")  # the new content is shorter; otherwise the file would only seem to have grown
        write(path, numbered(3))
        await_session(capture, 3)


def test_rotated_files_are_followed_even_if_old_ones_are_removed(tmp_path: Path) -> None:
    (tmp_path / "refractium.toml").write_text('[plugins.pcap]\npath = "a.pcapng"\nmax_bytes = 65536\n')
    with (
        following(cwd=tmp_path) as capture,
        capturing(tmp_path / "a.pcapng", max_bytes=65_536, max_files=2) as hook,
    ):
        for at in range(5):
            context = tcp(session=at, client=("10.0.0.1", at))
            hook.on_batch(connection(context, bytes(50_000)))
            await_session(capture, at)
    assert ids_of(capture.out) == list(range(5))
    assert all(line["bytes_in"] == 50_000 for line in lines_of(capture.out))


# Passing packets on


def test_packets_are_passed_on_byte_for_byte(tmp_path: Path, some: Path) -> None:
    target = tmp_path / "copy.pcapng"
    done = run("capture", some, "-w", target)
    assert (done.code, len(done.out.splitlines())) == (0, 4)
    assert target.read_bytes() == some.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o600
    piped = subprocess.run(
        [PROGRAM, "capture", some, "-w", "-"],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert (piped.stdout, piped.stderr) == (some.read_bytes(), b"")


def test_tshark_reads_packets_piped_into_it(some: Path) -> None:
    tshark = require_program("tshark")
    line = '"$1" capture - -w - < "$2" | "$3" -n -l -r - -Y udp -T fields -e udp.length'
    done = subprocess.run(
        ["sh", "-c", line, "sh", PROGRAM, some, tshark],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout.split() == [b"11"]


def test_tshark_sees_a_running_instance_through_the_pipe(tmp_path: Path) -> None:
    tshark = require_program("tshark")
    port = free_port()
    shell = f'"$@" | "{tshark}" -n -l -i - -Y http.request -T fields -e http.host'
    with (
        instance(tmp_path, port) as proxy,
        Running("capture", "-w", "-", cwd=tmp_path, shell=shell) as piped,
    ):
        # Nothing tells when the viewer has connected, and packets that passed before are not shown to it.
        eventually(
            lambda: ask(proxy.address, REQUEST).data == REQUEST and "www.example.com\n" in piped.out,
            "a request in tshark",
        )
        assert proxy.terminate() == 0
        assert piped.wait() == 0


def test_the_command_ends_quietly_when_its_reader_leaves(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pcapng", connection(tcp(), bytes(2_000_000)))
    reader, writer = os.pipe()
    with Running("capture", path, "-w", "-", stdout=writer) as capture:
        os.close(writer)
        assert len(os.read(reader, 10)) == 10
        os.close(reader)
        assert (capture.wait(), capture.err) == (0, "")


def test_a_copy_stopped_at_any_moment_ends_with_a_whole_record(tmp_path: Path, some: Path) -> None:
    target = tmp_path / "copy.pcapng"
    whole = some.read_bytes()
    process = subprocess.Popen(
        [PROGRAM, "capture", "-", "-w", target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    with process:
        assert process.stdin is not None
        process.stdin.write(whole[:-7])
        process.stdin.flush()
        eventually(lambda: target.exists() and target.stat().st_size > 0, "the copy has begun")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert read_file(target) == read(whole)[:-1]


def test_an_existing_file_is_never_overwritten(some: Path) -> None:
    before = some.read_bytes()
    done = run("capture", some, "-w", some)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {some} exists already")
    assert some.read_bytes() == before


def test_no_copy_of_a_source_that_is_not_a_capture_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no capture at all")
    assert run("capture", "text", "-w", "copy", cwd=tmp_path).code == 1
    assert files_in(tmp_path) == ["text"]


def test_a_copy_that_cannot_be_written_is_one_message(tmp_path: Path, some: Path) -> None:
    done = run("capture", some, "-w", tmp_path / "no" / "folder")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: cannot write {tmp_path}/no/folder: No such file or directory\n"
    with (
        Path("/dev/full").open("wb") as full,
        Running("capture", some, "-w", "-", stdout=full.fileno()) as capture,
    ):
        assert capture.wait() == 1
        assert capture.err == "error: cannot write stdout: No space left on device\n"


# On a terminal


class Terminal:
    """A terminal of 100 columns and 12 lines that collects its output."""

    def __init__(self) -> None:
        self._screen, self.fd = os.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 12, 100, 0, 0))
        self.text = ""

    def await_text(self, wanted: str) -> None:
        """Read until the text has appeared."""
        deadline = time.monotonic() + PATIENCE
        while wanted not in self.text:
            readable, _, _ = select.select([self._screen], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"never on the terminal: {wanted!r}; the terminal shows {self.text!r}"
            self.text += os.read(self._screen, 65_536).decode(errors="replace")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._screen)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_the_table_is_live_and_the_screen_is_restored(
    tmp_path: Path, terminal: Terminal, number: signal.Signals
) -> None:
    path = tmp_path / "a.pcapng"
    env = {key: value for key, value in environment().items() if key != "COLUMNS"}
    with ExitStack() as stack:
        hook = stack.enter_context(capturing(path))
        # Written before the command looks for the file.
        hook.on_batch([event for at in range(40) for event in numbered(at)])
        capture = stack.enter_context(
            Running("capture", "-f", path.name, cwd=tmp_path, stdout=terminal.fd, env=env)
        )
        terminal.await_text("0 open of 40 sessions")
        *begun, _ = numbered(41)
        hook.on_batch(begun)
        terminal.await_text("1 open of 41 sessions")
        terminal.await_text("10.0.0.1:40041")
        screen = terminal.text
        capture.signal(number)
        terminal.await_text("\x1b[?1049l")  # the end of the alternate screen (xterm)
        terminal.await_text("took")
        terminal.text = terminal.text.partition("took")[2]
        terminal.await_text("10.0.0.1:40041")
        assert (capture.wait(), capture.err) == (0, "")
    pictures = screen.split("a.pcapng: ")[1:]
    assert all(picture.count("https") <= 9 for picture in pictures)
    assert "10.0.0.1:40039" in screen
    assert "10.0.0.1:40020" not in screen


def test_a_file_read_to_its_end_is_one_table_on_a_terminal_too(some: Path, terminal: Terminal) -> None:
    with Running("capture", some, stdout=terminal.fd) as capture:
        terminal.await_text(" open ")
        assert capture.wait() == 0
    assert "\x1b[?1049" not in terminal.text


def test_packets_are_not_written_to_a_terminal(some: Path, terminal: Terminal) -> None:
    with Running("capture", some, "-w", "-", stdout=terminal.fd) as capture:
        assert capture.wait() == 2
        assert "stdout is a terminal" in capture.err


# Errors


def test_a_truncated_file_is_shown_up_to_the_cut(tmp_path: Path, some: Path) -> None:
    path = tmp_path / "cut.pcapng"
    path.write_bytes(some.read_bytes()[:-30])
    done = run("capture", "--json", path, "-w", "copy", cwd=tmp_path)
    assert (done.code, ids_of(done.out)) == (0, [1, 2])
    size = len(read_rest(path))
    assert done.err == f"warning: {path}: the last record is incomplete: it has only {size} bytes\n"
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()


def read_rest(path: Path) -> bytes:
    """Return the bytes behind the last whole record."""
    with path.open("rb") as file:
        extent = examine(file)
        assert extent is not None
        file.seek(extent.end)
        return file.read()


def test_everything_before_a_damaged_record_is_shown(tmp_path: Path, some: Path) -> None:
    path = tmp_path / "damaged.pcapng"
    path.write_bytes(some.read_bytes() + b"\6\0\0\0\xff\xff\xff\xff" + bytes(50))
    done = run("capture", path)
    assert (done.code, len(done.out.splitlines())) == (1, 4)
    assert done.err == f"error: {path}: invalid block of 4294967295 bytes\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is a text\n", "this is neither pcapng nor pcap"),
        (b"", "this is empty"),
        (b"\x0a\x0d", "this is no capture"),
        (b"\x0a\x0d\x0d\x0a\x1c\0\0\0", "this is no capture"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "invalid section header: it has no byte-order magic"),
    ],
)
def test_a_file_that_is_not_a_capture_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "odd").write_bytes(content)
    for done in (run("capture", "odd", cwd=tmp_path), run("capture", "-", stdin=content)):
        assert (done.code, done.out) == (1, "")
        assert done.err in {f"error: odd: {message}\n", f"error: stdin: {message}\n"}


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("nowhere.pcapng", 1, "cannot read nowhere.pcapng: No such file or directory"),
        (".", 1, "cannot read .: Is a directory"),
        ("TCP@127.0.0.1:{port}", 1, "cannot connect to 127.0.0.1:{port}: Connection refused"),
        ("{port}", 1, "cannot connect to 127.0.0.1:{port}: Connection refused"),
        ("TCP@127.0.0.1", 2, "TCP@127.0.0.1: no port: write HOST:PORT"),
        ("tcp@127.0.0.1:99999", 2, "tcp@127.0.0.1:99999: port 99999 is not between 1 and 65535"),
        ("TCP@unix:/run/x", 2, "TCP@unix:/run/x: viewers are not served at unix sockets"),
    ],
)
def test_a_source_that_cannot_be_reached_is_named(
    tmp_path: Path, source: str, code: int, message: str
) -> None:
    port = free_port()
    done = run("capture", source.format(port=port), cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    [line] = done.err.splitlines()
    assert line.startswith("error: " + message.format(port=port))


def test_a_port_of_another_service_is_refused_as_not_a_capture() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run("capture", silent.getsockname()[1])
    assert done.code == 1
    assert done.err.endswith("no data comes, so this is not a capture\n")
    with Backend(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")) as backend:
        done = run("capture", backend.address)
    assert (done.code, done.err) == (
        1,
        f"error: TCP@{backend.address}: this is neither pcapng nor pcap\n",
    )


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 2, "plugins.pcap: there is neither listen nor path"),
        ('[plugins.pcap]\npath = "-"\n', 2, "packets go to stdout: "),
        ("[plugins.pcap]\nlisten = 0\n", 2, "the port of listen is 0"),
        ('[plugins.pcap]\nlisten = "a b"\n', 2, "no port: write HOST:PORT"),
        (
            "[plugins.pcap]\npaht = 1\n",
            2,
            "plugins.pcap.paht: unknown key for plugin 'pcap': did you mean 'path'?",
        ),
        ("[plugins.pcap\n", 2, "refractium.toml:1: "),
        ('[plugins.pcap]\npath = "{nobody}"\n', 2, "the field {nobody} is unknown"),
        ('[plugins.pcap]\npath = "later-{date}.pcapng"\n', 1, "there is no file later-{date}.pcapng yet"),
    ],
    ids=["nothing", "stdout", "any port", "no port", "unknown key", "no toml", "no name", "not yet"],
)
def test_a_configuration_without_a_usable_capture_is_one_message(
    tmp_path: Path, text: str, code: int, message: str
) -> None:
    (tmp_path / "refractium.toml").write_text(text)
    done = run("capture", cwd=tmp_path)
    assert (done.code, done.out) == (code, "")
    [line] = done.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_packets_and_json_cannot_both_go_to_stdout(some: Path) -> None:
    done = run("capture", some, "-w", "-", "--json")
    assert (done.code, done.out) == (2, "")
    assert "both want stdout" in done.err
