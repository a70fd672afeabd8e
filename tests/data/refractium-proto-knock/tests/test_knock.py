from refractium_proto_knock import MAX_BYTES, knock

from refractium.contract import ProtocolMatch
from refractium.testing import assert_identifies, assert_rejects


def test_a_knock_is_recognised_and_names_its_house() -> None:
    assert_identifies(knock, b"KNOCK\nGreen.example\nhello?", metadata={"host": "green.example"})


def test_a_house_that_has_not_ended_at_the_bound_stays_unknown() -> None:
    match = assert_identifies(knock, b"KNOCK\ngre")
    assert match.pending == {"host"}
    match = assert_identifies(knock, b"KNOCK\n".ljust(MAX_BYTES, b"g"))
    assert match.pending == {"host"}


def test_other_protocols_are_left_alone() -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"KNOCK KNOCK\n", b"knock\n", b"\x16\x03\x01"):
        assert_rejects(knock, data)


def test_a_match_needs_no_second_line() -> None:
    assert isinstance(knock.identify(b"KNOCK\n"), ProtocolMatch)
