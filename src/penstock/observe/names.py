"""Every metric of ours, with the engine's from their own table. One that is in neither does not exist."""

from __future__ import annotations

from penstock.observe import engine_names
from penstock.observe.metric import Metric

# Seconds, from a cached answer to a long generation.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Seconds to load a model, from a small one in the file cache to a large one from a slow disk.
LOAD_BUCKETS = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


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
LOCAL_MODELS = Metric(
    "penstock_local_models", "gauge", "Models with an engine on this machine, by state.", ("state",)
)
MODEL_WAITING = Metric(
    "penstock_model_requests_waiting", "gauge", "Requests that wait for their model to be loaded.", ("model",)
)
MODEL_LOADS = Metric(
    "penstock_model_loads_total", "counter", "Loads that ended, by outcome.", ("model", "outcome")
)
MODEL_LOAD_SECONDS = Metric(
    "penstock_model_load_seconds",
    "histogram",
    "From a model's first demand to its being ready, waiting for room included.",
    ("model",),
    LOAD_BUCKETS,
)
MODEL_UNLOADS = Metric(
    "penstock_model_unloads_total", "counter", "Models unloaded, by reason.", ("model", "reason")
)

ALL = (*(value for value in list(globals().values()) if isinstance(value, Metric)), *engine_names.ALL)
