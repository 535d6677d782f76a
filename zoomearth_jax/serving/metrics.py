"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self, generator: Any, uploads: Any, memory: Any):
        """Takes what has figures of its own, which are read when somebody asks."""
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(generator, uploads, memory))
        self.requests = Counter(
            "zoomearth_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "zoomearth_request_seconds",
            "Time from a request to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """All figures in Prometheus' text form."""
        return generate_latest(self._registry)


class _Figures(Collector):
    """Figures of the generator, the uploads and the memory at this moment."""

    def __init__(self, generator: Any, uploads: Any, memory: Any):
        self._generator, self._uploads, self._memory = generator, uploads, memory

    def collect(self) -> Iterator[Metric]:
        stats = self._generator.stats
        files, taken = self._uploads.counts()
        gauges = {
            "rows": ("Rows that can be written at the same time.", stats.rows),
            "rows_busy": ("Rows that requests hold.", stats.busy),
            "queue_length": ("Requests that wait for a row.", stats.waiting),
            "files": ("Uploaded files that are kept.", files),
            "files_bytes": ("Bytes of the disk that files and their tile stores take.", taken),
            "memory_bytes": ("Bytes of memory that bodies and decoded images take.", self._memory.taken),
        }
        for name, (said, value) in gauges.items():
            yield GaugeMetricFamily(f"zoomearth_{name}", said, value)
        yield CounterMetricFamily("zoomearth_tokens_read", "Tokens of prompts and pictures.", stats.prompt_tokens)
        yield CounterMetricFamily("zoomearth_tokens_written", "Tokens that the model has written.", stats.tokens)
        outcomes = CounterMetricFamily("zoomearth_generations", "Rows by how they ended.", labels=["outcome"])
        for outcome, count in sorted(stats.outcomes.items()):
            outcomes.add_metric([outcome], count)
        yield outcomes
