"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve.http.served_model import ServedModel

BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class _ModelCollector(Collector):
    """Asks the models when somebody asks it."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        gauges: dict[str, tuple[str, Callable[[ServedModel], float]]] = {
            "shearling_running_texts": ("Texts that are decoded.", lambda model: model.running),
            "shearling_waiting_texts": ("Texts that wait for a place.", lambda model: model.waiting),
            "shearling_cache_usage_ratio": (
                "Share of the allocated key-value cache in use.",
                lambda model: model.cache_usage if model.running else 0.0,
            ),
            "shearling_model_up": ("Whether the process of the model is there.", lambda model: model.alive),
        }
        for name, (documentation, value) in gauges.items():
            gauge = GaugeMetricFamily(name, documentation, labels=["model"])
            for model in self._models.values():
                gauge.add_metric([model.name], float(value(model)))
            yield gauge
        # What the processes made, not what was sent: work for clients that left, or were told 504, counts as well.
        made = CounterMetricFamily("shearling_new_tokens", "Tokens made.", labels=["model"])
        for model in self._models.values():
            made.add_metric([model.name], model.new_tokens)
        yield made


class ServerMetrics:
    """Counts of one server.

    Args:
        models: by name.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ModelCollector(models))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "shearling_requests_total", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._durations = Histogram(
            "shearling_request_seconds",
            "From the arrival of a request to the end of its answer.",
            ["path"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._first = Histogram(
            "shearling_first_piece_seconds",
            "From a streamed request to its first text.",
            ["model"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._prompt = Counter(
            "shearling_prompt_tokens_total", "Tokens of answered prompts.", ["model"], registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path, str(status)).inc()
        self._durations.labels(path).observe(seconds)

    def first_piece(self, model: str, seconds: float) -> None:
        """Count the wait for the first text of a stream."""
        self._first.labels(model).observe(seconds)

    def prompt_tokens(self, model: str, tokens: int) -> None:
        """Count those of a prompt."""
        self._prompt.labels(model).inc(tokens)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
