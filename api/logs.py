"""/v1/jobs/{id}/logs: what the job's attempts had to say."""

from flask import Blueprint, Response, jsonify

from api.answers import known_job
from api.asked import whole
from api.services import services
from jobs.logs import KEPT
from jobs.record import time_answer

blueprint = Blueprint("logs", __name__, url_prefix="/v1/jobs/<id>/logs")


@blueprint.get("")
def tail(id: str) -> Response:
    """The last lines of the job's log, the oldest first. Its attempts, their ranks, stages and
    errors, and what the libraries on the ranks warned of; kept for a week."""
    most = whole("tail", 100, KEPT)
    lines = services().store.logs.tail(known_job(id).id, most + 1)
    data = [{**line, "at": time_answer(line["at"])} for line in lines[-most:]]
    more = len(lines) > most
    return jsonify({"object": "list", "data": data, "has_more": more, "next": None})
