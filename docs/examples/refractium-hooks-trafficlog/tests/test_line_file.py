import os
import resource
import stat
from pathlib import Path

import pytest
from refractium_hooks_trafficlog.line_file import LineFile


def test_lines_are_appended_to_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for line in (b"first\n", b"second\n"):
        file = LineFile(str(path))
        file.write(line)
        file.close()
    assert path.read_bytes() == b"first\nsecond\n"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR


def test_a_file_that_is_moved_away_is_followed_by_another(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = LineFile(str(path))
    file.write(b"before\n")
    path.rename(tmp_path / "log.1")
    file.write(b"between\n")
    path.rename(tmp_path / "log.2")
    path.touch()  # logrotate's "create"
    file.write(b"after\n")
    file.close()
    assert [(tmp_path / name).read_bytes() for name in ("log.1", "log.2", "log")] == [
        b"before\n",
        b"between\n",
        b"after\n",
    ]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        LineFile(str(tmp_path / "log"))
    assert not (tmp_path / "elsewhere").exists()


def test_a_full_disk_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    file = LineFile("/dev/full")
    for _ in range(1000):
        file.write(b"lost\n")
    file.close()
    assert caplog.messages == ["/dev/full: lines are lost: No space left on device"]


def test_a_line_that_was_cut_is_completed_when_there_is_room(tmp_path: Path) -> None:
    file = LineFile(str(tmp_path / "log"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for room in (len(b"whole\n"), len(b"whole\ncu"), len(b"whole\ncut, ")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            file.write({6: b"whole\n", 8: b"cut, and completed\n", 11: b"lost\n"}[room])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.write(b"after\n")
    file.close()
    assert (tmp_path / "log").read_bytes() == b"whole\ncut, and completed\nafter\n"


def test_stdout_stays_open(capfd: pytest.CaptureFixture[str]) -> None:
    file = LineFile("-")
    file.write(b"line\n")
    file.close()
    os.fstat(1)
    assert capfd.readouterr().out == "line\n"
