"""What every server of ours answers about itself: that it lives, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from penstock.asgi.application import Ended, Endpoint
from penstock.asgi.drain import Drain
from penstock.asgi.exchange import Exchange
from penstock.observe import metrics as observe
from penstock.observe import names


class Probes:
    """Liveness, metrics, and the count of requests that goes into them."""

    def __init__(self, role: str, drain: Drain, read: Callable[[], Iterable[observe.Reading]]) -> None:
        """`role` labels the request metrics; `read` gives the server's own readings at each exposition."""
        self._role = role
        self._drain = drain
        self._read = read
        self.metrics = observe.Metrics()
        self._requests = self.metrics.counter(names.REQUESTS)
        self._durations = self.metrics.histogram(names.REQUEST_SECONDS)
        self.metrics.observe(self._readings)

    def table(self) -> dict[tuple[str, str], Endpoint]:
        """The endpoints, for an application's table."""
        return {
            ("GET", "/livez"): Endpoint(self._live, is_work=False),
            ("GET", "/metrics"): Endpoint(self._expose, is_work=False),
        }

    def count(self, ended: Ended) -> None:
        """Counts a request that ended; for an application's `on_end`."""
        labels = (self._role, ended.path, ended.method, ended.status, ended.error_code or "")
        self._requests.labels(*labels).inc()
        self._durations.labels(self._role, ended.path).observe(ended.duration_s)

    def _readings(self) -> Iterator[observe.Reading]:
        yield names.REQUESTS_RUNNING, (self._role,), self._drain.num_running
        yield from self._read()

    async def _live(self, exchange: Exchange) -> None:
        await exchange.respond(200, b'{"status":"alive"}')

    async def _expose(self, exchange: Exchange) -> None:
        await exchange.respond(200, self.metrics.expose(), observe.CONTENT_TYPE)
