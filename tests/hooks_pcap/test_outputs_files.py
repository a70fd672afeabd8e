"""Capture files on real file systems: whole, private, rotated, and never a file of somebody else."""

from __future__ import annotations

import logging
import os
import resource
import stat
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from hooks_pcap.capturing import (
    NOON,
    PCAP,
    PCAPNG,
    SECOND,
    context_of,
    datagrams_of,
    files_in,
    numbered,
    read,
    read_file,
    records_of,
)
from refractium_hooks_pcap.outputs import CaptureFiles, FileNames, FileSeries, Form, Rotation
from refractium_hooks_pcap.outputs import files as files_module
from support.clients import PATIENCE
from support.process import able_to_import_tests
from support.programs import require_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

forms = pytest.mark.parametrize("form", [PCAPNG, PCAP], ids=["pcapng", "pcap"])


def series(path: Path, form: Form = PCAPNG, **rotation: int) -> FileSeries:
    limits = Rotation(**rotation)
    return FileSeries(FileNames.parse(str(path), numbered=limits.is_wanted), form, limits)


def write(path: Path, *datagrams: bytes, form: Form = PCAPNG) -> None:
    """Write a file as one run does."""
    files = series(path, form)
    files.write(records_of(*datagrams))
    files.close()
    assert not files.lost


def in_child(folder: Path) -> dict[str, Any]:
    """Return arguments of `subprocess.run` with which a process can import the modules of the tests."""
    return {"cwd": folder, "env": able_to_import_tests(), "timeout": PATIENCE}


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.fixture
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_RETRY", 0.0)


# Writing


@forms
def test_written_packets_are_in_the_file_at_once_and_only_its_owner_may_read_them(
    tmp_path: Path, form: Form
) -> None:
    path = tmp_path / "a"
    files = series(path, form)
    assert not path.exists()
    files.write(records_of(b"one", b""))
    files.write(records_of(b"three"))
    assert datagrams_of(read_file(path)) == [b"one", b"", b"three"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files.close()


def test_the_fields_of_a_name_decide_which_sessions_share_a_file(tmp_path: Path) -> None:
    names = FileNames.parse(f"{tmp_path}/{{protocol}}.pcapng", numbered=False)
    files = CaptureFiles(names, PCAPNG, Rotation())
    files.of(context_of(protocol="dns", route="a")).write(records_of(b"1"))
    files.of(context_of(protocol="dns", route="b")).write(records_of(b"2"))
    files.of(context_of(protocol="ntp")).write(records_of(b"3"))
    files.close()
    assert datagrams_of(read_file(tmp_path / "dns.pcapng")) == [b"1", b"2"]
    assert datagrams_of(read_file(tmp_path / "ntp.pcapng")) == [b"3"]


def test_each_write_has_whole_records_and_little_more_than_256_kib(tmp_path: Path) -> None:
    strace = require_program("strace")
    script = """
        from pathlib import Path
        from hooks_pcap.capturing import numbered, records_of
        from hooks_pcap.test_outputs_files import series
        files = series(Path("a.pcapng"))
        files.write(records_of(*numbered(1000, 5000)))
    """
    run = [strace, "-f", "-e", "trace=write,writev", "-P", str(tmp_path / "a.pcapng"), "-o", "trace"]
    subprocess.run([*run, sys.executable, "-c", textwrap.dedent(script)], **in_child(tmp_path), check=True)
    sizes = [
        int(line.rpartition("= ")[2])
        for line in (tmp_path / "trace").read_text().splitlines()
        if "write" in line
    ]
    assert 19 <= len(sizes) <= 20
    assert max(sizes) < (1 << 18) + 6000
    content = (tmp_path / "a.pcapng").read_bytes()
    assert sum(sizes) == len(content)
    found = 0
    for end in (sum(sizes[: count + 1]) for count in range(len(sizes))):
        found = len(read(content[:end]))
    assert found == 1000


# Existing files


@forms
def test_a_further_run_appends(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "a"
    for run in range(3):
        write(path, *numbered(2, start=2 * run), form=form)
    assert files_in(tmp_path) == ["a"]
    assert datagrams_of(read_file(path)) == numbered(6)


@forms
def test_a_truncated_file_is_repaired_wherever_the_cut_is(tmp_path: Path, form: Form) -> None:
    path = tmp_path / "a"
    write(path, *numbered(2, 40), form=form)
    whole = path.read_bytes()
    one = tmp_path / "one"
    write(one, *numbered(1, 40), form=form)
    for size in range(len(one.read_bytes()), len(whole)):
        path.write_bytes(whole[:size])
        write(path, b"more", form=form)
        assert datagrams_of(read_file(path)) == [*numbered(1, 40), b"more"]


@forms
def test_an_empty_file_is_used(tmp_path: Path, form: Form) -> None:
    (tmp_path / "a").touch()
    write(tmp_path / "a", b"x", form=form)
    assert datagrams_of(read_file(tmp_path / "a")) == [b"x"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PCAP, PCAPNG),
        (PCAPNG, PCAP),
        (Form(is_classic=True, snaplen=100), PCAP),
    ],
)
def test_a_capture_of_another_form_is_left_alone(
    tmp_path: Path, old: Form, new: Form, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.cap"
    write(path, b"old", form=old)
    before = path.read_bytes()
    write(path, b"new", form=new)
    assert path.read_bytes() == before
    assert datagrams_of(read_file(tmp_path / "a_2.cap")) == [b"new"]
    assert "a capture of another format" in caplog.text


def test_a_capture_damaged_in_its_middle_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write(path, *numbered(40, 60_000))
    content = bytearray(path.read_bytes())
    content[100_000:200_000] = bytes(100_000)
    path.write_bytes(content)
    write(path, b"new")
    assert path.read_bytes() == content
    assert datagrams_of(read_file(tmp_path / "a_2")) == [b"new"]


def test_a_file_that_another_writer_has_open_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.pcapng"
    first, second, third = series(path), series(path), series(path)
    for number, files in enumerate((first, second, third, first, second, third)):
        files.write(records_of(b"%d" % number))
    for files in (first, second, third):
        files.close()
    assert files_in(tmp_path) == ["a.pcapng", "a_2.pcapng", "a_3.pcapng"]
    assert [datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)] == [
        [b"0", b"3"],
        [b"1", b"4"],
        [b"2", b"5"],
    ]
    assert [line for line in caplog.messages if "another process" in line] == [
        f"{path} is being written by another process; writing packets to {tmp_path}/a_2.pcapng instead",
        f"{path} is being written by another process; writing packets to {tmp_path}/a_3.pcapng instead",
    ]


