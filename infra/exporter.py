"""Prometheus text of a `Metrics` at http://HOST:PORT/metrics, made when somebody asks: who counts pays nothing for it.

As Prometheus's conventions have it, every name begins with driftline_, and times are in seconds: `model_age_ms` is
`driftline_model_age_seconds`. What every process tells (`process_resident_memory_bytes` and so on) comes with it.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.metrics import BUCKETS, NAMES, Histogram, Metrics

log = logging.getLogger(__name__)
_MS = 1000.0


def exported_name(name: str) -> str:
    """The name that a name of `infra.metrics.NAMES` has in Prometheus."""
    return f"driftline_{name}".replace("_ms", "_seconds")


def export(metrics: Metrics, host: str, port: int, labels: Mapping[str, str]) -> Any:
    """Answer at this address in a thread of its own, with `labels` on every value; `labels["role"]` is the role.

    The server; None where the address cannot be had: that is told in the log, and the role goes on without.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(metrics, labels))
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        log.error(
            "no metrics at http://%s:%d/metrics: %s; the role goes on without. Fix: give another address in "
            "DRIFTLINE_METRICS, then start it again",
            host,
            port,
            error.strerror or error,
        )
        return None
    log.info("metrics at http://%s:%d/metrics", host, port)
    return server


class _Collector(Collector):
    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        self._metrics, self._labels = metrics, dict(labels)
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        for family in (*self._ours(), *self._process.collect()):
            family.samples = [each._replace(labels=self._labels | each.labels) for each in family.samples]
            yield family

    def _ours(self) -> Iterator[Metric]:
        found: dict[str, dict[str, float]] = {}
        for name, of, value in self._metrics.samples():
            found.setdefault(name, {})[of] = value
        observed = {histogram.name: histogram for histogram in self._metrics.histograms()}
        for name in NAMES:
            if name in observed:
                yield _histogram(observed[name])
            elif values := self._zeros(name) | found.get(name, {}):
                yield _family(name, values)

    def _zeros(self, name: str) -> dict[str, float]:
        """A counter of this role begins at 0: else its first count would not be seen as a rise."""
        known = NAMES[name]
        if not name.endswith("_total") or self._labels["role"] not in known.roles:
            return {}
        return dict.fromkeys(known.of if known.label else [""], 0.0)


def _family(name: str, values: Mapping[str, float]) -> Metric:
    known = NAMES[name]
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(exported_name(name), known.help, labels=[known.label] if known.label else [])
    for of, value in values.items():
        family.add_metric([of] if known.label else [], value / _MS if "_ms" in name else value)
    return family


def _histogram(found: Histogram) -> Metric:
    bounds = [*(f"{bound / _MS:g}" for bound in BUCKETS[found.name]), "+Inf"]
    counted, buckets = 0, list[tuple[str, float]]()
    for bound, count in zip(bounds, found.counts, strict=True):
        counted += count
        buckets.append((bound, counted))
    family = HistogramMetricFamily(exported_name(found.name), NAMES[found.name].help)
    family.add_metric([], buckets, found.sum / _MS)
    return family
