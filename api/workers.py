"""/v1/workers: who is there, what each has in memory, and how to have one take no more jobs."""

from typing import Any

from flask import Blueprint, Response, jsonify

from api.auth import admin, caller
from api.services import services
from jobs.errors import NotFound
from jobs.workers import takes_jobs

blueprint = Blueprint("workers", __name__, url_prefix="/v1/workers")


@blueprint.get("")
def list_all() -> Response:
    """Which workers are there."""
    data = [_card(name, about) for name, about in services().store.workers.alive().items()]
    return jsonify({"object": "list", "data": data, "has_more": False, "next": None})


@blueprint.post("/<name>/drain")
@admin
def drain(name: str) -> tuple[Response, int]:
    """Drains a worker. It takes no more jobs from its next tick on, seconds later; those that run
    go on."""
    store = services().store
    about = store.workers.alive().get(name)
    if about is None:
        raise NotFound(f"There is no worker {name[:80]!r}.")
    store.workers.wish_drain(name, about["start"])
    return jsonify(_card(name, {**about, "draining": about.get("draining") or "asked for"})), 202


def _card(name: str, about: dict[str, Any]) -> dict[str, Any]:
    group, shown = about["group"], caller().may("admin")
    return {
        "id": name,
        "object": "worker",
        "ready": takes_jobs(about),
        "draining": about.get("draining"),
        "size": about["size"],
        "node": name.partition("@")[2],
        "ranks": group["ranks"],
        "lanes": [lane if shown else {**lane, "job": None} for lane in group.get("lanes", [])],
        "restarts": group["restarts"],
        "heartbeat_age_s": about["heartbeat_age_s"],
        "models": about["models"],
        "loaded": about.get("loaded", []),
    }
