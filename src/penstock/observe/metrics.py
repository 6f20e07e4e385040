"""The metrics of one process, made from the table of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from penstock.observe.buckets import Buckets
from penstock.observe.metric import Metric

disable_created_metrics()  # type: ignore[no-untyped-call]  # no `..._created` series: names that are not in the table
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# A reading: the metric, its label values, its value now.
Reading = tuple[Metric, tuple[str, ...], float | Buckets]
_Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
_FAMILIES: dict[str, Callable[..., _Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class Metrics:
    """The registry of a process; a metric is made once and by its entry in the table."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

    def counter(self, metric: Metric) -> Counter:
        """A counter. Raises ValueError if it was made before."""
        assert metric.kind == "counter"
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def histogram(self, metric: Metric) -> Histogram:
        """A histogram. Raises ValueError if it was made before."""
        assert metric.kind == "histogram"
        return Histogram(
            metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry
        )

    def observe(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Calls `read` at each exposition, for values that live elsewhere (the engine knows no metrics)."""
        self._registry.register(_Readings(read))

    def expose(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[_Family]:
        families: dict[str, _Family] = {}
        for metric, labels, value in self._read():
            if metric.name not in families:
                families[metric.name] = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            family = families[metric.name]
            if isinstance(value, Buckets):
                assert isinstance(family, HistogramMetricFamily)
                family.add_metric(list(labels), value.cumulative(), value.sum)
            else:
                assert not isinstance(family, HistogramMetricFamily)
                family.add_metric(list(labels), value)
        yield from families.values()
