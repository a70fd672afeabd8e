"""The dispatch table: which protocols are asked, in which order, and which answers a match waits for."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refractium.contract import (
    NEED_MORE,
    NO,
    DeferredMatch,
    Identification,
    NeedMore,
    Protocol,
    ProtocolMatch,
    Strength,
    Verdict,
    define_protocol,
)
from refractium.identify import Candidate, Decision, DispatchTable, Undecided, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from refractium.contract import MetadataValue
    from refractium.identify import Selection

EXACT, STRUCTURED, WEAK = Strength.EXACT, Strength.STRUCTURED, Strength.WEAK


def starting(
    magic: bytes, *, name: str = "p", strength: Strength = STRUCTURED, indexed: bool = True
) -> Protocol:
    """Return a protocol that starts with `magic`."""

    @define_protocol(name, max_bytes=len(magic), strength=strength, prefixes=(magic,) if indexed else ())
    def identify(data: bytes) -> Identification:
        if data.startswith(magic):
            return ProtocolMatch()
        return NEED_MORE if magic.startswith(data) else NO

    return identify


def answering(
    answer: Callable[[bytes], Identification],
    *,
    name: str = "p",
    strength: Strength = STRUCTURED,
    max_bytes: int = 10,
) -> Protocol:
    return define_protocol(name, max_bytes=max_bytes, strength=strength, metadata_keys=frozenset({"sni"}))(
        answer
    )


def table(*entries: tuple[str, Protocol], size: int = 1024) -> DispatchTable[str]:
    """Return a table whose outcomes are the names of the protocols."""
    return DispatchTable([Candidate(protocol, lambda _, name=name: name) for name, protocol in entries], size)  # type: ignore[misc]


TOO_LARGE, UNDECIDED = "too large", "undecided"


def outcome(decision: Decision[str] | Waiting) -> str | Verdict:
    if isinstance(decision, Waiting):
        return NEED_MORE
    if isinstance(decision, Undecided):
        return TOO_LARGE if decision.is_too_large else UNDECIDED
    return decision[0] if isinstance(decision, tuple) else decision


def yes(_: bytes) -> Identification:
    return ProtocolMatch()


def test_stronger_protocols_are_asked_first_and_equal_ones_in_their_order() -> None:
    weak, first, second, exact = (
        answering(yes, strength=strength) for strength in (WEAK, STRUCTURED, STRUCTURED, EXACT)
    )
    entries = [("weak", weak), ("first", first), ("second", second), ("exact", exact)]
    for expected in ("exact", "first", "second", "weak"):
        assert outcome(table(*entries).decide(b"x")) == expected
        entries = [entry for entry in entries if entry[0] != expected]


def test_a_match_waits_only_for_protocols_that_are_asked_earlier() -> None:
    both = table(("longer", starting(b"abc", strength=EXACT)), ("shorter", starting(b"a")))
    assert outcome(both.decide(b"a")) is NEED_MORE
    assert outcome(both.decide(b"ab")) is NEED_MORE
    assert outcome(both.decide(b"abc")) == "longer"
    assert outcome(both.decide(b"ax")) == "shorter"
    assert outcome(both.decide(b"ab", final=True)) == "shorter"
    reverse = table(("shorter", starting(b"a", strength=EXACT)), ("longer", starting(b"abc")))
    assert outcome(reverse.decide(b"a")) == "shorter"


def test_the_table_answers_no_as_soon_as_every_protocol_has() -> None:
    both = table(("one", starting(b"abc")), ("two", starting(b"abd")))
    assert outcome(both.decide(b"ab")) is NEED_MORE
    assert outcome(both.decide(b"abx")) is NO
    assert outcome(both.decide(b"x")) is NO
    assert outcome(both.decide(b"ab", final=True)) is NO
    assert outcome(table().decide(b"x")) is NO


def test_only_protocols_that_can_begin_with_the_first_byte_are_asked() -> None:
    asked = []

    @define_protocol("spy", max_bytes=4, prefixes=(b"ab", b"cd"))
    def spy(data: bytes) -> Identification:
        asked.append(data)
        return NO

    one = table(("spy", spy))
    for data in (b"a", b"c", b"x", b"\xff"):
        one.decide(data)
    assert asked == [b"a", b"c"]


def test_an_empty_input_is_only_for_protocols_without_prefixes() -> None:
    assert outcome(table(("fixed", starting(b"a")), ("any", answering(yes))).decide(b"", final=True)) == "any"
    assert outcome(table(("fixed", starting(b"a"))).decide(b"", final=True)) is NO


def long(strength: Strength) -> Protocol:
    return answering(
        lambda data: NEED_MORE if len(data) < 5000 else ProtocolMatch(), strength=strength, max_bytes=5000
    )


def test_a_weak_protocol_inspects_the_peek_buffer_and_others_their_own_maximum() -> None:
    weak, strong = table(("p", long(WEAK))), table(("p", long(STRUCTURED)))
    assert (weak.bound, strong.bound) == (1024, 5000)
    assert outcome(weak.decide(bytes(1023))) is NEED_MORE
    assert outcome(weak.decide(bytes(1024))) is NO
    assert outcome(strong.decide(bytes(4999))) is NEED_MORE
    assert outcome(strong.decide(bytes(5000))) == "p"


def test_a_protocol_that_asks_for_more_than_it_declared_counts_as_no() -> None:
    greedy = answering(lambda _: NEED_MORE, max_bytes=10)
    assert outcome(table(("p", greedy)).decide(bytes(9))) is NEED_MORE
    assert outcome(table(("p", greedy)).decide(bytes(10))) is NO


def with_sni(
    found: Mapping[str, MetadataValue], pending: frozenset[str], asks_for: frozenset[str]
) -> DispatchTable[str]:
    def select(match: ProtocolMatch) -> Selection[str]:
        if not asks_for:
            return "any"
        if asks_for & match.pending:
            return NEED_MORE
        return "its own" if match.metadata.get("sni") == "a.example" else NO

    protocol = answering(lambda _: ProtocolMatch(found, pending))
    return DispatchTable([Candidate(protocol, select, asks_for)], 1024)


SNI: frozenset[str] = frozenset({"sni"})
NONE: frozenset[str] = frozenset()


def test_a_condition_waits_for_its_key_while_the_key_is_pending() -> None:
    assert outcome(with_sni({}, SNI, SNI).decide(b"x")) is NEED_MORE
    assert outcome(with_sni({}, SNI, SNI).decide(b"x", final=True)) == UNDECIDED
    assert outcome(with_sni({}, SNI, SNI).decide(bytes(9), final=True)) == UNDECIDED
    assert outcome(with_sni({}, SNI, SNI).decide(bytes(10))) == TOO_LARGE
    assert outcome(with_sni({}, SNI, SNI).decide(bytes(10), final=True)) == TOO_LARGE
    assert outcome(with_sni({"sni": "a.example"}, NONE, SNI).decide(b"x")) == "its own"
    assert outcome(with_sni({"sni": "b.example"}, NONE, SNI).decide(b"x")) is NO
    assert outcome(with_sni({"sni": "a.example"}, frozenset({"host"}), SNI).decide(b"x")) == "its own"
    assert outcome(with_sni({}, SNI, NONE).decide(b"x")) == "any"


def test_a_match_that_meets_no_condition_leaves_the_bytes_to_the_next_protocol() -> None:
    picky: Candidate[str] = Candidate(answering(yes, strength=EXACT), lambda _: NO)
    easy: Candidate[str] = Candidate(answering(yes), lambda _: "next")
    assert outcome(DispatchTable([picky, easy], 1024).decide(b"x")) == "next"


FAULTS = (ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError)


def failing(error: type[BaseException]) -> Callable[[bytes], Any]:
    def fail(_: bytes) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", FAULTS)
def test_a_fault_counts_as_no_and_is_counted_each_time_and_logged_once(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    broken = answering(failing(error), name="broken", strength=EXACT)
    faulty: Candidate[str] = Candidate(broken, lambda _: "broken")
    both: DispatchTable[str] = DispatchTable([faulty, Candidate(starting(b"ab"), lambda _: "good")], 1024)
    assert outcome(both.decide(b"a")) is NEED_MORE
    assert outcome(both.decide(b"ab")) == "good"
    assert both.decide(b"x") is NO
    assert both.faults == {"broken": 3}
    assert len(caplog.records) == 1
    assert "protocol broken failed: " in caplog.messages[0]


@pytest.mark.parametrize("error", FAULTS)
def test_a_client_whose_metadata_cannot_be_read_reaches_no_route(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def deferred(data: bytes) -> Identification:
        return DeferredMatch(failing(error), data) if data.startswith(b"ab") else NO

    broken = answering(deferred, name="broken", strength=EXACT)

    def select(match: ProtocolMatch) -> str | Literal[Verdict.NO]:
        return "broken" if match.metadata else NO

    faulty: Candidate[str] = Candidate(broken, select, frozenset({"host"}))
    both: DispatchTable[str] = DispatchTable([faulty, Candidate(starting(b"ab"), lambda _: "other")], 1024)
    for final in (False, True):
        refused = both.decide(b"ab", final=final)
        assert isinstance(refused, Undecided)
        assert refused.reason == "undecided: the metadata of protocol broken cannot be read"
    assert both.faults == {"broken": 2}
    assert len(caplog.records) == 1


def test_without_a_condition_unreadable_metadata_is_not_even_read() -> None:
    unreadable = answering(lambda data: DeferredMatch(failing(SystemExit), data))
    asked = table(("any", unreadable))
    assert outcome(asked.decide(b"x")) == "any"
    assert asked.faults == {}


def test_ctrl_c_while_a_protocol_identifies_is_no_fault() -> None:
    def interrupted(_: bytes) -> Identification:
        signal.raise_signal(signal.SIGINT)
        return NO

    asked = table(("p", answering(interrupted)))
    with pytest.raises(KeyboardInterrupt):
        asked.decide(b"x")
    assert asked.faults == {}


def test_where_ctrl_c_raises_nothing_every_keyboard_interrupt_is_a_fault() -> None:
    def throwing(_: bytes) -> Identification:
        nothing = (number for number in range(1))
        return nothing.throw(KeyboardInterrupt)  # type: ignore[return-value]

    asked = table(("p", answering(throwing)))
    former = signal.signal(signal.SIGINT, lambda *_: None)  # a handler as a running proxy has
    try:
        assert outcome(asked.decide(b"x")) is NO
    finally:
        signal.signal(signal.SIGINT, former)
    assert asked.faults == {"p": 1}


@pytest.mark.parametrize("answer", [None, True, "yes", b""])
def test_an_invalid_answer_is_a_fault(answer: object) -> None:
    confused = table(("confused", answering(lambda _: answer)))  # type: ignore[arg-type,return-value]
    assert outcome(confused.decide(b"x")) is NO
    assert confused.faults == {"p": 1}


class Unreadable:
    """An answer that raises an exception when its class is read."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit(9)


