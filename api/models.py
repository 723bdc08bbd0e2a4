"""/v1/models: what may be asked."""

from typing import Any

from flask import Blueprint, Response, jsonify

from api.services import services
from jobs.catalog import ModelSpec
from jobs.errors import ModelNotFound
from jobs.request import defaults, input_schema
from jobs.workers import takes_jobs

blueprint = Blueprint("models", __name__, url_prefix="/v1/models")


@blueprint.get("")
def list_all() -> Response:
    """What may be asked."""
    workers = services().store.workers.alive()
    data = [_card(spec, workers) for spec in services().catalog.values()]
    return jsonify({"object": "list", "data": data, "has_more": False, "next": None})


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """A model: its tasks, their inputs, defaults and limits."""
    spec = services().catalog.get(id)
    if spec is None:
        raise ModelNotFound(f"There is no model {id[:80]!r}.")
    return jsonify(_card(spec, services().store.workers.alive()))


def _card(spec: ModelSpec, workers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An OpenAI model card and more."""
    return {
        "id": spec.id,
        "object": "model",
        "created": 0,
        "owned_by": spec.owned_by,
        "tasks": list(spec.tasks),
        "input_schema": {task: input_schema(spec, task) for task in spec.tasks},
        "defaults": {task: defaults(spec, task) for task in spec.tasks},
        "limits": spec.limits.model_dump(),
        "loras": {name: lora.description for name, lora in spec.loras.items()},
        "workers_ready": sum(
            takes_jobs(about) and spec.id in about["models"] for about in workers.values()
        ),
        "loaded": [name for name, about in workers.items() if spec.id in about.get("loaded", ())],
    }
