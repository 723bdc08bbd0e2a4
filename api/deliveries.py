"""/v1/jobs/{id}/deliveries: what the job's webhook was told, and once more."""

from typing import Any

from flask import Blueprint, Response, jsonify

from api.answers import known_job
from api.services import services
from jobs.errors import NotFound
from jobs.outbox import Delivery
from jobs.queue import hint_delivery
from jobs.record import time_answer

blueprint = Blueprint("deliveries", __name__, url_prefix="/v1/jobs/<id>/deliveries")


@blueprint.get("")
def list_all(id: str) -> Response:
    """What the job's webhook was told, and is to be told."""
    data = [_answer(each) for each in services().store.outbox.of(known_job(id).id)]
    return jsonify({"object": "list", "data": data, "has_more": False, "next": None})


@blueprint.post("/<delivery>/redeliver")
def redeliver(id: str, delivery: str) -> tuple[Response, int]:
    """Tells it once more. Due now, whatever came of it; it has all its attempts again."""
    fleet = services()
    if not fleet.store.outbox.redeliver(known_job(id).id, delivery):
        raise NotFound(f"Job {id} has no delivery {delivery[:80]!r}.")
    hint_delivery(fleet.celery, fleet.store)
    return jsonify(next(_answer(d) for d in fleet.store.outbox.of(id) if d.id == delivery)), 202


def _answer(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "object": "delivery",
        "job_id": delivery.job,
        "event": delivery.event,
        "url": delivery.url,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "last_status": delivery.last_status,
        "last_error": delivery.last_error,
        "created_at": time_answer(delivery.created_at),
        "next_at": time_answer(delivery.next_at),
        "delivered_at": time_answer(delivery.delivered_at),
    }
