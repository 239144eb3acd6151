"""Counters and histograms of a server, in Prometheus' format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recgrela.serve.engine import Engine
from recgrela.serve.queries import Receipt

LATENCIES = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
METHODS = ("GET", "HEAD", "POST")  # others share a label, so that clients cannot make up labels


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: requests by method, route and status.
        latency: seconds of a request, by route.
        batch_size: events or queries of a call of the engine.
        events: events by what became of them: stored, duplicate, or stored of an unknown item.
        errors: failed requests of the engine, by error.
        reloads: checkpoints by outcome: taken, refused or failed.
        model: 1 for the model that serves, with its key and checkpoint as labels.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "recgrela_requests", "Requests.", ["method", "route", "status"], registry=registry
        )
        self.latency = Histogram(
            "recgrela_request_seconds", "Time of a request.", ["route"], buckets=LATENCIES, registry=registry
        )
        self.batch_size = Histogram(
            "recgrela_batch_size",
            "Events or queries of a call of the engine.",
            ["kind"],
            buckets=SIZES,
            registry=registry,
        )
        self.events = Counter("recgrela_events", "Events by outcome.", ["outcome"], registry=registry)
        self.errors = Counter(
            "recgrela_errors", "Failed requests of the engine.", ["error"], registry=registry
        )
        self.reloads = Counter(
            "recgrela_reloads", "New checkpoints by outcome.", ["outcome"], registry=registry
        )
        self.model = Gauge(
            "recgrela_model", "The model that serves.", ["key", "checkpoint"], registry=registry
        )
        self._queue = Gauge("recgrela_queue", "Requests that wait for the engine.", registry=registry)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Reports the length of the queue."""
        self._queue.set_function(length)

    def watch_states(self, engine: Callable[[], Engine]) -> None:
        """Reports what the engine that serves has folded into states."""
        self._registry.register(_States(engine))

    def count_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Counts events by outcome."""
        for receipt in receipts:
            outcome = "duplicate" if not receipt.stored else "stored" if receipt.known else "unknown_item"
            self.events.labels(outcome).inc()

    def set_model(self, key: str, checkpoint: str) -> None:
        """Reports the model that serves from now on."""
        self.model.clear()
        self.model.labels(key, checkpoint).set(1)


class _States(Collector):
    """Items by how they reached a state, since the engine that serves was made."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._engine = engine

    def collect(self) -> Iterable[CounterMetricFamily]:
        counts = self._engine().folder.counts
        items = CounterMetricFamily(
            "recgrela_state_items", "Items added to states of the current model.", labels=["how"]
        )
        items.add_metric(["step"], counts.steps)
        items.add_metric(["prefill"], counts.prefilled)
        yield items
        yield CounterMetricFamily(
            "recgrela_states_unsaved", "States that could not be stored.", value=counts.unsaved
        )


class Timing:
    """ASGI middleware that counts and times requests by route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - begin)