def test_an_answer_without_a_readable_class_is_a_fault_for_every_question() -> None:
    unreadable = table(("unreadable", answering(lambda _: Unreadable())))  # type: ignore[arg-type,return-value]
    assert outcome(unreadable.decide(b"x")) is NO
    assert unreadable.unmet(b"x") is None
    (told,) = unreadable.explain(b"x")
    assert isinstance(told.said, SystemExit)


def test_metadata_with_a_mistake_of_a_match_without_a_route_is_a_fault() -> None:
    match = ProtocolMatch({"host": "other", "colour": "red"})
    asked = table(("p", answering(lambda _: match)))
    name, told = asked.unmet(b"x") or ("", match)
    assert name
    assert told.metadata == {}
    assert sum(asked.faults.values()) == 1


RECOGNISED = NeedMore(recognised=True)


def saying(answer: Identification, strength: Strength = STRUCTURED, max_bytes: int = 10) -> Protocol:
    return answering(lambda _: answer, strength=strength, max_bytes=max_bytes)


@pytest.mark.parametrize(
    ("answers", "expected", "at_the_end", "at_the_bound"),
    [
        pytest.param([NEED_MORE], NEED_MORE, NO, NO, id="no evidence"),
        pytest.param([RECOGNISED], NEED_MORE, UNDECIDED, TOO_LARGE, id="recognised"),
        pytest.param([NeedMore(11, recognised=True)], TOO_LARGE, TOO_LARGE, TOO_LARGE, id="needs too many"),
        pytest.param([NeedMore(11)], NO, NO, NO, id="needs too many, without evidence"),
        pytest.param([RECOGNISED, ProtocolMatch()], NEED_MORE, UNDECIDED, TOO_LARGE, id="before a match"),
        pytest.param([ProtocolMatch(), RECOGNISED], "0", "0", "0", id="after a match"),
        pytest.param([NEED_MORE, ProtocolMatch()], NEED_MORE, "1", "1", id="no evidence before a match"),
        pytest.param([NEED_MORE, RECOGNISED], NEED_MORE, UNDECIDED, TOO_LARGE, id="no evidence first"),
        pytest.param([NO, RECOGNISED], NEED_MORE, UNDECIDED, TOO_LARGE, id="after a no"),
        pytest.param([NEED_MORE, NeedMore(11, recognised=True)], NEED_MORE, TOO_LARGE, TOO_LARGE, id="late"),
    ],
)
def test_a_protocol_that_recognises_its_traffic_never_leaves_it_to_another(
    answers: list[Identification], expected: object, at_the_end: object, at_the_bound: object
) -> None:
    asked = table(*((str(number), saying(answer)) for number, answer in enumerate(answers)))
    assert outcome(asked.decide(b"x")) == expected
    assert outcome(asked.decide(b"x", final=True)) == at_the_end
    assert outcome(asked.decide(bytes(10))) == at_the_bound
    assert outcome(asked.decide(bytes(10), final=True)) == at_the_bound


