"""Every request ends exactly once, with the right status."""

from __future__ import annotations

import asyncio
import json

import pytest
from structlog.testing import capture_logs

from penstock.asgi.application import Application, Ended, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange, unless_gone
from penstock.base.errors import InvalidRequestError, NotReadyError, PenstockError, QueueFullError
from scripted_client import ScriptedClient, http_scope


class Served:
    """An application with one endpoint of each kind, and what it reported."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self.drain = Drain()
        self.failure: BaseException | None = None
        self.at_work = asyncio.Event()
        self.application = Application(
            {
                ("GET", "/fine"): Endpoint(self._fine),
                ("POST", "/fine"): Endpoint(self._fine),
                ("GET", "/below/"): Endpoint(self._fine),
                ("GET", "/probe"): Endpoint(self._fine, is_work=False),
                ("POST", "/fails"): Endpoint(self._fails),
                ("POST", "/fails-late"): Endpoint(self._fails_late),
                ("POST", "/hangs"): Endpoint(self._hangs),
            },
            self.drain,
            self.ended.append,
        )

    async def ask(self, method: str, path: str, client: ScriptedClient | None = None) -> ScriptedClient:
        client = client or ScriptedClient()
        await self.application(http_scope(method, path), client.receive, client.send)
        return client

    async def _fine(self, exchange: Exchange) -> None:
        await exchange.respond(200, exchange.path.encode(), b"text/plain")

    async def _fails(self, exchange: Exchange) -> None:
        assert self.failure is not None
        raise self.failure

    async def _fails_late(self, exchange: Exchange) -> None:
        await exchange.start(200, [])
        await exchange.write(b"half")
        await self._fails(exchange)

    async def _hangs(self, exchange: Exchange) -> None:
        await exchange.read_body(100, 5)

        async def work() -> None:
            self.at_work.set()
            await asyncio.Event().wait()

        await unless_gone(exchange, work())


@pytest.fixture
def served() -> Served:
    return Served()


def code_of(client: ScriptedClient) -> str:
    return json.loads(client.body)["error"]["code"]


async def test_a_request_reaches_its_endpoint_and_ends_once(served: Served) -> None:
    """With its path, method and status in the event."""
    client = await served.ask("GET", "/fine")
    assert client.body == b"/fine"
    (ended,) = served.ended
    assert (ended.path, ended.method, ended.status, ended.error_code) == ("/fine", "GET", 200, None)
    assert ended.duration_s >= 0


@pytest.mark.parametrize("path", ["/", "", "*", "/fine/", "/finer", "/other/fine", "/below", "//fine"])
async def test_an_unknown_path_is_a_404(served: Served, path: str) -> None:
    """Counted under one label, whatever it was."""
    client = await served.ask("GET", path)
    assert (client.statuses, code_of(client)) == ([404], "route_not_found")
    assert [(ended.path, ended.error_code) for ended in served.ended] == [("other", "route_not_found")]


@pytest.mark.parametrize("path", ["/below/a", "/below/a/b", "/below/a/", "/below/"])
async def test_a_path_ending_in_a_slash_stands_for_all_below(served: Served, path: str) -> None:
    """Counted under its own name, not the request's."""
    assert (await served.ask("GET", path)).body == path.encode()
    assert served.ended[0].path == "/below/"


async def test_a_wrong_method_is_a_405_that_names_the_right_ones(served: Served) -> None:
    """RFC 9110 wants the Allow header."""
    client = await served.ask("DELETE", "/fine")
    assert (client.statuses, client.headers[b"allow"]) == ([405], b"GET, POST")
    assert code_of(client) == "method_not_allowed"
    assert (await served.ask("GET", "/fails")).headers[b"allow"] == b"POST"


async def test_head_is_get_without_a_body(served: Served) -> None:
    """Also where there is no GET: then it is a 405 without one."""
    client = await served.ask("HEAD", "/fine")
    assert (client.statuses, client.headers[b"content-length"], client.body) == ([200], b"5", b"")
    client = await served.ask("HEAD", "/fails")
    assert (client.statuses, client.body) == ([405], b"")


async def test_invented_methods_share_a_label(served: Served) -> None:
    """Clients may send any word."""
    await served.ask("BREW", "/fine")
    await served.ask("brew", "/other")
    assert {ended.method for ended in served.ended} == {"other"}


