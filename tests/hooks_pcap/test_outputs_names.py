"""The names of capture files."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from hooks_pcap.capturing import NOON, context_of
from refractium_hooks_pcap.outputs import FileNames

if TYPE_CHECKING:
    from pathlib import Path


def first_names(path: str, count: int = 1, *, numbered: bool = False, **session: Any) -> list[str]:
    names = FileNames.parse(path, numbered=numbered).of(context_of(**session))
    return list(map(str, islice(names.paths(NOON, 7), count)))


def test_the_fields_of_a_name_are_filled_in() -> None:
    path = "/x/{protocol}_{route}_{transport}_{date}_{time}_{number}.pcapng"
    [name] = first_names(path, protocol="https", route="web")
    assert name == "/x/https_web_udp_20260725_120000_00007.pcapng"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("../../etc/passwd", "/x/_._.._etc_passwd.pcap"),
        ("..", "/x/_..pcap"),
        ("a/b\0c\nd", "/x/a_b_c_d.pcap"),
        ("ü{route}%s", "/x/__route__s.pcap"),
        ("", "/x/_.pcap"),
        ("a" * 300, f"/x/{'a' * 64}.pcap"),
    ],
)
def test_a_value_cannot_leave_its_place_in_the_name(value: str, name: str) -> None:
    assert first_names("/x/{route}.pcap", route=value) == [name]


def test_doubled_braces_are_braces() -> None:
    assert first_names("/{{x}}/{{protocol}}{protocol}") == ["/{x}/{protocol}dns"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a.pcapng", ["a_00007.pcapng", "a_00008.pcapng"]),
        ("a.b.pcapng", ["a.b_00007.pcapng", "a.b_00008.pcapng"]),
        ("a", ["a_00007", "a_00008"]),
        ("{number}-{protocol}.pcap", ["00007-dns.pcap", "00008-dns.pcap"]),
        ("{time}.pcap", ["120000.pcap", "120000_2.pcap"]),
    ],
)
def test_several_files_are_numbered(path: str, names: list[str]) -> None:
    assert first_names(path, 2, numbered=True) == names


def test_a_name_in_use_gets_a_number() -> None:
    assert first_names("/x/{protocol}.pcapng", 3) == ["/x/dns.pcapng", "/x/dns_2.pcapng", "/x/dns_3.pcapng"]


def test_sessions_share_a_file_exactly_if_their_names_are_equal() -> None:
    names = FileNames.parse("{protocol}.pcapng", numbered=False)
    assert names.of(context_of(route="a")) == names.of(context_of(route="b"))
    assert names.of(context_of(protocol="a")) != names.of(context_of(protocol="b"))
    assert names.of(context_of(protocol="a/")) == names.of(context_of(protocol="a:"))


def test_numbers_continue_after_existing_files(tmp_path: Path) -> None:
    names = FileNames.parse(f"{tmp_path}/a.b.pcapng", numbered=True)
    assert names.next_number(NOON) == 1
    for name in (
        "a.b_00009.pcapng",
        "a.b_00010.pcapng",
        "a.b_99.pcapng",
        "axb_00050.pcapng",
        "a.b_00060.pcap",
    ):
        (tmp_path / name).touch()
    assert names.next_number(NOON) == 11
