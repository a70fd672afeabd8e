"""Messages and descriptors between two processes: complete, in order, and never blocking either process."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from refractium.workers.channel import Channel
from refractium.workers.messages import Done, Listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from refractium.workers.messages import Order, WorkerMessage


class Refusing(socket.socket):
    """A socket whose next sends fail."""

    errors: list[int]

    def send(self, *args: Any) -> int:
        if self.errors:
            raise OSError(self.errors.pop(0), "refused")
        return super().send(*args)


class Ends:
    """Both ends of a channel, and the messages that each has received."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.messages: asyncio.Queue[WorkerMessage] = asyncio.Queue()
        self.orders: asyncio.Queue[Order] = asyncio.Queue()
        self.over = asyncio.Event()
        self.ours: Channel[WorkerMessage] = Channel(ours, Done, self.messages.put_nowait, self.over.set)
        self.theirs: Channel[Order] = Channel(theirs, Listen, self.orders.put_nowait, self.over.set)


def with_ends(test: Callable[[Ends], Awaitable[None]], *errors: int) -> None:
    """Run a test with both ends; the first sends of the other side fail with these errors."""

    async def run() -> None:
        ours, other = socket.socketpair()
        theirs = Refusing(fileno=other.detach())
        theirs.errors = [*errors]
        ends = Ends(ours, theirs)
        try:
            async with asyncio.timeout(20):
                await test(ends)
        finally:
            ends.ours.close()
            ends.theirs.close()

    asyncio.run(run())


def test_messages_of_any_size_arrive_complete_and_in_order() -> None:
    sizes = [0, 1, 100_000, 3, 5_000_000, 2]

    async def test(ends: Ends) -> None:
        for number, size in enumerate(sizes):  # together more bytes than the kernel takes at once
            ends.theirs.send(Done(number, "x" * size))
        for number, size in enumerate(sizes):
            assert await ends.messages.get() == Done(number, "x" * size)

    with_ends(test)


def test_descriptors_arrive_with_their_messages() -> None:
    async def test(ends: Ends) -> None:
        pairs = [socket.socketpair() for _ in range(100)]
        for number, (one, _) in enumerate(pairs):
            ends.ours.send(Listen(number, "x" * 10_000), one)
            one.close()
        for number, (_, other) in enumerate(pairs):
            assert await ends.orders.get() == Listen(number, "x" * 10_000)
            with socket.socket(fileno=ends.theirs.fds.popleft()) as came, other:
                came.send(str(number).encode())
                assert other.recv(10) == str(number).encode()
                assert not os.get_inheritable(came.fileno())

    with_ends(test)


def test_the_end_of_the_other_side_is_reported_once_and_stops_sending() -> None:
    async def test(ends: Ends) -> None:
        one, other = socket.socketpair()
        with one, other:
            ends.theirs.close()
            ends.ours.send(Listen(1, ""), one)
            await ends.over.wait()
            ends.ours.send(Listen(2, ""), one)
            ends.ours.close()

    with_ends(test)


def test_messages_sent_before_the_end_still_arrive() -> None:
    async def test(ends: Ends) -> None:
        ends.theirs.send(Done(1))
        ends.theirs.close()
        assert await ends.messages.get() == Done(1)
        await ends.over.wait()

    with_ends(test)


def test_descriptors_that_nobody_took_are_closed() -> None:
    async def test(ends: Ends) -> None:
        one, other = socket.socketpair()
        with other:
            ends.ours.send(Listen(1, ""), one)
            one.close()
            await ends.orders.get()
            ends.theirs.close()
            assert other.recv(1) == b""  # no process has the other end any more

    with_ends(test)


def test_descriptors_that_could_not_be_sent_are_closed() -> None:
    async def test(ends: Ends) -> None:
        one, other = socket.socketpair()
        with other:
            ends.ours.send(Listen(1, "x" * 10_000_000))  # the kernel takes a part of this message
            ends.ours.send(Listen(2, ""), one)
            one.close()
            ends.ours.close()
            assert other.recv(1) == b""

    with_ends(test)


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ENOMEM])
def test_a_message_that_lacks_memory_arrives_when_there_is_memory(error: int) -> None:
    async def test(ends: Ends) -> None:
        for number in range(3):
            ends.theirs.send(Done(number))
        assert [await ends.messages.get() for _ in range(3)] == [Done(number) for number in range(3)]
        assert not ends.over.is_set()

    with_ends(test, error, error)


def test_both_ends_see_the_end_if_a_message_cannot_be_sent() -> None:
    async def test(ends: Ends) -> None:
        ends.ours.send(Listen(1, ""))
        ends.theirs.send(Done(1))
        await ends.over.wait()
        assert await ends.orders.get() == Listen(1, "")
        assert ends.messages.empty()

    with_ends(test, errno.EIO)
