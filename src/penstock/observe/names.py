"""Every metric of ours, with the engine's from their own table. One that is in neither does not exist."""

from __future__ import annotations

from penstock.observe import engine_names
from penstock.observe.metric import Metric

# Seconds, from a cached answer to a long generation.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


REQUESTS = Metric(
    "penstock_requests_total",
    "counter",
    "Requests that ended, each once. code is the error's code or empty.",
    ("role", "path", "method", "status", "code"),
)
REQUEST_SECONDS = Metric(
    "penstock_request_duration_seconds",
    "histogram",
    "From the request's head to the last byte of the answer.",
    ("role", "path"),
    DURATION_BUCKETS,
)
REQUESTS_RUNNING = Metric("penstock_requests_running", "gauge", "Requests being worked on.", ("role",))
REPLICA_READY = Metric(
    "penstock_replica_ready", "gauge", "1 if the replica answers its health check.", ("model", "replica")
)
UPSTREAM_CONNECTIONS = Metric(
    "penstock_upstream_connections", "gauge", "Connections to replicas, by state.", ("state",)
)

ALL = (*(value for value in list(globals().values()) if isinstance(value, Metric)), *engine_names.ALL)