def test_a_refusal_names_the_protocol_and_its_match() -> None:
    decision = with_sni({}, SNI, SNI).decide(bytes(10))
    assert isinstance(decision, Undecided)
    assert decision.match is not None
    assert decision.match.pending == SNI
    assert "10 bytes that protocol p reads" in decision.reason
    early = table(("p", saying(RECOGNISED))).decide(b"x", final=True)
    assert isinstance(early, Undecided)
    assert "protocol p end" in early.reason


def test_a_weak_protocol_recognises_nothing() -> None:
    both = table(("0", saying(RECOGNISED, WEAK)), ("1", saying(ProtocolMatch(), WEAK)))
    assert both.decide(b"x") == Waiting(2, is_matched=True)
    assert outcome(both.decide(b"x", final=True)) == "1"
    assert outcome(both.decide(bytes(10))) == "1"


@pytest.mark.parametrize(
    ("answers", "at", "is_matched"),
    [
        ([NEED_MORE], 2, False),
        ([NeedMore()], 2, False),
        ([NeedMore(7)], 7, False),
        ([NeedMore(1)], 2, False),
        ([NeedMore(7), NeedMore(5)], 5, False),
        ([NeedMore(5), NeedMore(7)], 5, False),
        ([NeedMore(7), NEED_MORE], 2, False),
        ([NeedMore(7), ProtocolMatch()], 7, True),
        ([NeedMore(7), ProtocolMatch(), NeedMore(3)], 7, True),
        ([NeedMore(7), NO, ProtocolMatch()], 7, True),
        ([NeedMore(7), RECOGNISED, ProtocolMatch()], 2, False),
        ([NeedMore(7, recognised=True), ProtocolMatch()], 7, False),
    ],
)
def test_the_table_tells_at_how_many_bytes_to_ask_again_and_whether_a_protocol_matches(
    answers: list[Identification], at: int, *, is_matched: bool
) -> None:
    asked = table(*((str(number), saying(answer)) for number, answer in enumerate(answers)))
    assert asked.decide(b"x") == Waiting(at, is_matched=is_matched)