@pytest.mark.parametrize(
    "failure", [QueueFullError("full", retry_after_s=3), NotReadyError("no", param="model")]
)
async def test_an_error_of_ours_is_answered_as_it_says(served: Served, failure: PenstockError) -> None:
    """Status, code, param and Retry-After."""
    served.failure = failure
    client = await served.ask("POST", "/fails")
    assert client.statuses == [failure.status]
    assert json.loads(client.body) == {
        "error": {
            "message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code,
        }
    }  # fmt: skip
    wanted = None if failure.retry_after_s is None else str(failure.retry_after_s).encode()
    assert client.headers.get(b"retry-after") == wanted
    assert [(ended.status, ended.error_code) for ended in served.ended] == [(failure.status, failure.code)]


@pytest.mark.parametrize(
    ("failure", "events"),
    [
        (InvalidRequestError("no", param="model"), ["request"]),
        (NotReadyError("no"), ["request failed", "request"]),
        (RuntimeError("defect"), ["request failed", "request"]),
    ],
)
async def test_a_refusal_is_one_log_line(served: Served, failure: Exception, events: list[str]) -> None:
    """Which says why. What an operator may have to act on has a line of its own, at its level."""
    served.failure = failure
    with capture_logs() as lines:
        await served.ask("POST", "/fails")
    assert [line["event"] for line in lines] == events
    code = failure.code if isinstance(failure, PenstockError) else "internal_error"
    assert {line["error"] for line in lines} == {code}
    assert all(line["message"] and line["request_id"] for line in lines)


async def test_a_long_path_is_cut_in_the_log_and_in_the_answer(served: Served) -> None:
    """One of 60 kilobytes is still a path."""
    with capture_logs() as lines:
        client = await served.ask("GET", "/" + "x" * 60_000)
    assert len(client.body) < 300
    assert [len(line["path"]) for line in lines] == [200]


async def test_a_defect_is_a_500_without_its_details(served: Served) -> None:
    """What went wrong is for the log."""
    served.failure = RuntimeError("secret path /etc/x")
    client = await served.ask("POST", "/fails")
    assert (client.statuses, code_of(client)) == ([500], "internal_error")
    assert b"secret" not in client.body
    assert b"RuntimeError" not in client.body
    assert [ended.error_code for ended in served.ended] == ["internal_error"]


@pytest.mark.parametrize("failure", [RuntimeError("x"), NotReadyError("x")])
async def test_an_error_after_the_answer_began_breaks_the_connection(
    served: Served, failure: Exception
) -> None:
    """Raising is how ASGI says so; the answer gets no clean end and no second head."""
    served.failure = failure
    client = ScriptedClient()
    with pytest.raises(type(failure)):
        await served.ask("POST", "/fails-late", client)
    assert (client.statuses, client.body, client.is_whole) == ([200], b"half", False)
    assert len(served.ended) == 1
    assert served.ended[0].error_code is not None


async def test_a_client_that_leaves_ends_its_request(served: Served) -> None:
    """As 499, nothing sent, nothing running."""
    client = ScriptedClient()
    asking = asyncio.ensure_future(served.ask("POST", "/hangs", client))
    await served.at_work.wait()
    assert served.drain.num_running == 1
    client.leave()
    await asking
    assert client.sent == []
    assert [(ended.status, ended.error_code) for ended in served.ended] == [(499, "client_gone")]
    assert served.drain.num_running == 0


async def test_a_request_that_the_server_cuts_off_is_told(served: Served) -> None:
    """At the end of a drain: 503 with Retry-After, and the end says draining, not that the client left."""
    client = ScriptedClient()
    asking = asyncio.ensure_future(served.ask("POST", "/hangs", client))
    await served.at_work.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (client.statuses, code_of(client), client.is_whole) == ([503], "draining", True)
    assert b"retry-after" in client.headers
    assert [(ended.status, ended.error_code) for ended in served.ended] == [(503, "draining")]
    assert served.drain.num_running == 0


async def test_draining_refuses_work_and_answers_probes(served: Served) -> None:
    """Orchestrators must still see the process alive."""
    served.drain.begin()
    refused, probed = await served.ask("GET", "/fine"), await served.ask("GET", "/probe")
    assert (refused.statuses, refused.headers[b"retry-after"]) == ([503], b"10")
    assert probed.statuses == [200]
    assert [ended.error_code for ended in served.ended] == ["draining", None]
