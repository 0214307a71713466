"""Serve the state of the workers over HTTP: `/health` as JSON, `/metrics` for Prometheus."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..serving.sessions import EngineProtocol

OF_ALL = {"streams": "Live streams", "clips": "Clips", "capacity": "Live streams that there is room for"}
OF_A_WORKER = {
    "streams": "Streams on the worker",
    "slots": "Live streams that the worker has room for; 0 while it starts",
    "fps": "Images per second, over the last 5 seconds",
    "suspect": "1 if the worker is slow to answer, or not ready",
    "draining": "1 if the worker's streams are being moved away",
}
DELAYS = {"0.5": "delay_p50", "0.95": "delay_p95"}


class WorkerCollector(Collector):
    """The figures of `engine.stats()`, read at every request."""

    def __init__(self, engine: EngineProtocol) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stats = self._engine.stats()
        for name, text in OF_ALL.items():
            yield GaugeMetricFamily(f"live2diff_{name}", text, value=stats[name])
        workers: dict[str, dict[str, Any]] = stats["workers"]
        for name, text in OF_A_WORKER.items():
            family = GaugeMetricFamily(f"live2diff_worker_{name}", text, labels=["worker"])
            for key, values in workers.items():
                family.add_metric([key], float(values[name]))
            yield family
        text = "Seconds from a frame's arrival to its image, over the last 5 seconds"
        family = GaugeMetricFamily("live2diff_worker_delay_seconds", text, labels=["worker", "quantile"])
        for key, values in workers.items():
            for quantile, name in DELAYS.items():
                family.add_metric([key, quantile], values[name])
        yield family


def metric_routes(engine: EngineProtocol) -> list[Route]:
    """Create the routes, for `demo.launch(app_kwargs={"routes": ...})`."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(engine))

    def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    def health(_: Request) -> Response:
        """Answer with status 503 while there is no room at all."""
        stats = engine.stats()
        return JSONResponse(stats, 200 if stats["capacity"] else 503)

    return [Route("/metrics", metrics), Route("/health", health)]
