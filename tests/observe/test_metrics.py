"""Exposition of a process's metrics."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from penstock.observe import names
from penstock.observe.metrics import Metrics


def test_everything_exposed_can_be_read_back() -> None:
    """By Prometheus' own parser: kinds, help, labels, values."""
    metrics = Metrics()
    metrics.counter(names.REQUESTS).labels("gateway", "/x", "GET", 200, "").inc(3)
    metrics.histogram(names.ENGINE_TTFT).observe(0.003)
    metrics.observe(
        lambda: [
            (names.ENGINE_KV_BLOCKS, ("free",), 5),
            (names.ENGINE_KV_BLOCKS, ('we"ird\n\\',), 6),
            (names.ENGINE_STEPS, (), 7),
            (names.ENGINE_RUNNING, (), 2),
        ]
    )
    families = {family.name: family for family in parse(metrics.expose().decode())}
    requests = families["penstock_requests"]
    assert (requests.type, requests.documentation) == ("counter", names.REQUESTS.help)
    assert [s.value for s in requests.samples if s.name == "penstock_requests_total"] == [3]
    blocks = families["penstock_engine_kv_blocks"]
    assert {sample.labels["state"]: sample.value for sample in blocks.samples} == {"free": 5, 'we"ird\n\\': 6}
    assert families["penstock_engine_steps"].samples[0].value == 7
    bounds = [
        sample.labels["le"]
        for sample in families[names.ENGINE_TTFT.name].samples
        if sample.name.endswith("_bucket")
    ]
    assert [float(bound) for bound in bounds] == [*names.TTFT_BUCKETS, float("inf")]


def test_readings_are_taken_at_each_exposition() -> None:
    """Values that live elsewhere are never stale."""
    metrics, value = Metrics(), [1.0]
    metrics.observe(lambda: [(names.ENGINE_RUNNING, (), value[0])])
    assert b"penstock_engine_sequences_running 1.0" in metrics.expose()
    value[0] = 2.0
    assert b"penstock_engine_sequences_running 2.0" in metrics.expose()


def test_a_metric_is_made_once() -> None:
    """A second one would split its counts."""
    metrics = Metrics()
    metrics.counter(names.REQUESTS)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.counter(names.REQUESTS)


def test_processes_do_not_share_metrics() -> None:
    """Each registry is its own, so tests and workers do not disturb each other."""
    one, other = Metrics(), Metrics()
    one.counter(names.ENGINE_STEPS).inc()
    assert other.expose() == b""
