"""Every metric of ours: name, kind, labels, help. A metric that is not here does not exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

# Seconds, from a cached answer to a long generation.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
# Seconds to the first token, after the OpenTelemetry GenAI convention.
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


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
ENGINE_RUNNING = Metric("penstock_engine_sequences_running", "gauge", "Sequences in the running batch.")
ENGINE_WAITING = Metric("penstock_engine_sequences_waiting", "gauge", "Sequences queued.")
ENGINE_KV_BLOCKS = Metric("penstock_engine_kv_blocks", "gauge", "KV blocks, by state.", ("state",))
ENGINE_LORAS = Metric("penstock_engine_loras", "gauge", "LoRA adapters in memory, by state.", ("state",))
ENGINE_STEPS = Metric("penstock_engine_steps_total", "counter", "Engine steps.")
ENGINE_FAILED_STEPS = Metric("penstock_engine_failed_steps_total", "counter", "Engine steps that raised.")
ENGINE_STUCK_STEPS = Metric(
    "penstock_engine_stuck_steps_total", "counter", "Engine steps given up by the watchdog; the process ends."
)
ENGINE_STEP_SECONDS = Metric("penstock_engine_step_seconds_total", "counter", "Time spent in engine steps.")
ENGINE_PREEMPTIONS = Metric(
    "penstock_engine_preemptions_total", "counter", "Sequences that gave their KV blocks back to others."
)
ENGINE_PREFIX_QUERIED_TOKENS = Metric(
    "penstock_engine_prefix_queried_tokens_total", "counter", "Prompt tokens looked up in the prefix cache."
)
ENGINE_PREFIX_HIT_TOKENS = Metric(
    "penstock_engine_prefix_hit_tokens_total", "counter", "Prompt tokens found in the prefix cache."
)
ENGINE_EVICTIONS = Metric(
    "penstock_engine_prefix_evictions_total", "counter", "KV blocks that the prefix cache gave up for others."
)
ENGINE_PROMPT_TOKENS = Metric(
    "penstock_engine_prompt_tokens_total", "counter", "Prompt tokens computed, recomputed ones included."
)
ENGINE_GENERATED_TOKENS = Metric("penstock_engine_generated_tokens_total", "counter", "Tokens sampled.")
ENGINE_TTFT = Metric(
    "penstock_engine_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival at the replica to its first token.",
    (),
    TTFT_BUCKETS,
)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