def test_a_match_that_waits_for_a_key_gives_no_grace_to_a_later_match() -> None:
    candidates = with_sni({}, SNI, SNI)._entries[0].protocol, saying(ProtocolMatch(), WEAK)
    asked: DispatchTable[str] = DispatchTable(
        [Candidate(candidates[0], lambda _: NEED_MORE, SNI), Candidate(candidates[1], lambda _: "weak")], 1024
    )
    assert asked.decide(b"x") == Waiting(2, is_matched=False)
    assert outcome(asked.decide(b"x", final=True)) == UNDECIDED


@pytest.mark.parametrize(
    ("at", "recognised"),
    [("7", False), (None, False), (True, False), (-1, False), (7.0, True), (7, None), (7, 1)],
)
def test_an_invalid_need_is_a_fault(at: Any, recognised: Any) -> None:
    confused = table(("p", saying(NeedMore(at, recognised))))
    assert outcome(confused.decide(b"x")) is NO
    assert confused.faults == {"p": 1}


def test_explain_asks_every_protocol_in_order() -> None:
    def fail(_: bytes) -> Identification:
        raise ZeroDivisionError

    first, second, third = starting(b"abc", strength=EXACT), answering(fail), starting(b"a", strength=WEAK)
    told = list(table(("3", third), ("1", first), ("2", second)).explain(b"ab"))
    assert [one.protocol for one in told] == [first, second, third]
    assert told[0].said == NeedMore()
    assert isinstance(told[1].said, ZeroDivisionError)
    assert isinstance(told[2].said, ProtocolMatch)


