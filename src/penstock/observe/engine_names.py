"""The engine's metrics: vLLM's (0.33) by their names, labels and buckets, and ours for what it lacks.

Dashboards, autoscalers and routers that know vLLM know this engine. Of vLLM's this leaves out what the engine
does not have: multimodal caches, external prefix caches, watermarks, estimates of FLOPs, block lifetimes.
"""

from __future__ import annotations

from penstock.observe.metric import Kind, Metric

_OWN = ("model_name", "engine")
_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_GAPS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_LATENCIES = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
# vLLM's first bucket of gaps ends at 10 ms, where most gaps of a fast engine are.
_FINE = (
    0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03,
    0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
SIZES: tuple[float, ...] = ()
"""Stands for 1, 2, 5, 10, ... up to the model's context."""


def _vllm(name: str, kind: Kind, help_: str, *labels: str, buckets: tuple[float, ...] = SIZES) -> Metric:
    suffix = "_total" if kind == "counter" else ""
    return Metric(f"vllm:{name}{suffix}", kind, help_, (*_OWN, *labels), buckets)


RUNNING = _vllm("num_requests_running", "gauge", "Sequences in the running batch.")
WAITING = _vllm("num_requests_waiting", "gauge", "Sequences queued.")
WAITING_BY_REASON = _vllm(
    "num_requests_waiting_by_reason",
    "gauge",
    "Sequences queued: for room (capacity), for another's prompt that they share (deferred).",
    "reason",
)
KV_USAGE = _vllm("kv_cache_usage_perc", "gauge", "Share of KV blocks that running sequences use, 0 to 1.")
CACHE_CONFIG = _vllm(
    "cache_config_info",
    "gauge",
    "1; the KV cache's shape in its labels.",
    "block_size",
    "num_gpu_blocks",
    "cache_dtype",
    "enable_prefix_caching",
)
PROMPT_TOKENS = _vllm("prompt_tokens", "counter", "Prompt tokens of admitted sequences, each once.")
PROMPT_TOKENS_BY_SOURCE = _vllm(
    "prompt_tokens_by_source", "counter", "The same, by local_compute and local_cache_hit.", "source"
)
PROMPT_TOKENS_CACHED = _vllm("prompt_tokens_cached", "counter", "Those of them found in the prefix cache.")
GENERATION_TOKENS = _vllm("generation_tokens", "counter", "Tokens generated.")
REQUEST_SUCCESS = _vllm(
    "request_success",
    "counter",
    "Answers that ended, by reason: stop, length, abort, error.",
    "finished_reason",
)
PREEMPTIONS = _vllm("num_preemptions", "counter", "Sequences that gave their KV blocks back to others.")
PREFIX_QUERIES = _vllm("prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache.")
PREFIX_HITS = _vllm("prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache.")
CORRUPTED = _vllm("corrupted_requests", "counter", "Sequences whose logits were no numbers.")
REJECTIONS = _vllm(
    "admission_rejections", "counter", "Requests refused because the queue was full.", "reason"
)
DRAFTS = _vllm("spec_decode_num_drafts", "counter", "Drafts made by prompt lookup.")
DRAFT_TOKENS = _vllm("spec_decode_num_draft_tokens", "counter", "Tokens in them.")
ACCEPTED_TOKENS = _vllm("spec_decode_num_accepted_tokens", "counter", "Those of them that were right.")
ACCEPTED_BY_POSITION = _vllm(
    "spec_decode_num_accepted_tokens_per_pos",
    "counter",
    "The same by place in the draft, from 0.",
    "position",
)
TTFT = _vllm("time_to_first_token_seconds", "histogram", "From arrival to the first token.", buckets=_TTFT)
INTER_TOKEN = _vllm(
    "inter_token_latency_seconds", "histogram", "From one token of an answer to its next.", buckets=_GAPS
)
TPOT = _vllm(
    "request_time_per_output_token_seconds",
    "histogram",
    "Mean time between an answer's tokens.",
    buckets=_GAPS,
)
E2E = _vllm(
    "e2e_request_latency_seconds", "histogram", "From arrival to an answer's end.", buckets=_LATENCIES
)
QUEUE_TIME = _vllm(
    "request_queue_time_seconds", "histogram", "From arrival to admission.", buckets=_LATENCIES
)
PREFILL_TIME = _vllm(
    "request_prefill_time_seconds", "histogram", "From admission to the first token.", buckets=_LATENCIES
)
DECODE_TIME = _vllm(
    "request_decode_time_seconds", "histogram", "From the first token to the last.", buckets=_LATENCIES
)
INFERENCE_TIME = _vllm(
    "request_inference_time_seconds", "histogram", "From admission to the last token.", buckets=_LATENCIES
)
REQUEST_PROMPT_TOKENS = _vllm("request_prompt_tokens", "histogram", "Prompt tokens of a request.")
REQUEST_GENERATION_TOKENS = _vllm("request_generation_tokens", "histogram", "Tokens of an answer.")
REQUEST_MOST_TOKENS = _vllm(
    "request_max_num_generation_tokens", "histogram", "Tokens of a request's longest answer."
)
REQUEST_N = _vllm("request_params_n", "histogram", "Answers asked for.", buckets=(1.0, 2.0, 5.0, 10.0, 20.0))
REQUEST_MAX_TOKENS = _vllm("request_params_max_tokens", "histogram", "Longest answer allowed, tokens.")
REQUEST_PREEMPTIONS = _vllm(
    "request_num_preemptions",
    "histogram",
    "How often an answer's sequence was preempted.",
    buckets=(0.0, 1.0, 2.0, 5.0, 10.0),
)
REQUEST_COMPUTED = _vllm(
    "request_prefill_kv_computed_tokens", "histogram", "Prompt tokens of an answer that were not cached."
)
STEP_TOKENS = _vllm(
    "iteration_tokens_total",
    "histogram",
    "Tokens computed in a step.",
    buckets=tuple(float(1 << power) for power in (0, *range(3, 15))),
)

KV_BLOCKS = Metric("penstock_engine_kv_blocks", "gauge", "KV blocks, by state.", ("state",))
MEMORY = Metric(
    "penstock_engine_memory_bytes", "gauge", "Memory as planned: weights, kv_pool, workspace.", ("use",)
)
LORAS = Metric("penstock_engine_loras", "gauge", "LoRA adapters in memory, by state.", ("state",))
STEP_SECONDS = Metric("penstock_engine_step_seconds", "histogram", "Time of a step.", (), _FINE)
FINE_INTER_TOKEN = Metric(
    "penstock_engine_inter_token_seconds",
    "histogram",
    "From one token of an answer to its next, with buckets below vLLM's.",
    (),
    _FINE,
)
DRAFT_ACCEPTANCE = Metric(
    "penstock_engine_draft_acceptance_ratio",
    "gauge",
    "Share of draft tokens that were right, since the start.",
)
FAILED_STEPS = Metric("penstock_engine_failed_steps_total", "counter", "Engine steps that raised.")
STUCK_STEPS = Metric(
    "penstock_engine_stuck_steps_total", "counter", "Engine steps given up by the watchdog; the process ends."
)
EVICTIONS = Metric(
    "penstock_engine_prefix_evictions_total", "counter", "KV blocks that the prefix cache gave up for others."
)
KV_MOVED = Metric(
    "penstock_engine_kv_blocks_moved_total",
    "counter",
    "KV blocks that came from a snapshot or another replica, or went to one.",
    ("way",),
)
COMPUTED_PROMPT_TOKENS = Metric(
    "penstock_engine_prompt_tokens_total", "counter", "Prompt tokens computed, recomputed ones included."
)
ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
