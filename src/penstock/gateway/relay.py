"""The life of one request on the data plane: read, route, call, relay byte for byte."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Set
from itertools import count

import msgspec
import structlog

from penstock.asgi.exchange import Exchange, unless_gone
from penstock.asgi.settings import HttpLimits
from penstock.base.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    PenstockError,
    UpstreamConnectError,
    UpstreamError,
)
from penstock.fleet.catalog import Replica, Snapshot
from penstock.gateway.health import HealthBoard
from penstock.gateway.local_models import LocalModels
from penstock.gateway.upstream.pool import Answer, Call, Pool
from penstock.protocol import sse
from penstock.protocol.envelope import encode_error
from penstock.protocol.generation import Name
from penstock.protocol.strict import NOT_JSON, explain, shown
from penstock.replica.request_timeout import HEADER as REQUEST_TIMEOUT
from penstock.replica.request_timeout import read_request_timeout

logger = structlog.get_logger(__name__)

RETRY_AFTER_S = 2
# What a replica is left of a time that ran out just as its model was ready: it answers that it ran out.
LEAST_TIMEOUT_S = 0.001

# What of a request's headers a replica gets. The client's key is for us and stays here.
_REQUEST_HEADERS = frozenset(
    {b"accept", b"content-type", b"traceparent", b"tracestate", b"user-agent", b"x-request-timeout"}
)
# RFC 9110 section 7.6.1: these belong to one connection. The rest replaces what we say ourselves.
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer",
        b"transfer-encoding", b"upgrade", b"date", b"server", b"x-request-id",
    }
)  # fmt: skip

# Enough of the end of a stream to know its last event for the terminal one, with either line end.
_TAIL_BYTES = len(sse.DONE) + 2


class _Routing(msgspec.Struct, frozen=True):
    """All the gateway reads of a body; the replica reads the rest."""

    model: Name


_ROUTING = msgspec.json.Decoder(_Routing)


class Relay:
    """Relays requests to ready replicas of the model they name."""

    def __init__(
        self,
        snapshot: Snapshot,
        pools: Mapping[str, Pool],
        board: HealthBoard,
        local_models: LocalModels,
        limits: HttpLimits,
    ) -> None:
        self._snapshot = snapshot
        self._local_models = local_models
        self._pools = pools
        self._board = board
        self._limits = limits
        self._turn = count()

    async def handle(self, exchange: Exchange) -> None:
        """Answers one exchange.

        Raises:
            ClientError: the body cannot be read or names no model of ours.
            CapacityError: no replica is ready or has a free connection, or the model could not be loaded.
            UpstreamError: the replica failed before its answer began, or none could be connected to.
        """
        body = await exchange.read_body(self._limits.max_body_bytes, self._limits.body_timeout_s)
        model = read_model(body)
        model = self._snapshot.parents.get(model, model)
        if model not in self._snapshot.replicas:
            names = sorted((*self._snapshot.replicas, *self._snapshot.parents))
            raise ModelNotFoundError(
                f"there is no model {shown(model)!r} here; there is: {', '.join(names)}", param="model"
            )
        await unless_gone(exchange, self._use(exchange, model, body))

    async def _use(self, exchange: Exchange, model: str, body: bytes) -> None:
        """Calls the model once it is awake; waiting for that counts on the time that the client allows."""
        headers = {name: value for name, value in exchange.headers.items() if name in _REQUEST_HEADERS}
        if self._local_models.is_open(model):
            async with self._local_models.use(model, math.inf):
                await self._call(exchange, model, headers, body)
            return
        now = asyncio.get_running_loop().time
        began = now()
        timeout_s = read_request_timeout(exchange.headers)
        exchange.log_fields["model"] = model
        async with self._local_models.use(model, timeout_s):
            waited_s = now() - began
            exchange.log_fields["waited_ms"] = round(waited_s * 1e3, 2)
            if timeout_s < math.inf:
                left_s = max(timeout_s - waited_s, LEAST_TIMEOUT_S)
                headers[REQUEST_TIMEOUT.encode()] = f"{left_s:.3f}".encode()
            await self._call(exchange, model, headers, body)

    def _route(self, model: str, tried: Set[str]) -> Replica | None:
        """The ready replica with the fewest requests in flight, each in turn among equals.

        None if none is left beside those that were `tried`.
        """
        ready = [replica for replica in self._board.ready(model) if replica.id not in tried]
        if not ready:
            return None
        first = next(self._turn) % len(ready)
        in_turn = ready[first:] + ready[:first]
        return min(in_turn, key=lambda replica: self._pools[replica.id].num_busy)

    async def _call(
        self, exchange: Exchange, model: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> None:
        """Asks one replica after the other until one can be connected to; what was sent stays with it."""
        own = (b"x-request-id", exchange.request_id.encode())
        call = Call(exchange.method, exchange.path, [*headers.items(), own], body)
        tried: set[str] = set()
        failure: PenstockError = NotReadyError(
            f"no replica of {shown(model)!r} is ready; try again later", retry_after_s=RETRY_AFTER_S
        )
        # Nothing is awaited between choosing a replica and counting on it, or a burst would go to one.
        while (replica := self._route(model, tried)) is not None:
            exchange.log_fields |= {"model": model, "replica": replica.id}
            try:
                await self._relay(exchange, replica, call)
                return
            except UpstreamConnectError as error:
                # Others must not run into it too, and with no request in flight it would look the least busy.
                self._board.set_ready(replica, False)
                logger.warning("replica unreachable", replica=replica.id, error=error.message)
                tried.add(replica.id)
                failure = error
        raise failure

    async def _relay(self, exchange: Exchange, replica: Replica, call: Call) -> None:
        async with self._pools[replica.id].request(call) as answer:
            await exchange.start(answer.status, _end_to_end(answer.headers))
            await _relay_body(exchange, answer)


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are for the client: not those of the connection, nor those that it names."""
    named = {
        name.strip().lower() for key, value in headers if key == b"connection" for name in value.split(b",")
    }
    return [(name, value) for name, value in headers if name not in _HOP_BY_HOP and name not in named]


async def _relay_body(exchange: Exchange, answer: Answer) -> None:
    """Passes the body on as it comes.

    A stream of events that the replica breaks off between two events gets an error event, so that its
    client learns why; any other broken body is broken off for the client too.
    """
    tail = b"\n\n"
    try:
        while (chunk := await answer.read()) is not None:
            tail = (tail + chunk)[-_TAIL_BYTES:]
            await exchange.write(chunk)
    except UpstreamError as error:
        if not _is_events(answer) or not tail.endswith((b"\n\n", b"\r\n\r\n")):
            raise
        if tail.rstrip().endswith(sse.DONE.rstrip()):
            await exchange.finish()  # the answer was whole; nothing may follow its last event
            return
        exchange.log_fields |= {"error": error.code, "message": error.message}
        await exchange.finish(sse.encode_event(encode_error(error)))
        return
    await exchange.finish()


def _is_events(answer: Answer) -> bool:
    """True if the body is a stream of events to which one may be added."""
    headers = dict(answer.headers)
    return b"content-length" not in headers and headers.get(b"content-type", b"").startswith(
        b"text/event-stream"
    )


def read_model(body: bytes) -> str:
    """The model a request names.

    Raises:
        InvalidRequestError: the body is no JSON object or its `model` is missing, too long or no string.
    """
    try:
        return _ROUTING.decode(body).model
    except msgspec.ValidationError as error:
        raise explain(error) from error
    except NOT_JSON as error:
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from error