def test_explain_tells_what_each_protocol_alone_would_decide() -> None:
    first, second = starting(b"abc", strength=EXACT), starting(b"a", strength=WEAK)
    long = answering(lambda _: NeedMore(2000), strength=WEAK, max_bytes=5000)
    asked = table(("first", first), ("second", second), ("long", long))
    told = {one.protocol: one for one in asked.explain(b"ab")}
    assert told[first].now == Waiting(3, is_matched=False)
    assert told[first].final is NO
    assert outcome(told[second].now) == outcome(told[second].final) == "second"
    assert told[long].now is NO, "a weak protocol may not read so many bytes"
    assert all(one.is_asked for one in told.values())


def test_explain_asks_no_protocol_whose_prefixes_have_another_first_byte() -> None:
    called = []

    @define_protocol("late", max_bytes=9, prefixes=(b"late",))
    def late(data: bytes) -> Identification:
        called.append(data)
        return ProtocolMatch()

    (told,) = table(("late", late)).explain(b"x")
    assert not told.is_asked
    assert told.said is told.now is told.final is NO
    assert not called
    assert not table(("late", late)).explain(b"").__next__().is_asked
    (told,) = table(("late", late)).explain(b"l")
    assert told.is_asked


@given(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=6))
def test_the_first_bytes_that_decide_are_found(data: bytes, magic: bytes) -> None:
    asked = table(("magic", starting(magic)))
    at = asked.decided_at(data)
    first = next(
        (n for n in range(1, len(data) + 1) if not isinstance(asked.decide(data[:n]), Waiting)), None
    )
    assert at == first


@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        ProtocolMatch({"sni": 5}),  # type: ignore[dict-item]
        ProtocolMatch({"other": "a"}),
        ProtocolMatch(pending=frozenset({"other"})),
    ],
)
def test_explain_shows_an_invalid_answer_as_a_fault(answer: Any) -> None:
    confused = table(("p", answering(lambda _: answer)))
    (told,) = confused.explain(b"x")
    assert isinstance(told.said, TypeError)
    assert confused.faults == {"p": 1}


magics = st.lists(
    st.tuples(st.binary(min_size=1, max_size=4), st.sampled_from(Strength), st.booleans()), max_size=6
)


@given(magics, st.binary(min_size=1, max_size=6))
def test_the_decision_is_the_same_however_the_bytes_are_cut(
    entries: list[tuple[bytes, Strength, bool]], data: bytes
) -> None:
    all_of_them = table(
        *(
            (str(number), starting(magic, strength=strength, indexed=indexed))
            for number, (magic, strength, indexed) in enumerate(entries)
        )
    )
    whole = outcome(all_of_them.decide(data))
    for end in range(1, len(data)):
        early = outcome(all_of_them.decide(data[:end]))
        assert early in (NEED_MORE, whole)
    ranked = sorted(enumerate(entries), key=lambda entry: entry[1][1])
    expected = next((str(number) for number, (magic, *_) in ranked if data.startswith(magic)), NO)
    assert outcome(all_of_them.decide(data, final=True)) == expected
