"""The line between supervisor and child."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app.link import (
    FROM_CHILD,
    MAX_LINE_BYTES,
    MAX_REASON,
    TO_CHILD,
    Failed,
    FromChild,
    Granted,
    Link,
    Planned,
    Ready,
    ToChild,
    failure_told,
)
from penstock.base.errors import CheckpointError
from penstock.fleet.orders import MakeRoom, ModelState, Roster, Unload, Wake

LIMIT_S = 10


@asynccontextmanager
async def links() -> AsyncIterator[tuple[Link[FromChild], Link[ToChild]]]:
    """The supervisor's end and the child's."""
    ours, theirs = socket.socketpair()
    supervisor, child = await Link.open(ours, FROM_CHILD), await Link.open(theirs, TO_CHILD)
    async with asyncio.timeout(LIMIT_S):
        yield supervisor, child
    supervisor.close()
    child.close()


@asynccontextmanager
async def raw_peer() -> AsyncIterator[tuple[Link[FromChild], socket.socket]]:
    """The supervisor's end, and a child that may send anything."""
    ours, theirs = socket.socketpair()
    with theirs:
        supervisor = await Link.open(ours, FROM_CHILD)
        async with asyncio.timeout(LIMIT_S):
            yield supervisor, theirs
        supervisor.close()


async def test_messages_arrive_as_they_were_sent() -> None:
    """Of every kind, in order, both ways."""
    up = [Ready(), Planned(7, "7 bytes"), Failed('why\n"not"'), Wake("a/b"), Unload("a/b", "idle")]
    state = ModelState("m", "failed", 3, "reason", lacks_room=True, retry_after_s=2, load_seconds=0.5)
    down = [Granted(), Roster([state], ["m"]), state, MakeRoom(["m"], 4)]
    async with links() as (supervisor, child):
        for message in up:
            child.send(message)
        for answer in down:
            supervisor.send(answer)
        assert [await supervisor.receive() for _ in up] == up
        assert [await child.receive() for _ in down] == down


async def test_each_hears_that_the_other_is_gone() -> None:
    """After what it said before; telling it more is no error."""
    async with links() as (supervisor, child):
        child.send(Ready())
        child.close()
        assert await supervisor.receive() == Ready()
        assert await supervisor.receive() is None
        supervisor.send(Granted())
    async with links() as (supervisor, child):
        heard: list[ToChild] = []
        gone = asyncio.Event()
        supervisor.send(Granted())
        supervisor.close()
        await child.listen(heard.append, gone.set)
        assert heard == [Granted()]
        assert gone.is_set()


@pytest.mark.parametrize(
    "line",
    [
        b"ready\n", b"{}\n", b"[]\n", b'{"type":"granted"}\n', b'{"type":"wake"}\n', b"\xff\n",
        b'{"type":"ready"}',
        b'{"type":"ready","more":1}\n', b'{"type":"wake","model":1}\n',
        b'{"type":"wake","model":"\\ud800"}\n',
        b'{"type":"unload","model":"m","reason":"mood"}\n', b"[" * 100_000 + b"\n",
    ],
)  # fmt: skip
async def test_what_is_no_message_ends_the_link(line: bytes) -> None:
    """A child that speaks otherwise is broken, and is treated as one that is gone."""
    async with raw_peer() as (supervisor, child):
        child.sendall(line)
        child.shutdown(socket.SHUT_WR)
        assert await supervisor.receive() is None


async def test_a_line_without_end_is_not_kept() -> None:
    """It ends the link once it is longer than any message."""
    async with raw_peer() as (supervisor, child):
        child.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(loop.sock_sendall(child, b"x" * 4 * MAX_LINE_BYTES))
            assert await supervisor.receive() is None
            sending.cancel()


async def test_an_end_that_does_not_read_is_given_up() -> None:
    """What it was sent does not pile up."""
    async with raw_peer() as (supervisor, _):
        for _ in range(100):
            supervisor.send(Failed("x" * (1 << 20)))
        assert await supervisor.receive() is None


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    """Whatever comes is a message or the end."""

    async def read() -> None:
        async with raw_peer() as (supervisor, child):
            child.sendall(data)
            child.shutdown(socket.SHUT_WR)
            while await supervisor.receive() is not None:
                pass

    asyncio.run(read())


async def test_the_supervisor_hears_why_a_child_cannot_serve() -> None:
    """Also after the child's loop has closed its own end; a long reason is cut."""
    ours, theirs = socket.socketpair()
    supervisor = await Link.open(ours, FROM_CHILD)
    descriptor = theirs.detach()

    def fail() -> None:
        with failure_told(descriptor):
            os.close(descriptor)
            raise CheckpointError("no such folder\udcff" + "!" * 5000)

    with pytest.raises(CheckpointError):
        fail()
    async with asyncio.timeout(LIMIT_S):
        message = await supervisor.receive()
        assert isinstance(message, Failed)
        assert message.reason.startswith("no such folder?!")
        assert len(message.reason) == MAX_REASON
        assert await supervisor.receive() is None
    supervisor.close()


def test_a_process_of_its_own_has_nobody_to_tell() -> None:
    """The error passes as it is."""
    with pytest.raises(CheckpointError, match="alone"), failure_told(None):
        raise CheckpointError("alone")
