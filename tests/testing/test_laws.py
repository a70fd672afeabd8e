"""`refractium.testing` reports each broken law; every test breaks one on purpose."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Final

import pytest

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    MetadataKind,
    MetadataValue,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Transport,
    define_protocol,
)
from refractium.testing import assert_identifies, assert_lawful, assert_rejects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAGIC: Final = b"KNOCK\n"
HOST: Final = frozenset({"host"})


def knock(data: bytes) -> Identification:
    """A protocol that keeps all laws."""
    if data.startswith(MAGIC):
        return ProtocolMatch()
    return NEED_MORE if MAGIC.startswith(data) else NO


def protocol_of(
    function: Callable[[bytes], Identification],
    *,
    prefixes: tuple[bytes, ...] = (),
    transport: Transport = Transport.TCP,
) -> Protocol:
    return define_protocol("knock", max_bytes=6, metadata_keys=HOST, prefixes=prefixes, transport=transport)(
        function
    )


def breaks(law: str, function: Callable[[bytes], Identification], data: bytes = MAGIC) -> None:
    with pytest.raises(AssertionError, match=rf"^{law}: "):
        assert_lawful(protocol_of(function), data)


def test_only_the_chosen_lengths_of_long_bytes_are_asked_about() -> None:
    asked = set()

    def note(data: bytes) -> Identification:
        asked.add(len(data))
        return knock(data)

    assert_lawful(protocol_of(note), MAGIC * 100_000, lengths=(1, 5, 6, 600_000))
    assert asked == {1, 5, 6, 600_000}


def test_a_lawful_protocol_passes() -> None:
    protocol = protocol_of(knock, prefixes=(MAGIC,))
    assert assert_identifies(protocol, MAGIC + b"anything", metadata={}).metadata == {}
    assert_rejects(protocol, b"GET / HTTP/1.1\r\n\r\n")
    assert_lawful(protocol, b"")


def test_an_exception_is_found() -> None:
    def raises(data: bytes) -> Identification:
        return ProtocolMatch() if data[3] == 67 else NO

    breaks("not total", raises)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, asyncio.CancelledError])
def test_any_base_exception_is_found(error: type[BaseException]) -> None:
    def raises(_: bytes) -> Identification:
        raise error

    breaks("not total", raises)


@pytest.mark.parametrize(
    "match",
    [
        ProtocolMatch({"host": 5}),  # type: ignore[dict-item]
        ProtocolMatch({"host": (b"a",)}),  # type: ignore[dict-item]
        ProtocolMatch(None),  # type: ignore[arg-type]
        ProtocolMatch(pending={"host"}),  # type: ignore[arg-type]
        ProtocolMatch(pending=frozenset({"host"}), pending_at=-1),
        ProtocolMatch(pending=frozenset({"host"}), pending_at=True),
    ],
)
def test_metadata_of_a_wrong_type_is_found(match: ProtocolMatch) -> None:
    breaks("not metadata", lambda _: match)


def test_an_exception_in_deferred_metadata_is_found() -> None:
    def read(data: bytes) -> tuple[Mapping[str, MetadataValue], frozenset[str]]:
        return {"host": str(data[9])}, frozenset()

    breaks("not total", lambda data: DeferredMatch(read, data))


def test_an_exception_that_only_damaged_bytes_cause_is_found() -> None:
    def raises(data: bytes) -> Identification:
        verdict = knock(data)
        if verdict is NO and len(data) > 1:
            raise ValueError
        return verdict

    assert_lawful(protocol_of(raises), MAGIC)
    with pytest.raises(AssertionError, match=r"^not total: "):
        assert_identifies(protocol_of(raises), MAGIC)


def test_a_verdict_that_changes_between_calls_is_found() -> None:
    verdicts = itertools.cycle([NO, NEED_MORE])
    breaks("not stateless", lambda _: next(verdicts))


def test_metadata_that_changes_between_calls_is_found() -> None:
    hosts = itertools.count()
    breaks("not stateless", lambda _: ProtocolMatch({"host": str(next(hosts))}))


def test_needing_more_than_declared_is_found() -> None:
    breaks("not bounded", lambda _: NEED_MORE)


def test_a_recognised_need_beyond_the_declared_bytes_is_lawful_and_final() -> None:
    recognised = NeedMore(recognised=True)
    assert_lawful(protocol_of(lambda _: recognised), MAGIC * 2)
    breaks("not bounded", lambda _: NeedMore(3))
    breaks("not monotone", lambda data: recognised if len(data) < 8 else NO, MAGIC * 2)
    breaks("not monotone", lambda data: recognised if len(data) < 8 else ProtocolMatch(), MAGIC * 2)
    assert_lawful(protocol_of(lambda data: recognised if len(data) < 6 else NO), MAGIC)


def test_evidence_that_disappears_is_found() -> None:
    breaks("not monotone", lambda data: NeedMore(recognised=True) if len(data) < 3 else NEED_MORE)


@pytest.mark.parametrize("early", [NO, ProtocolMatch()])
def test_an_answer_before_the_bytes_that_the_protocol_needs_is_found(early: Identification) -> None:
    breaks("not patient", lambda data: early if len(data) == 4 else NeedMore(5))
    assert_lawful(protocol_of(lambda data: early if len(data) >= 5 else NeedMore(5)), MAGIC)


@pytest.mark.parametrize("need", [NeedMore("5"), NeedMore(-1), NeedMore(5, None)])  # type: ignore[arg-type]
def test_an_invalid_need_is_found(need: NeedMore) -> None:
    breaks("not an answer", lambda _: need)


def test_an_invalid_answer_is_found() -> None:
    breaks("not an answer", lambda _: None)  # type: ignore[arg-type, return-value]
    breaks("not an answer", lambda data: {"size": len(data)})  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(("early", "late"), [(NO, ProtocolMatch()), (ProtocolMatch(), NO), (NO, NEED_MORE)])
def test_an_answer_that_changes_with_more_bytes_is_found(early: Identification, late: Identification) -> None:
    breaks("not monotone", lambda data: early if len(data) < 3 else late)


def test_metadata_that_changes_with_more_bytes_is_found() -> None:
    breaks("not monotone", lambda data: ProtocolMatch({"host": data.decode()}))


def test_metadata_that_disappears_with_more_bytes_is_found() -> None:
    breaks("not monotone", lambda data: ProtocolMatch({"host": "a"} if len(data) < 3 else {}))


def test_metadata_that_appears_without_having_been_pending_is_found() -> None:
    breaks("not monotone", lambda data: ProtocolMatch({"host": "a"} if len(data) > 3 else {}))


def test_a_key_that_becomes_pending_is_found() -> None:
    breaks("not monotone", lambda data: ProtocolMatch(pending=HOST if len(data) > 3 else frozenset()))


def test_metadata_that_appears_before_the_bytes_at_which_it_was_announced_is_found() -> None:
    def announcing(at: int) -> Callable[[bytes], Identification]:
        def identify(data: bytes) -> Identification:
            if len(data) < 4:
                return ProtocolMatch(pending=frozenset({"host"}), pending_at=at)
            return ProtocolMatch({"host": "a"})

        return identify

    breaks("not monotone", announcing(5))
    assert_lawful(protocol_of(announcing(4)), MAGIC)


def test_pending_metadata_may_appear() -> None:
    def late(data: bytes) -> Identification:
        return ProtocolMatch({"host": "a"}) if len(data) > 3 else ProtocolMatch(pending=HOST)

    assert_identifies(protocol_of(late), MAGIC, metadata={"host": "a"})


@pytest.mark.parametrize(
    "match",
    [ProtocolMatch({"sni": "a"}), ProtocolMatch(pending=frozenset({"sni"}))],
    ids=["there", "pending"],
)
def test_a_key_that_was_not_declared_is_found(match: ProtocolMatch) -> None:
    breaks("not declared", lambda _: match)


@pytest.mark.parametrize(
    ("kind", "value", "type_"),
    [
        (MetadataKind.HOST_NAME, ("a",), "str"),
        (MetadataKind.HOST, True, "str"),
        (MetadataKind.TEXT, 5, "str"),
        (MetadataKind.TEXTS, "a", "tuple of str"),
        (MetadataKind.TEXTS, ("a", 5), "tuple of str"),
        (MetadataKind.FLAG, "true", "bool"),
        (MetadataKind.ANY, 5, "str, bool or tuple of str"),
        (MetadataKind.ANY, (5,), "str, bool or tuple of str"),
    ],
)
def test_a_value_of_another_kind_than_declared_is_found(kind: MetadataKind, value: Any, type_: str) -> None:
    protocol = define_protocol("knock", max_bytes=6, metadata_keys={"key": kind})(
        lambda _: ProtocolMatch({"key": value})
    )
    with pytest.raises(AssertionError, match=f"^not metadata: metadata key is .*, not {type_}, cut after"):
        assert_lawful(protocol, MAGIC)


@pytest.mark.parametrize("answer", [NEED_MORE, ProtocolMatch()])
def test_an_answer_other_than_no_to_bytes_without_a_prefix_is_found(answer: Identification) -> None:
    with pytest.raises(AssertionError, match=r"^not declared: .* unlike prefixes"):
        assert_lawful(protocol_of(lambda _: answer, prefixes=(b"HELLO",)), MAGIC)


@pytest.mark.parametrize(
    ("attribute", "value", "problem"),
    [
        ("max_bytes", 0, "max_bytes is 0"),
        ("metadata_keys", ["host"], "metadata_keys is list of str, not a frozenset of str or a mapping"),
        ("metadata_keys", {"host": str}, 'metadata_keys maps "host" to the class str, not a str to'),
        ("metadata_keys", {1: MetadataKind.TEXT}, "metadata_keys maps 1 to MetadataKind"),
        (
            "metadata_keys",
            {"sni": MetadataKind.TEXT},
            "kind of metadata key sni is TEXT, but must be HOST_NAME",
        ),
        ("metadata_keys", {"host": MetadataKind.HOST_NAME}, "key host is HOST_NAME, but must be HOST"),
        ("metadata_keys", {"alpn": MetadataKind.ANY}, "key alpn is ANY, but must be TEXTS"),
        ("aliases", ["rap"], "aliases is (list of str|tuple of bytes), not a tuple of str"),
        ("aliases", "rap", "aliases is str, not a tuple of str"),
        ("aliases", (b"rap",), "aliases is (list of str|tuple of bytes), not a tuple of str"),
        ("aliases", ("rap", "Rap Rap"), 'knock: alias: name "Rap Rap"'),
        ("aliases", ("",), 'knock: alias: name ""'),
    ],
)
def test_attributes_that_are_not_valid_are_found(attribute: str, value: object, problem: str) -> None:
    protocol = protocol_of(knock)
    setattr(protocol, attribute, value)
    with pytest.raises(AssertionError, match=problem):
        assert_lawful(protocol, MAGIC)


def test_a_protocol_of_a_function_has_the_aliases_of_its_arguments() -> None:
    assert define_protocol("knock", max_bytes=1, aliases=("rap",))(knock).aliases == ("rap",)
    assert define_protocol("knock", max_bytes=1)(knock).aliases == ()
    with pytest.raises(ValueError, match='knock: alias: name "a b"'):
        define_protocol("knock", max_bytes=1, aliases=("a b",))(knock)


def test_a_datagram_is_identified_only_as_a_whole() -> None:
    def whole(data: bytes) -> Identification:
        return ProtocolMatch() if data == MAGIC else NO

    assert_lawful(protocol_of(whole, transport=Transport.UDP), MAGIC)
    breaks("not monotone", lambda data: whole(data) if data else NO)


def test_bytes_that_are_not_recognised_fail_assert_identifies() -> None:
    with pytest.raises(AssertionError, match="not a match"):
        assert_identifies(protocol_of(knock), b"KNO")


def test_metadata_other_than_expected_is_found() -> None:
    protocol = protocol_of(lambda _: ProtocolMatch({"host": "a"}))
    with pytest.raises(AssertionError, match='host is "a", not "b"'):
        assert_identifies(protocol, MAGIC, metadata={"host": "b"})
    with pytest.raises(AssertionError, match='there is no user, not "b"'):
        assert_identifies(protocol, MAGIC, metadata={"user": "b"})


@pytest.mark.parametrize("data", [MAGIC, b"KNO"])
def test_an_answer_other_than_no_is_not_a_rejection(data: bytes) -> None:
    with pytest.raises(AssertionError, match="not NO"):
        assert_rejects(protocol_of(knock), data)


# Cuts


@pytest.mark.parametrize(
    ("law", "function", "cut"),
    [
        ("not total", lambda data: NO if len(data) < 4 else data[9], "cut after byte 4 of 6"),
        ("not monotone", lambda data: ProtocolMatch() if len(data) < 3 else NO, "cut after byte 3 of 6"),
        ("not patient", lambda data: NO if len(data) == 4 else NeedMore(5), "cut after byte 4 of 6"),
        ("not declared", lambda _: ProtocolMatch({"sni": "a"}), "cut after byte 1 of 6"),
    ],
)
def test_a_broken_law_names_its_cut(law: str, function: Callable[[bytes], Identification], cut: str) -> None:
    with pytest.raises(AssertionError, match=rf"^{law}: .*, {cut}$"):
        assert_lawful(protocol_of(function), MAGIC)


def test_a_law_that_only_the_whole_breaks_has_no_cut() -> None:
    with pytest.raises(AssertionError, match=r"'$"):
        assert_lawful(protocol_of(lambda data: knock(data) if len(data) < 6 else data[9]), MAGIC)  # type: ignore[arg-type, return-value]


def test_a_wrong_answer_names_the_first_cut_with_this_answer() -> None:
    with pytest.raises(AssertionError, match=r"not a match, already when cut after byte 3 of 6$"):
        assert_identifies(protocol_of(knock), b"KNACK\n")
    with pytest.raises(AssertionError, match=r"not a match$"):
        assert_identifies(protocol_of(knock), b"KNOCX")
    with pytest.raises(AssertionError, match=r"not NO, already when cut after byte 6 of 9$"):
        assert_rejects(protocol_of(knock), MAGIC + b"abc")


def test_wrong_metadata_names_the_first_cut_with_this_value() -> None:
    def named(data: bytes) -> Identification:
        if knock(data) is not NO and len(data) > 7:
            return ProtocolMatch({"host": "green"})
        return ProtocolMatch(pending=HOST) if len(data) > 5 else NEED_MORE

    long = define_protocol("knock", max_bytes=9, metadata_keys=HOST)(named)
    with pytest.raises(AssertionError, match=r'host is "green", not "red", .* cut after byte 8 of 12$'):
        assert_identifies(long, MAGIC + b"green\n", metadata={"host": "red"})
