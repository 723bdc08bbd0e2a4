"""/v1/batches: many jobs at once, all of them or none; how far they are; cancel."""

import copy
import hashlib
import itertools
import json
from typing import Any

from flask import Blueprint, Response, jsonify, url_for

from api.answers import time_answer
from api.asked import check_width, idempotency_key, json_body
from api.services import services
from jobs.batches import Batch
from jobs.errors import InvalidRequest, NotFound, Problem, RequestError
from jobs.parse import parse_request
from jobs.queue import send_hint
from jobs.request import JobRequest
from jobs.store import new_id

blueprint = Blueprint("batches", __name__, url_prefix="/v1/batches")

MOST = 1000  # jobs of a batch
HINTS = 16  # at once; the reaper sends the others


@blueprint.post("")
def create() -> Response:
    body = json_body()
    asked = _all_parsed(_jobs(body))
    fleet = services()
    jobs = [(new_id(), request, warnings) for request, warnings in asked]
    said = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    key = idempotency_key()
    id, created = fleet.store.batches.submit(new_id("batch"), jobs, key=key, body_hash=said)
    for job, _request, _warnings in jobs[:HINTS] if created else ():
        send_hint(fleet.celery, fleet.store, job, first=True)
    response = jsonify(_answer(_batch(id)))
    response.status_code = 202
    response.headers["Location"] = url_for("batches.get", id=id)
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@blueprint.get("/<id>")
def get(id: str) -> Response:
    return jsonify(_answer(_batch(id)))


@blueprint.post("/<id>/cancel")
def cancel(id: str) -> Response:
    """All that is not over; again and again, if you like."""
    for job in _batch(id).jobs:
        services().store.cancel(job)
    return jsonify(_answer(_batch(id)))


def _jobs(body: Any) -> list[tuple[str, Any]]:
    """Each job's body, and the pointer to where the caller's own has it."""
    if isinstance(body, dict) and set(body) == {"jobs"} and isinstance(body["jobs"], list):
        jobs = [(f"/jobs/{index}", job) for index, job in enumerate(body["jobs"])]
    elif isinstance(body, dict) and set(body) == {"job", "matrix"}:
        jobs = [("/job", job) for job in _matrix(body["job"], body["matrix"])]
    else:
        detail = 'Send {"jobs": [...]} or {"job": {...}, "matrix": {"input.seed": [...]}}.'
        raise InvalidRequest(detail, Problem("", "batch", detail))
    if not 1 <= len(jobs) <= MOST:
        detail = f"{len(jobs)} jobs; a batch has 1 to {MOST}."
        raise InvalidRequest(detail, Problem("", "batch", detail))
    return jobs


def _matrix(job: Any, matrix: Any) -> list[Any]:
    """Every combination of the matrix's values, each at its dotted path in the job."""
    lists = isinstance(matrix, dict) and all(isinstance(v, list) and v for v in matrix.values())
    if not (isinstance(job, dict) and lists and matrix):
        detail = "matrix has a list of values for each path, such as input.seed."
        raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
    combinations = list(itertools.islice(itertools.product(*matrix.values()), MOST + 1))
    return [_with(job, dict(zip(matrix, values, strict=True))) for values in combinations]


def _with(job: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(job)
    for path, value in values.items():
        *parents, last = path.split(".")
        place = changed
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                detail = f"{path}: {name} is no object in the job."
                raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
        place[last] = value
    return changed


def _all_parsed(jobs: list[tuple[str, Any]]) -> list[tuple[JobRequest, list[str]]]:
    """Raises: InvalidRequest with every problem of every job."""
    parsed, problems = [], []
    for pointer, body in jobs:
        try:
            request, warnings = parse_request(body, services().catalog)
            check_width(request)
            parsed.append((request, warnings))
        except RequestError as error:
            known = error.problems or (Problem("", error.code, str(error)),)
            problems += [Problem(pointer + p.pointer, p.code, p.detail) for p in known]
    if problems:
        first = problems[0]
        detail = f"{first.pointer}: {first.detail} None of the jobs was accepted."
        raise InvalidRequest(detail, *dict.fromkeys(problems))
    return parsed


def _batch(id: str) -> Batch:
    batch = services().store.batches.get(id)
    if batch is None:
        raise NotFound(f"There is no batch {id[:80]!r}.")
    return batch


def _answer(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "object": "batch",
        "status": "finished" if batch.final else "running",
        "created_at": time_answer(batch.created_at),
        "total": batch.total,
        "counts": {state.value: count for state, count in batch.counts.items()},
        "jobs": batch.jobs,
        "urls": {
            "get": url_for("batches.get", id=batch.id, _external=True),
            "jobs": url_for("jobs.list_all", batch_id=batch.id, _external=True),
            "cancel": url_for("batches.cancel", id=batch.id, _external=True),
        },
    }
