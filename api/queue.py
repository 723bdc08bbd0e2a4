"""/v1/queue: what waits, for how long, and the operator's hold on it. /v1/usage: what was used."""

from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify

from api.asked import whole
from api.auth import admin, tenant
from api.services import services
from jobs.errors import NotFound
from jobs.queue import GPU_QUEUE
from jobs.request import JobRequest, work
from jobs.workers import takes_jobs

blueprint = Blueprint("queue", __name__, url_prefix="/v1")

MOST_DAYS = 400


@blueprint.get("/queue")
def get() -> Response:
    """What waits, and for how long."""
    return jsonify({"object": "list", "data": [_card()], "has_more": False, "next": None})


@blueprint.post("/queue/<name>/pause")
@admin
def pause(name: str) -> Response:
    """Holds the queue. No worker takes another job of it; those that run go on, new ones are
    accepted."""
    services().store.queues.pause(_known(name))
    return jsonify(_card())


@blueprint.post("/queue/<name>/resume")
@admin
def resume(name: str) -> Response:
    """Ends the hold."""
    services().store.queues.resume(_known(name))
    return jsonify(_card())


@blueprint.get("/usage")
def usage() -> Response:
    """What was used. Of the caller's tenant, by key and day (UTC), the latest first; `days` of
    them."""
    rows = services().store.tenants.usage(tenant(), whole("days", 30, MOST_DAYS))
    data = [asdict(row) for row in rows]
    return jsonify({"object": "list", "data": data, "has_more": False, "next": None})


def _known(name: str) -> str:
    if name != GPU_QUEUE:
        raise NotFound(f"There is no queue {name[:80]!r}.")
    return name


def estimate(asked: JobRequest) -> dict[str, Any]:
    """What a job that came now could expect. fits: None where no worker has the model in memory,
    and so nobody here knows."""
    model = asked.model
    workers = services().store.workers.alive().values()
    place = services().store.queues.place(GPU_QUEUE, tenant(), asked.priority)
    able = [w for w in workers if model in w["models"] and w["size"] >= asked.width]
    ready = list(filter(takes_jobs, able))
    at_once = not place.position and not place.paused and any(w.get("idle") for w in ready)
    return {
        "fits": (any(model in w.get("loaded", ()) for w in able) or None) if able else False,
        "workers_able": len(able),
        "workers_ready": len(ready),
        "position": place.position,
        "estimated_wait_s": 0.0 if at_once else place.eta_s,
        "estimated_run_s": services().store.queues.typical_s(GPU_QUEUE, model, work(asked)),
    }


def _card() -> dict[str, Any]:
    """estimated_wait_s: until a job that came now would begin, as far as the last ones tell."""
    store = services().store
    about = store.queues.about(GPU_QUEUE)
    workers = store.workers.alive().values()
    ready = list(filter(takes_jobs, workers))
    wait_s = None
    if any(w.get("idle") for w in ready) and not about.waiting:
        wait_s = 0.0
    elif ready and about.typical_s is not None:
        wait_s = (about.waiting + 1) * about.typical_s / max(1, about.running)
    return {
        "id": about.name,
        "object": "queue",
        "waiting": about.waiting,
        "running": about.running,
        "oldest_s": about.oldest_s,
        "estimated_wait_s": None if wait_s is None or about.paused else round(wait_s, 1),
        "paused": about.paused,
        "workers_ready": len(ready),
    }
