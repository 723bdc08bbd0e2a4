"""/v1/workers: who is there, what each has in memory, and how to have one take no more jobs."""

from typing import Any

from flask import Blueprint, Response, jsonify

from api.services import services
from jobs.errors import NotFound

blueprint = Blueprint("workers", __name__, url_prefix="/v1/workers")


@blueprint.get("")
def list_all() -> Response:
    data = [_card(name, about) for name, about in services().store.workers.alive().items()]
    return jsonify({"object": "list", "data": data, "has_more": False, "next": None})


@blueprint.post("/<name>/drain")
def drain(name: str) -> tuple[Response, int]:
    """It takes no more jobs from its next tick on, seconds later; those that run go on."""
    store = services().store
    about = store.workers.alive().get(name)
    if about is None:
        raise NotFound(f"There is no worker {name[:80]!r}.")
    store.workers.wish_drain(name, about["start"])
    return jsonify(_card(name, {**about, "draining": about.get("draining") or "asked for"})), 202


def _card(name: str, about: dict[str, Any]) -> dict[str, Any]:
    group = about["group"]
    return {
        "id": name,
        "object": "worker",
        "ready": group["ready"] and not about.get("draining"),
        "draining": about.get("draining"),
        "size": about["size"],
        "ranks": group["ranks"],
        "restarts": group["restarts"],
        "models": about["models"],
        "loaded": about.get("loaded", []),
    }
