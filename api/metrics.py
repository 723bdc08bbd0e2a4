"""/metrics: the queue, the workers and the requests, as Prometheus reads them."""

import hmac
import ipaddress
import time
from collections.abc import Iterator

from flask import Blueprint, Flask, Response, current_app, g, request
from prometheus_client import CollectorRegistry, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.services import services
from jobs.errors import Forbidden, StoreUnavailable, Unauthorized
from jobs.queue import GPU_QUEUE
from jobs.store import JobStore
from jobs.workers import takes_jobs

blueprint = Blueprint("metrics", __name__)

# A wait for a job is a request too: up to minutes.
BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600)
FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")


def register(app: Flask) -> None:
    """Registered first, so that it measures what the others do too."""
    registry = CollectorRegistry()
    app.extensions["fleet_metrics"] = registry
    registry.register(FleetCollector(app.extensions["fleet"].store))
    # With PROMETHEUS_MULTIPROC_DIR they are in files, those of all processes.
    several = values.ValueClass is not values.MutexValue
    if several:
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    seconds = Histogram(
        "fleet_http_request_duration_seconds",
        "Until an answer begins.",
        ("route", "method", "status"),
        registry=None if several else registry,
        buckets=BUCKETS,
    )

    def begin() -> None:
        g.began = time.monotonic()

    def end(response: Response) -> Response:
        rule = request.url_rule
        # Of the caller's own words nothing becomes a label: each makes a new row, for ever.
        labels = (rule.rule, request.method) if rule else ("none", "none")
        seconds.labels(*labels, str(response.status_code)).observe(time.monotonic() - g.began)
        return response

    app.before_request(begin)
    app.after_request(end)


@blueprint.get("/metrics")
def metrics() -> Response:
    """For Prometheus. With FLEET_METRICS_TOKEN that token is needed, without it only loopback is
    answered."""
    _check(services().settings.metrics_token)
    registry: CollectorRegistry = current_app.extensions["fleet_metrics"]
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _check(token: str | None) -> None:
    """Raises: Unauthorized, Forbidden."""
    if token is not None:
        kind, _, sent = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode(), token.encode())
        if kind.lower() != "bearer" or not right:
            raise Unauthorized("Send FLEET_METRICS_TOKEN as `Authorization: Bearer TOKEN`.")
        return
    try:
        here = ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        here = False
    # A proxy on this machine asks from loopback too, for whoever asked it.
    if not here or any(name in request.headers for name in FORWARDED):
        raise Forbidden("Without FLEET_METRICS_TOKEN only this machine itself is answered.")


class FleetCollector(Collector):
    """What Redis knows, asked at each scrape."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would ask Redis for the names, at the start."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("fleet_redis_up", "Whether Redis answers.")
        try:
            found = [*self._queue(), *self._workers()]
        except StoreUnavailable:
            found = []
        up.add_metric([], 1 if found else 0)
        yield from [up, *found]

    def _queue(self) -> Iterator[Metric]:
        about = self._store.queues.about(GPU_QUEUE)
        values = {
            "waiting": ("Jobs that wait.", about.waiting),
            "running": ("Jobs that run.", about.running),
            "oldest_seconds": ("That the oldest job waits.", about.oldest_s or 0),
            "paused": ("1: nothing is claimed.", about.paused),
        }
        for name, (text, value) in values.items():
            row = GaugeMetricFamily(f"fleet_queue_{name}", text, labels=["queue"])
            row.add_metric([about.name], value)
            yield row

    def _workers(self) -> Iterator[Metric]:
        def row(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"fleet_{name}", text, labels=["worker", *labels])

        ready = row("worker_ready", "1: it takes jobs.")
        ranks = row("worker_ranks", "Ranks that live.")
        size = row("worker_ranks_wanted", "Ranks that it is to have.")
        restarts = row("worker_restarts", "Of its group.")
        loaded = row("worker_models_loaded", "Models in memory.")
        memory = row("rank_memory_bytes", "All that a rank's device has.", "rank")
        used = row("rank_memory_used_bytes", "Of it, allocated at its last step.", "rank")
        busy = row("gpu_utilization_percent", "As the driver says.", "rank")
        heat = row("gpu_temperature_celsius", "As the driver says.", "rank")
        for name, about in self._store.workers.alive().items():
            group = about["group"]
            ready.add_metric([name], takes_jobs(about))
            ranks.add_metric([name], len(group["ranks"]))
            size.add_metric([name], about["size"])
            restarts.add_metric([name], group["restarts"])
            loaded.add_metric([name], len(about.get("loaded", ())))
            for rank in group["ranks"]:
                labels = [name, str(rank["rank"])]
                memory.add_metric(labels, rank["memory_bytes"])
                if rank["memory"]:
                    used.add_metric(labels, rank["memory"]["allocated"])
                if rank.get("temperature_c") is not None:
                    busy.add_metric(labels, rank["utilization_percent"])
                    heat.add_metric(labels, rank["temperature_c"])
        yield from (ready, ranks, size, restarts, loaded, memory, used, busy, heat)