@pytest.mark.parametrize("kind", ["text", "link", "dangling", "fifo", "folder", "device"])
def test_a_file_that_is_not_a_capture_is_never_touched(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, retry_at_once: None
) -> None:
    del retry_at_once
    path, other = tmp_path / "a", tmp_path / "other"
    write(other, b"theirs")
    before = other.read_bytes()
    if kind == "text":
        path.write_text("not packets")
    elif kind == "link":
        path.symlink_to(other)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))
    else:
        pytest.skip("only root can make a device")
    files = series(path)
    for _ in range(3):
        files.write(records_of(b"x"))
    assert files.lost == 3
    files.close()
    assert files_in(tmp_path) == ["a", "other"]
    assert other.read_bytes() == before
    assert kind != "text" or path.read_text() == "not packets"
    assert len(errors(caplog)) == 1
    assert str(path) in errors(caplog)[0]


def test_a_device_that_is_always_full_is_refused(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    del tmp_path
    files = FileSeries(FileNames.parse("/dev/full", numbered=False), PCAPNG, Rotation())
    files.write(records_of(b"x"))
    files.close()
    assert files.lost == 1
    assert errors(caplog) == ["cannot write /dev/full, packets are lost: it is not a regular file"]


# Rotation


@forms
def test_a_file_is_rotated_before_it_gets_too_large(tmp_path: Path, form: Form) -> None:
    files = series(tmp_path / "a.cap", form, max_bytes=100_000)
    sent = [one for batch in range(50) for one in numbered(20, 3 + batch * 60 + 8, start=batch * 20)]
    for batch in range(50):
        files.write(records_of(*sent[batch * 20 : (batch + 1) * 20]))
    files.close()
    names = files_in(tmp_path)
    assert names == [f"a_{number:05}.cap" for number in range(1, len(names) + 1)]
    sizes = [(tmp_path / name).stat().st_size for name in names]
    assert max(sizes) <= 100_000
    assert min(sizes[:-1]) > 95_000
    assert [one for name in names for one in datagrams_of(read_file(tmp_path / name))] == sent


def test_mergecap_finds_each_packet_once_in_rotated_files(tmp_path: Path) -> None:
    mergecap = require_program("mergecap")
    files = series(tmp_path / "a.pcapng", max_bytes=70_000)
    sent = numbered(3000, 100)
    records = [record for at, one in enumerate(sent) for record in records_of(one, time=NOON + at)]
    for at in range(0, 3000, 50):
        files.write(records[at : at + 50])
    files.close()
    merged = tmp_path / "merged"
    parts = [str(tmp_path / name) for name in files_in(tmp_path)]
    assert len(parts) > 4
    subprocess.run([mergecap, "-w", str(merged), *parts], check=True, timeout=PATIENCE, capture_output=True)
    assert datagrams_of(read_file(merged)) == sent


def test_a_packet_larger_than_the_maximum_has_a_file_of_its_own(tmp_path: Path) -> None:
    files = series(tmp_path / "a", max_bytes=1000)
    sent = [bytes(2000), b"1", bytes(2000), bytes(3000), b"2", b"3"]
    files.write(records_of(*sent))
    files.close()
    contents = [datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)]
    assert contents == [sent[:1], sent[1:2], sent[2:3], sent[3:4], sent[4:]]


