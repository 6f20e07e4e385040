"""Exposition of a process's metrics."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from penstock.observe import engine_names, names
from penstock.observe.buckets import Buckets, one_two_five
from penstock.observe.metrics import Metrics


def test_everything_exposed_can_be_read_back() -> None:
    """By Prometheus' own parser: kinds, help, labels, values."""
    metrics = Metrics()
    metrics.counter(names.REQUESTS).labels("gateway", "/x", "GET", 200, "").inc(3)
    metrics.histogram(names.REQUEST_SECONDS).labels("engine", "/x").observe(0.003)
    steps = Buckets(engine_names.STEP_TOKENS.buckets)
    for tokens in (1, 8, 9, 1_000_000):
        steps.observe(tokens)
    metrics.observe(
        lambda: [
            (engine_names.KV_BLOCKS, ("free",), 5),
            (engine_names.KV_BLOCKS, ('we"ird\n\\',), 6),
            (engine_names.PREEMPTIONS, ("m", "0"), 7),
            (engine_names.RUNNING, ("m", "0"), 2),
            (engine_names.STEP_TOKENS, ("m", "0"), steps),
        ]
    )
    families = {family.name: family for family in parse(metrics.expose().decode())}
    requests = families["penstock_requests"]
    assert (requests.type, requests.documentation) == ("counter", names.REQUESTS.help)
    assert [s.value for s in requests.samples if s.name == "penstock_requests_total"] == [3]
    blocks = families["penstock_engine_kv_blocks"]
    assert {sample.labels["state"]: sample.value for sample in blocks.samples} == {"free": 5, 'we"ird\n\\': 6}
    assert families["vllm:num_preemptions"].samples[0].value == 7
    counted = {
        sample.labels.get("le", sample.name): sample.value
        for sample in families["vllm:iteration_tokens_total"].samples
    }
    assert (counted["1.0"], counted["8.0"], counted["16.0"], counted["+Inf"]) == (1, 2, 3, 4)
    assert counted["vllm:iteration_tokens_total_sum"] == 1_000_018
    assert counted["vllm:iteration_tokens_total_count"] == 4
    bounds = [
        sample.labels["le"]
        for sample in families[names.REQUEST_SECONDS.name].samples
        if sample.name.endswith("_bucket")
    ]
    assert [float(bound) for bound in bounds] == [*names.DURATION_BUCKETS, float("inf")]


def test_readings_are_taken_at_each_exposition() -> None:
    """Values that live elsewhere are never stale."""
    metrics, value = Metrics(), [1.0]
    metrics.observe(lambda: [(engine_names.FAILED_STEPS, (), value[0])])
    assert b"penstock_engine_failed_steps_total 1.0" in metrics.expose()
    value[0] = 2.0
    assert b"penstock_engine_failed_steps_total 2.0" in metrics.expose()


def test_a_metric_is_made_once() -> None:
    """A second one would split its counts."""
    metrics = Metrics()
    metrics.counter(names.REQUESTS)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.counter(names.REQUESTS)


def test_processes_do_not_share_metrics() -> None:
    """Each registry is its own, so tests and workers do not disturb each other."""
    one, other = Metrics(), Metrics()
    one.counter(engine_names.FAILED_STEPS).inc()
    assert other.expose() == b""


def test_bounds_of_sizes_are_vllms() -> None:
    """1, 2, 5, 10, ... up to the context."""
    assert one_two_five(1000) == (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    assert one_two_five(30) == (1, 2, 5, 10, 20)
