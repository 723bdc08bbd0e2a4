"""/v1/jobs: create, get, list, cancel, retry, delete, outputs, and the list of the dead."""

import hashlib
import json
import time
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, request, send_file, url_for
from werkzeug.wrappers import Response as BaseResponse

from api.answers import job_answer, known_job, unknown
from api.asked import (
    applied,
    bad_parameter,
    check_width,
    choice,
    cursor,
    idempotency_key,
    json_body,
    limit,
    wait_s_asked,
)
from api.services import services
from jobs.errors import (
    InvalidRequest,
    JobActive,
    ModelNotFound,
    NotFound,
    NotReady,
    OutputExpired,
)
from jobs.parse import parse_request
from jobs.queue import send_hint
from jobs.record import Job, JobState
from jobs.request import JobRequest, stored_request

blueprint = Blueprint("jobs", __name__, url_prefix="/v1/jobs")

POLL_S = 0.1


@blueprint.post("")
def create() -> Response:
    body = json_body()
    asked, warnings = parse_request(body, services().catalog)
    return _submitted(asked, warnings, json.dumps(body, sort_keys=True))


@blueprint.post("/<id>/retry")
def retry(id: str) -> Response:
    """A new job that asks for the same, seed and all. The old one stays as it ended."""
    job = known_job(id)
    if request.get_data():
        raise InvalidRequest("A retry asks for the same: it takes no body yet.")
    if not job.state.final:
        raise JobActive(f"Job {id} is {job.status}.")
    if job.model not in services().catalog:
        raise ModelNotFound(f"There is no model {job.model!r} any more.")
    asked = stored_request(json.dumps(job.request))
    return _submitted(asked, job.warnings, f"retry {id}", retry_of=id)


def _submitted(asked: JobRequest, warnings: list[str], said: str, retry_of: str = "") -> Response:
    """Records the job, tells a worker, and answers. said: what an idempotency key stands for."""
    fleet = services()
    check_width(asked)
    id, created = fleet.store.submit(
        asked,
        warnings=warnings,
        key=idempotency_key(),
        body_hash=hashlib.sha256(said.encode()).hexdigest(),
        retry_of=retry_of,
    )
    if created:
        send_hint(fleet.celery, fleet.store, id, first=True)
    wait_s = wait_s_asked()
    job = _wait(id, wait_s, lambda job: job.state.final)
    response = jsonify(job_answer(job))
    response.status_code = 200 if wait_s and job.state.final else 202
    response.headers["Location"] = url_for("jobs.get", id=id)
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    if not job.state.final:
        response.headers["Retry-After"] = "1"
    return applied(response, wait_s)


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """With `Prefer: wait=N` it answers at the next change of status, at the latest after N s."""
    wait_s, before = wait_s_asked(), known_job(id)
    job = _wait(id, wait_s, lambda job: job.state.final or job.status != before.status)
    response = applied(jsonify(job_answer(job)), wait_s)
    response.set_etag(f"{job.id}-{job.seq}")
    response.make_conditional(request)
    return response


@blueprint.get("")
def list_all() -> Response:
    known = {"status", "batch_id", "limit", "after", "order"}
    for name in request.args:
        if name not in known:
            raise bad_parameter(name, f"Known are {', '.join(sorted(known))}.")
    if {"status", "batch_id"} <= set(request.args):
        raise bad_parameter("status", "Not with batch_id: the batch itself counts its states.")
    jobs, following = services().store.list_jobs(
        state=choice("status", [s.value for s in JobState], JobState),
        batch=request.args.get("batch_id", ""),
        limit=limit(),
        after=cursor(),
        newest_first=choice("order", ["desc", "asc"], str) != "asc",
    )
    data = [job_answer(job) for job in jobs]
    more = following is not None
    return jsonify({"object": "list", "data": data, "has_more": more, "next": following})


@blueprint.get("/dead")
def dead() -> Response:
    """What faults ended and nobody has retried: a person should look."""
    jobs = services().store.dead(limit=101)
    data = [job_answer(job) for job in jobs[:100]]
    more = len(jobs) > 100
    return jsonify({"object": "list", "data": data, "has_more": more, "next": None})


@blueprint.post("/<id>/cancel")
def cancel(id: str) -> Response:
    """Again and again, if you like: the answer is the job as it stands."""
    if not services().store.cancel(id):
        raise unknown(id)
    return jsonify(job_answer(known_job(id)))


@blueprint.delete("/<id>")
def delete(id: str) -> tuple[str, int]:
    if not services().store.delete(id):
        raise unknown(id)
    return "", 204


@blueprint.get("/<id>/outputs/<int:index>")
def output(id: str, index: int) -> BaseResponse:
    """302 to a signed URL, or the bytes where the storage is a folder."""
    job = known_job(id)
    if job.state is not JobState.SUCCEEDED:
        if job.state.final:
            raise NotFound(f"Job {id} {job.status}: it has no outputs.")
        raise NotReady(f"Job {id} is {job.status}.")
    artifact = next((a for a in job.artifacts if a.index == index), None)
    if artifact is None:
        raise NotFound(f"Job {id} has outputs 0 to {len(job.artifacts) - 1}.")
    storage = services().storage
    if link := storage.link(artifact.key):
        return redirect(link[0], 302)
    path = storage.path(artifact.key)
    if path is None or not path.is_file():
        raise OutputExpired(f"Output {index} of job {id} is gone from the storage.")
    return send_file(path, artifact.content_type, conditional=True, etag=artifact.sha256)


def _wait(id: str, wait_s: int, enough: Any) -> Job:
    """Reads the whole record only when its seq has moved."""
    until = time.monotonic() + wait_s
    job = known_job(id)
    while not enough(job) and time.monotonic() < until:
        time.sleep(POLL_S)
        if services().store.seq(id) != job.seq:
            job = known_job(id)
    return job
