"""The rules for the bytes and the end that each end of a connection must see of the other end.

`S` is the end that sends in one direction, `R` the end that receives. An end is *orderly* if it sends all its
bytes, ends its sending side (shutdown) and reads until its peer has ended.

1. The bytes that R got are a prefix of the bytes that the kernel took from S: no byte is foreign, missing,
   doubled or displaced. This holds always, even if a worker was killed. An urgent byte is a byte of the
   stream, at its place: the proxy reads it inline (SO_OOBINLINE) and passes it on as any other byte.
2. If both ends are orderly, each got everything, and then the end.
3. If R sees an orderly end, S has ended its sending side, and R got everything that the kernel took from S.
   In other words, a stream that was cut never looks complete:

   - S resets (SO_LINGER of 0 s). Its kernel discards unsent bytes. R must see a reset, unless S
     had ended its sending side before; then R may see that end, after all bytes.
   - S closes with bytes unread. Its kernel resets at once, with the same loss. Only the kernel knows whether
     bytes were unread, so after any close R may see a reset, and an end only if nothing is missing.
   - S closes with nothing unread, and bytes arrive for it later. Its kernel resets then, with the same loss.
   - The proxy resets S, because R was cut. R is gone then, or sees a reset.

4. Bytes sent before a reset arrive before it. If the kernel of the proxy had acknowledged everything when S
   left (TIOCOUTQ is 0), and R reads on to the end or reset, R got everything: Linux keeps the receive queue
   of a socket that is reset.
5. The kernel reports the errno of a reset once. If a send gets it, recv reports an end. So an end that R sees
   after one of its sends has failed is a reset. An end that R sees before that is an end.
6. A unix socket has no reset. Whichever way a backend there closes, its peer can read the bytes that the
   kernel took, so every way counts as a close in rule 3. Rule 3 does not hold for the bytes that such a
   backend receives: it sees an orderly end of a client that was cut.
7. When a worker is killed (SIGKILL), the kernel closes its sockets in order. Rules 2 to 4 do not hold for the
   connections that were open at that moment. All rules hold for those that began later.
8. A client has a backend, unless it was cut or sent too few bytes to be identified. A client without a
   backend gets no byte. If the backend resets at accept, the client sees a reset, or the fallback serves it:
   the proxy may learn of the reset before it has sent a byte.
9. Every connection ends. A connection that is open for longer than the patience of the fuzz hangs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attacks.fuzz_programs import PREFIXES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attacks.fuzz_ends import End
    from attacks.fuzz_programs import Plan

_WITHOUT_BACKEND: Final = frozenset({"reset", "gone"})


def problems(plan: Plan, client: End, backend: End | None, *, was_killed: bool) -> Iterator[str]:
    """Yield each way in which a connection breaks the rules, after both ends are over.

    Args:
        plan: the plan of the connection.
        client: the end of the client.
        backend: the end of the backend; None if no backend accepted the connection.
        was_killed: whether a worker was killed while the connection was open.
    """
    if backend is None:
        yield from _problems_without_backend(plan, client, was_killed=was_killed)
        return
    for sender, receiver, whole, way in (
        (client, backend, plan.up, "from client to backend"),
        (backend, client, plan.down, "from backend to client"),
    ):
        if receiver.wrong:
            yield f"{way}: {receiver.wrong}"
        if receiver.got > sender.sent:
            yield f"{way}: more came than was sent"
        if not was_killed:
            if plan.client.is_orderly and plan.backend.is_orderly:
                if (receiver.ended, receiver.got) != ("eof", len(whole)):
                    yield f"{way}: both ends are orderly, but not all has come"
            else:
                yield from _problems_of_cut(sender, receiver, way)


def _problems_of_cut(sender: End, receiver: End, way: str) -> Iterator[str]:
    missing = sender.sent - receiver.got
    if sender.delivered and receiver.ended != "left" and missing:
        yield f"{way}: {missing} bytes that came before a reset are missing"
    if receiver.ended == "eof" and receiver.is_tcp:
        if missing:
            yield f"{way}: falsely whole: {missing} bytes are missing before the end"
        if not sender.shut:
            yield f"{way}: falsely whole: an end was seen, and none was sent"


def _problems_without_backend(plan: Plan, client: End, *, was_killed: bool) -> Iterator[str]:
    if client.got:
        yield "bytes came from nowhere"
    if was_killed:
        return
    if plan.kind == "reset" and client.ended == "eof":
        yield "falsely whole: the backend resets, and the client has seen an end"
    is_identified = client.sent >= len(PREFIXES[plan.kind] % 0)
    if plan.kind in _WITHOUT_BACKEND or _may_be_undecided(plan):
        return
    if plan.client.is_orderly and is_identified:
        yield "no backend has been reached"


def _may_be_undecided(plan: Plan) -> bool:
    """Return whether Refractium may refuse a request because its host is missing at the short peek timeout.

    The request arrives in several parts, or an urgent byte is missing in its host.
    """
    if plan.kind != "http":
        return False
    first, size = plan.client.steps[0], len(PREFIXES["http"] % plan.number)
    return first.what != "send" or first.amount < size
