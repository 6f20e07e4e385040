"""The line between supervisor and child."""

from __future__ import annotations

import asyncio
import socket

from penstock.app.link import ChildLink, wait_ready


async def test_the_supervisor_hears_that_its_child_is_ready() -> None:
    """One word is enough."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        child = ChildLink(theirs.detach())
        child.tell_ready()
        assert await wait_ready(ours)
        child.close()


async def test_the_supervisor_hears_that_its_child_is_gone() -> None:
    """It does not wait for a word that never comes."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        waiting = asyncio.ensure_future(wait_ready(ours))
        await asyncio.sleep(0)
        theirs.close()
        assert not await waiting


async def test_the_child_hears_that_its_supervisor_is_gone() -> None:
    """Once, and telling nobody that it is ready is no error."""
    ours, theirs = socket.socketpair()
    child = ChildLink(theirs.detach())
    gone = asyncio.Event()
    child.watch(gone.set)
    ours.close()
    async with asyncio.timeout(5):
        await gone.wait()
    child.tell_ready()
    child.close()