def test_a_file_is_rotated_when_it_is_old(tmp_path: Path) -> None:
    files = series(tmp_path / "{date}-{time}.pcapng", max_seconds=60)
    for seconds in (0, 30, 59, 60, 119, 121, 1000):
        files.write(records_of(b"%d" % seconds, time=NOON + seconds * SECOND))
    files.close()
    contents = {name: datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)}
    assert contents == {
        "20260725-120000.pcapng": [b"0", b"30", b"59"],
        "20260725-120100.pcapng": [b"60", b"119"],
        "20260725-120201.pcapng": [b"121"],
        "20260725-121640.pcapng": [b"1000"],
    }


def test_files_of_the_same_second_have_different_names(tmp_path: Path) -> None:
    files = series(tmp_path / "{time}.pcapng", max_bytes=1000)
    files.write(records_of(*numbered(3, 900)))
    files.close()
    assert files_in(tmp_path) == ["120000.pcapng", "120000_2.pcapng", "120000_3.pcapng"]


def test_only_the_newest_files_of_a_run_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "a_00003.pcapng", b"of another run")
    files = series(tmp_path / "a.pcapng", max_bytes=1000, max_files=3)
    for one in numbered(10, 900):
        files.write(records_of(one))
        assert len(files_in(tmp_path)) <= 4
    files.close()
    assert files_in(tmp_path) == ["a_00003.pcapng", "a_00011.pcapng", "a_00012.pcapng", "a_00013.pcapng"]
    assert datagrams_of(read_file(tmp_path / "a_00013.pcapng")) == numbered(1, 900, start=9)


def test_two_hooks_that_rotate_side_by_side_share_the_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = [series(tmp_path / "a.pcapng", max_bytes=1000) for _ in range(2)]
    sent = numbered(20, 900)
    for at, one in enumerate(sent):
        both[at % 2].write(records_of(one))
    for files in both:
        files.close()
    assert (
        sorted(one for name in files_in(tmp_path) for one in datagrams_of(read_file(tmp_path / name))) == sent
    )
    assert not caplog.messages


# Faults


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a small file system in a folder, and remove it after the block."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    mount, umount = require_program("mount"), require_program("umount")
    folder.mkdir()
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([umount, "--lazy", str(folder)], check=True, timeout=PATIENCE)


