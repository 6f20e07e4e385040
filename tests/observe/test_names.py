"""The table of metrics follows Prometheus' rules."""

from __future__ import annotations

import pytest

from penstock.observe.engine_names import STEP_TOKENS
from penstock.observe.metric import Metric
from penstock.observe.names import ALL


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_is_named_by_the_rules(metric: Metric) -> None:
    """Prefix; counters end in _total, times in seconds, and only histograms have buckets, which rise."""
    assert metric.name.startswith(("penstock_", "vllm:"))
    if metric is not STEP_TOKENS:  # vLLM's name for a histogram
        assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help.endswith(".")
    # The bounds of sizes depend on the model's context.
    is_histogram = metric.kind == "histogram"
    assert bool(metric.buckets) == is_histogram or (is_histogram and "tokens" in metric.name)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_no_name_is_taken_twice() -> None:
    """Two families of one name would be added up by whoever reads them."""
    assert len({metric.name for metric in ALL}) == len(ALL)
