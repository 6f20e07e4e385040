"""The ASGI application: a table of endpoints, and one place where every request ends exactly once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from penstock.asgi.drain import RETRY_AFTER_S, Drain
from penstock.asgi.exchange import Exchange
from penstock.asgi.types import Receive, Scope, Send
from penstock.base.errors import (
    ClientGoneError,
    DrainingError,
    InternalError,
    MethodNotAllowedError,
    PenstockError,
    RouteNotFoundError,
)
from penstock.protocol.envelope import encode_error
from penstock.protocol.strict import shown

logger = structlog.get_logger(__name__)
# Methods that appear in metrics under their own name; clients may send any word.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Of a path, in log lines; clients may send one of many kilobytes.
MAX_LOGGED_PATH = 200
_NOT_OURS = "internal error"
Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A handler, and whether it is work that draining waits for and refuses (probes are not)."""

    handler: Handler
    is_work: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal event of a request."""

    path: str
    """The endpoint's path, or "other" for paths that do not exist."""
    method: str
    status: int
    duration_s: float
    error_code: str | None


class Application:
    """Routes exchanges to handlers, turns errors into answers, reports each end once."""

    def __init__(
        self,
        endpoints: Mapping[tuple[str, str], Endpoint],
        drain: Drain,
        on_end: Callable[[Ended], None],
    ) -> None:
        """`endpoints` maps (method, path), where a path ending in a slash stands for all
        paths below it.

        `on_end` is called once per request, whatever became of it.
        """
        self._endpoints = dict(endpoints)
        self._paths = {path for _, path in endpoints}
        self._drain = drain
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry; the server handles lifespan and WebSocket scopes itself."""
        assert scope["type"] == "http"
        exchange = Exchange(scope, receive, send)
        pattern = self._pattern(exchange.path)
        started = time.perf_counter()
        failure: Exception | None = None
        try:
            await self._dispatch(exchange, pattern)
        except asyncio.CancelledError:
            # Only the server cancels, at the end of a drain; leaving clients are told by ClientGoneError.
            failure = DrainingError(
                "the server stopped before the answer was complete", retry_after_s=RETRY_AFTER_S
            )
            if not exchange.has_started:
                await self._answer_error(exchange, pattern, failure)
            raise
        except Exception as error:  # noqa: BLE001 (the border: whatever it is, it gets an answer)
            failure = error
            await self._answer_error(exchange, pattern, error)
        finally:
            self._end(exchange, pattern, time.perf_counter() - started, failure)

    def _pattern(self, path: str) -> str | None:
        """The table's path for a request's: itself, or the longest prefix in it that ends in a slash."""
        if path in self._paths:
            return path
        prefix = path[: path.rfind("/", 0, -1) + 1]
        while prefix and prefix not in self._paths:
            prefix = prefix[: prefix.rfind("/", 0, -1) + 1]
        return prefix if len(prefix) < len(path) and prefix else None

    def _methods(self, pattern: str) -> list[str]:
        return sorted(method for method, path in self._endpoints if path == pattern)

    async def _dispatch(self, exchange: Exchange, pattern: str | None) -> None:
        if pattern is None:
            raise RouteNotFoundError(f"there is no {shown(exchange.path)} here")
        endpoint = self._endpoint(exchange, pattern)
        if endpoint is None:
            methods = " or ".join(self._methods(pattern))
            raise MethodNotAllowedError(
                f"{shown(exchange.method)} is not allowed on {shown(exchange.path)}; use {methods}"
            )
        if endpoint.is_work:
            with self._drain:
                await endpoint.handler(exchange)
        else:
            await endpoint.handler(exchange)

    def _endpoint(self, exchange: Exchange, pattern: str | None) -> Endpoint | None:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        return None if pattern is None else self._endpoints.get((method, pattern))

    async def _answer_error(self, exchange: Exchange, pattern: str | None, error: Exception) -> None:
        """Answers with the error's envelope, or breaks the connection off if the answer has begun."""
        known = error if isinstance(error, PenstockError) else InternalError(_NOT_OURS)
        if known.log_level in ("warning", "error"):
            getattr(logger, known.log_level)(
                "request failed",
                request_id=exchange.request_id,
                path=exchange.path[:MAX_LOGGED_PATH],
                error=known.code,
                message=known.message,
                exc_info=None if known is error else error,
            )
        if isinstance(error, ClientGoneError):
            return
        if exchange.has_started:
            # Raising is how ASGI breaks a connection: the client must not see a clean end.
            raise error
        headers = []
        if known.retry_after_s is not None:
            headers.append((b"retry-after", str(known.retry_after_s).encode()))
        if isinstance(known, MethodNotAllowedError) and pattern is not None:
            headers.append((b"allow", ", ".join(self._methods(pattern)).encode()))
        await exchange.respond(known.status, encode_error(error), headers=headers)

    def _end(
        self, exchange: Exchange, pattern: str | None, duration_s: float, failure: Exception | None
    ) -> None:
        fields = dict(exchange.log_fields)
        code = None if "error" not in fields else str(fields["error"])
        if failure is not None:
            known = failure if isinstance(failure, PenstockError) else InternalError(_NOT_OURS)
            fields |= {"error": known.code, "message": known.message}
            code = known.code
        status = exchange.status or ClientGoneError.status
        method = exchange.method if exchange.method in METHODS else "other"
        self._on_end(Ended(pattern or "other", method, status, duration_s, code))
        endpoint = self._endpoint(exchange, pattern)
        if endpoint is None or endpoint.is_work:
            logger.info(
                "request",
                request_id=exchange.request_id,
                method=exchange.method,
                path=exchange.path[:MAX_LOGGED_PATH],
                status=status,
                duration_ms=round(duration_s * 1e3, 2),
                **fields,
            )