@forms
def test_a_full_disk_costs_packets_of_a_file_and_nothing_else(
    tmp_path: Path, form: Form, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_RETRY", 0.0)
    monkeypatch.setattr(files_module, "_CALM", 0.0)
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(20_000))
        files = series(disk / "a", form)
        sent = numbered(100, 1000)
        for at in range(0, 100, 5):
            files.write(records_of(*sent[at : at + 5]))
        kept = datagrams_of(read_file(disk / "a"))
        assert kept == sent[: len(kept)]
        assert 20 < len(kept) < 60
        assert files.lost == 100 - len(kept)
        assert errors(caplog) == [f"cannot write {disk}/a, packets are lost: No space left on device"]
        ballast.unlink()
        files.write(records_of(b"again"))
        files.write(records_of(b"and again"))
        files.close()
        assert datagrams_of(read_file(disk / "a")) == [*kept, b"again", b"and again"]
        assert caplog.messages[-1] == f"{disk}/a: {100 - len(kept)} packets were lost"


def test_a_route_that_appears_while_the_disk_is_full_is_described_later(
    tmp_path: Path, retry_at_once: None
) -> None:
    del retry_at_once
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        (disk / "ballast").write_bytes(bytes(40_000))
        files = series(disk / "a")
        files.write(records_of(b"1", route="early"))
        files.write(records_of(bytes(60_000), route="late"))
        assert files.lost == 1
        (disk / "ballast").unlink()
        files.write(records_of(b"2", route="late"))
        files.write(records_of(b"3", route="early"))
        files.close()
        found = read_file(disk / "a")
    assert datagrams_of(found) == [b"1", b"2", b"3"]
    assert [one.interface for one in found] == ["early", "late", "early"]


def test_a_write_that_stops_within_a_record_leaves_only_whole_records(tmp_path: Path) -> None:
    """A limit on the size of files stops a write at any byte, and not at a page as a full disk does."""
    script = """
        import resource, sys
        from pathlib import Path
        from hooks_pcap.capturing import numbered, records_of
        from hooks_pcap.test_outputs_files import series
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in map(int, sys.argv[1:]):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            files = series(Path(f"{limit}"))
            files.write(records_of(*numbered(30)))
            print(files.lost)
    """
    write(tmp_path / "whole", *numbered(30))
    size = (tmp_path / "whole").stat().st_size
    limits = (0, 1, 40, 120, size // 2, size // 2 + 1, size - 1, size)
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, limits)]
    done = subprocess.run(command, **in_child(tmp_path), check=True, stdout=subprocess.PIPE)
    for limit, lost in zip(limits, map(int, done.stdout.split()), strict=True):
        path = tmp_path / str(limit)
        kept = datagrams_of(read_file(path))
        assert kept == numbered(30 - lost)
        assert path.stat().st_size <= limit
        assert lost or limit == size
        assert lost < 30 or limit <= 120
        assert lost == 30 or path.stat().st_size > limit - 200


def test_a_failing_write_is_retried_only_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.symlink_to("nowhere")
    files = series(path)
    files.write(records_of(b"1"))
    path.unlink()
    files.write(records_of(b"2"))
    assert not path.exists()
    assert files.lost == 2
    files.close()


def test_writing_goes_on_after_the_folder_has_come_back(tmp_path: Path, retry_at_once: None) -> None:
    del retry_at_once
    folder = tmp_path / "folder"
    files = series(folder / "a.pcapng", max_bytes=1000)
    files.write(records_of(*numbered(2, 900)))
    assert files.lost == 2
    folder.mkdir()
    files.write(records_of(*numbered(2, 900)))
    files.close()
    assert files.lost == 2
    assert files_in(folder) == ["a_00001.pcapng", "a_00002.pcapng"]


def test_a_lack_of_descriptors_loses_packets_and_nothing_else(tmp_path: Path, retry_at_once: None) -> None:
    del retry_at_once
    files = series(tmp_path / "a", max_bytes=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files.write(records_of(b"0" * 900))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        files.write(records_of(b"1" * 900))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files.write(records_of(b"2" * 900))
    files.close()
    assert files.lost == 1
    contents = [datagrams_of(read_file(tmp_path / name)) for name in files_in(tmp_path)]
    assert contents == [[b"0" * 900], [b"2" * 900]]
