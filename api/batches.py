"""/v1/batches: many jobs at once, all of them or none; how far they are; cancel."""

import itertools
import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, Response, jsonify, url_for

from api.asked import check_webhook, check_width, idempotency_key, json_body, only
from api.auth import tenant
from api.forms import body_hash
from api.inputs import MOST_CHARS, Inputs
from api.services import services
from api.submitted import submit_all
from jobs.batches import Batch
from jobs.errors import InvalidRequest, NotFound, Problem, RequestError, TooLarge
from jobs.parse import MOST_PROBLEMS, pointer_to
from jobs.record import time_answer
from jobs.request import JobRequest

blueprint = Blueprint("batches", __name__, url_prefix="/v1/batches")

T = TypeVar("T")
Place = Callable[[str], str]  # from a pointer into a job to one into the caller's body
MOST = 1000  # jobs of a batch
MOST_PATHS, MOST_NAMES = 100, 8  # of a matrix; names of one path


@blueprint.post("")
def create() -> Response:
    """Many jobs at once: all are accepted, or none."""
    only()
    body, key = json_body(), idempotency_key()
    said = body_hash(body, {})
    # Else all is fetched again.
    if before := services().store.batches.came_before(tenant(), key, said):
        return _created(before, False)
    return _created(*submit_all(_all_parsed(_jobs(body)), key, said))


def _created(id: str, created: bool) -> Response:
    response = jsonify(_answer(_batch(id)))
    response.status_code = 202
    response.headers["Location"] = url_for("batches.get", id=id)
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return response


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """How far its jobs are."""
    return jsonify(_answer(_batch(id)))


@blueprint.post("/<id>/cancel")
def cancel(id: str) -> Response:
    """Cancels all of its jobs that are not over; again and again, if you like."""
    for job in _batch(id).jobs:
        services().store.cancel(job, tenant())
    return jsonify(_answer(_batch(id)))


def _jobs(body: Any) -> list[tuple[Place, Any]]:
    """Each job's body, and where in the caller's own a pointer into it leads."""
    if isinstance(body, dict) and set(body) == {"jobs"} and isinstance(body["jobs"], list):
        jobs = [(f"/jobs/{index}".__add__, job) for index, job in enumerate(body["jobs"])]
    elif isinstance(body, dict) and set(body) == {"job", "matrix"}:
        jobs = _matrix(body["job"], body["matrix"])
    else:
        detail = 'Send {"jobs": [...]} or {"job": {...}, "matrix": {"input.seed": [...]}}.'
        raise InvalidRequest(detail, Problem("", "batch", detail))
    if not 1 <= len(jobs) <= MOST:
        raise _wrong_count(len(jobs))
    return jobs


def _wrong_count(count: int) -> InvalidRequest:
    detail = f"{count} jobs; a batch has 1 to {MOST}."
    return InvalidRequest(detail, Problem("", "batch", detail))


def _matrix(job: Any, matrix: Any) -> list[tuple[Place, Any]]:
    """Every combination of the matrix's values, each at its dotted path in the job."""
    lists = isinstance(matrix, dict) and all(isinstance(v, list) and v for v in matrix.values())
    if not (isinstance(job, dict) and lists and matrix):
        detail = "matrix has a list of values for each path, such as input.seed."
        raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
    if len(matrix) > MOST_PATHS or any(path.count(".") >= MOST_NAMES for path in matrix):
        detail = f"matrix has at most {MOST_PATHS} paths of {MOST_NAMES} names."
        raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
    inner = next((p for p in matrix for q in matrix if p.startswith(f"{q}.")), None)
    if inner is not None:
        detail = f"{inner[:80]} lies within another path of the matrix."
        raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
    if (count := math.prod(map(len, matrix.values()))) > MOST:
        raise _wrong_count(count)
    text = json.dumps(job)
    if len(text) * count > MOST_CHARS:  # each gets a copy
        raise TooLarge("These jobs are too large together: send fewer at once.")
    combinations = itertools.product(*(enumerate(values) for values in matrix.values()))
    chosen = [dict(zip(matrix, values, strict=True)) for values in combinations]
    return [(_place(each), _changed(json.loads(text), each)) for each in chosen]


def _place(chosen: dict[str, tuple[int, Any]]) -> Place:
    """chosen: by path, the value's index in the matrix, and the value."""

    def place(pointer: str) -> str:
        for path, (index, _value) in chosen.items():
            inner = pointer_to(*path.split("."))
            if f"{pointer}/".startswith(f"{inner}/"):
                return pointer_to("matrix", path, index) + pointer.removeprefix(inner)
        return f"/job{pointer}"

    return place


def _changed(job: dict[str, Any], chosen: dict[str, tuple[int, Any]]) -> dict[str, Any]:
    for path, (_index, value) in chosen.items():
        *parents, last = path.split(".")
        place = job
        for name in parents:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                detail = f"{path}: {name} is no object in the job."
                raise InvalidRequest(detail, Problem("/matrix", "matrix", detail))
        place[last] = value
    return job


def _all_parsed(jobs: list[tuple[Place, Any]]) -> list[tuple[JobRequest, list[str]]]:
    """Raises: InvalidRequest with the problems of the jobs, the first ones; what these have in
    common, if it is of one kind, such as NotReady."""
    inputs = Inputs()

    def parsed(body: Any) -> tuple[JobRequest, list[str]]:
        request, warnings = inputs.parse(body)
        check_width(request)
        check_webhook(request)
        return request, warnings

    _each(jobs, inputs.check)  # of all, before a picture of any is fetched
    return _each(jobs, parsed)


def _each(jobs: list[tuple[Place, Any]], read: Callable[[Any], T]) -> list[T]:
    done, problems, kinds = [], [], set()
    about: dict[str, Any] = {}
    for place, body in jobs:
        try:
            done.append(read(body))
        except TooLarge:
            raise
        except RequestError as error:
            known = error.problems or (Problem("", error.code, str(error)),)
            problems += [Problem(place(p.pointer), p.code, p.detail) for p in known]
            kinds.add(type(error))
            about = {"retry_after_s": error.retry_after_s, "limit": error.limit}
            if len(problems) >= MOST_PROBLEMS:
                break  # no further job is looked at
    if problems:
        first, kind = problems[0], kinds.pop() if len(kinds) == 1 else InvalidRequest
        detail = f"{first.pointer}: {first.detail} None of the jobs was accepted."
        raise kind(detail, *dict.fromkeys(problems), **about)
    return done


def _batch(id: str) -> Batch:
    batch = services().store.batches.get(id, tenant())
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
