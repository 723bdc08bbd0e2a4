"""/v1/jobs/{id}/events: a job's changes as they come, by server-sent events."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, request, stream_with_context

from api.answers import job_answer, known_job
from api.auth import tenant
from api.services import services
from jobs.errors import StoreUnavailable
from jobs.record import Job

blueprint = Blueprint("events", __name__, url_prefix="/v1/jobs")

HEARTBEAT_S = 10
PACE_S = 0.25  # between two events of a stream
AWAY_S = 1


@blueprint.get("/<id>/events")
def events(id: str) -> Response:
    """A job's changes as server-sent events. First the job as it is, unless Last-Event-ID says that
    the caller knows; then every change of its status, and of its progress at most four times a
    second. It ends with the job."""
    job = known_job(id)
    known = request.headers.get("Last-Event-ID", "")
    seen = int(known) if known.isdecimal() and len(known) < 20 else -1
    if job.state.final and seen == job.seq:
        return Response(status=204)  # an EventSource comes back no more
    follower, owner = services().follower, tenant()
    changed = follower.watch(id, owner)
    stream = Response(
        stream_with_context(_tell(id, owner, seen, changed)), mimetype="text/event-stream"
    )
    stream.call_on_close(lambda: follower.give_back(id, changed, owner))
    stream.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    return stream


def _tell(id: str, owner: str, seen: int, changed: threading.Event) -> Iterator[str]:
    before: Job | None = None
    while True:
        changed.clear()
        try:
            job = services().store.get(id, owner)
            news = _news(before, job) if job and job.seq != seen else None
        except StoreUnavailable:
            yield ": the queue does not answer\n\n"
            time.sleep(AWAY_S)
            continue
        if job is None:
            yield _event("deleted", seen + 1, {"id": id})
            return
        if news:
            yield _event(news[0], job.seq, news[1])
            before, seen = job, job.seq
        if job.state.final:
            return
        time.sleep(PACE_S)
        if not changed.wait(HEARTBEAT_S):
            yield ": still here\n\n"


def _news(before: Job | None, job: Job) -> tuple[str, dict[str, Any]]:
    whole = job_answer(job)
    if before is None:
        return "snapshot", whole
    if (before.status, len(before.attempts)) != (job.status, len(job.attempts)):
        return "status", whole
    return "progress", {key: whole[key] for key in ("id", "status", "seq", "progress")}


def _event(kind: str, seq: int, data: dict[str, Any]) -> str:
    return f"event: {kind}\nid: {seq}\ndata: {json.dumps(data)}\n\n"
