"""/v1/jobs: create, get, list, cancel, retry, delete, outputs, and the list of the dead."""

import hashlib
import json
import time
from typing import Any

from flask import Blueprint, Response, jsonify, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from api.answers import job_answer, known_job, unknown
from api.asked import (
    applied,
    check_webhook,
    check_width,
    choice,
    cursor,
    idempotency_key,
    json_object,
    limit,
    moment,
    only,
    wait_s_asked,
)
from api.auth import tenant
from api.errors import waited_in_vain
from api.files import served
from api.forms import body_hash, sent
from api.inputs import Inputs
from api.queue import estimate
from api.services import services
from api.submitted import submit, wait_as_preferred
from jobs.errors import (
    JobActive,
    ModelNotFound,
)
from jobs.lists import DEAD, Wanted
from jobs.queue import hint_delivery
from jobs.record import STATUSES, Job, JobState
from jobs.request import (
    REQUESTS,
    ImageOutput,
    JobRequest,
    apart,
    filled_in,
    input_fields,
    stored_request,
)

blueprint = Blueprint("jobs", __name__, url_prefix="/v1/jobs")

LISTED_BY = (
    *("status", "model", "task", "batch_id", "created_after", "created_before"),
    *("limit", "after", "order"),
)


@blueprint.post("")
def create() -> BaseResponse:
    """A new job. With `Prefer: wait=N` it is waited for; with `Accept: image/*` or `video/*`
    besides the answer is output 0 itself. With `dry_run=true` nothing is recorded: the answer is
    what would be."""
    only("dry_run")
    dry = choice("dry_run", ["true", "false"], str) == "true"
    body, files = sent()
    said, key = body_hash(body, files), idempotency_key()
    if not dry and (before := services().store.came_before(tenant(), key, said)):
        return _answered(before, False)  # else all is fetched again
    inputs = Inputs(files)
    inputs.check(body)
    asked, warnings = inputs.parse(body)
    if not (body.get("output") or {}).get("format"):
        asked = _as_accepted(asked)
    if dry:
        return _dry(asked, warnings)
    return _answered(*submit(asked, warnings, key, said))


def _as_accepted(asked: JobRequest) -> JobRequest:
    """In the format that `Accept` names, where the answer is to be the file itself."""
    kinds = ["application/json", "image/png", "image/webp"]
    if not wait_s_asked() or request.accept_mimetypes.best_match(kinds) != "image/webp":
        return asked
    if isinstance(asked.output, ImageOutput):
        output = asked.output.model_copy(update={"format": "webp"})
        return asked.model_copy(update={"output": output})
    return asked


def _dry(asked: JobRequest, warnings: list[str]) -> BaseResponse:
    """What would be recorded, and what it could expect; nothing is."""
    check_width(asked)
    check_webhook(asked)
    about = {"object": "dry_run", **apart(asked.model_dump(mode="json"))[0]}
    return jsonify({**about, "warnings": warnings, **estimate(asked)})


@blueprint.post("/<id>/retry")
def retry(id: str) -> BaseResponse:
    """A new job that asks for the same, seed and all, but for what the body says otherwise, in the
    same fields. The old one stays as it ended."""
    only()
    changes = json_object() if request.get_data() else None
    said, key = body_hash({"retry": id, "changes": changes}, {}), idempotency_key()
    if made := services().store.came_before(tenant(), key, said):
        return _answered(made, False)
    job = known_job(id)
    if not job.state.final:
        raise JobActive(f"Job {id} is {job.status}.")
    if job.model not in services().catalog:
        raise ModelNotFound(f"There is no model {job.model!r} any more.")
    before = services().store.request(job)
    asked, warnings = stored_request(json.dumps(before)), job.warnings
    if changes is not None:
        inputs = Inputs()
        inputs.check(changed := _changed(before, changes))
        asked, warnings = inputs.parse(changed)
    return _answered(*submit(asked, warnings, key, said, retry_of=id))


def _changed(asked: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With the fields of `input` and `output` one by one, all others whole."""
    changed = {**asked, **changes}
    task, model = changed["task"], changed["model"]
    if (task, model) != (asked["task"], asked["model"]):
        asked = {**asked, "input": _named(asked, task, model)}
    if task != asked["task"]:
        asked["output"] = {"thumbnail": asked["output"]["thumbnail"]}
    for part in ("input", "output"):
        given = changes.get(part, {})
        changed[part] = {**asked[part], **given} if isinstance(given, dict) else given
    return changed


def _named(asked: dict[str, Any], task: Any, model: Any) -> dict[str, Any]:
    """The input that another task or model is asked with: what has the value that was filled in for
    the old one is filled in anew."""
    old, given = services().catalog[asked["model"]], asked["input"]
    new = services().catalog.get(model) if isinstance(model, str) else None
    known = input_fields(task) if isinstance(task, str) and task in REQUESTS else given
    filled = filled_in(old, asked["task"])
    kept = {
        name: value
        for name, value in given.items()
        if name in known and not (name in filled and filled[name] == value)
    }
    kept["extra"] = {
        name: value
        for name, value in given["extra"].items()
        if new and name in new.extra
        if name not in old.extra or value != old.extra[name].default
    }
    return kept


def _answered(id: str, created: bool) -> BaseResponse:
    job, wait_s = wait_as_preferred(id, lambda job: job.state.final)
    bytes_wanted = wait_s > 0 and _bytes_wanted(job)
    response: BaseResponse
    if bytes_wanted and job.state is JobState.SUCCEEDED:
        response = served(job, 0, here=True)
    elif bytes_wanted and not job.state.final:
        response = waited_in_vain(job, wait_s)
    else:
        response = jsonify(job_answer(job))
        response.status_code = 200 if wait_s and job.state.final else 202
        if not job.state.final:
            response.headers["Retry-After"] = "1"
    response.headers.setdefault("Location", url_for("jobs.get", id=id))  # a signed link has its own
    response.headers["X-Job-Id"] = id
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return applied(response, wait_s)


def _bytes_wanted(job: Job) -> bool:
    """Whether `Accept` would rather have the file than the job."""
    suffix, accepts = job.request["output"]["format"], request.accept_mimetypes
    kind = "video/mp4" if suffix == "mp4" else f"image/{suffix}"
    return accepts.quality(kind) > accepts.quality("application/json")


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """A job. With `Prefer: wait=N` it answers at its next change of status, at the latest after N
    seconds."""
    before = known_job(id)
    job, wait_s = wait_as_preferred(id, lambda job: job.state.final or job.status != before.status)
    answer = job_answer(job)
    response = applied(jsonify(answer), wait_s)
    response.set_etag(_tag(answer), weak=True)
    response.make_conditional(request)
    return response


def _tag(answer: dict[str, Any]) -> str:
    """Of all that it says. Signed links differ each time: in their place is the half of their life
    that it is now, so that who is told that nothing has changed has links that still work."""
    links, half = [], max(1, services().settings.link_s // 2)
    for output in answer["outputs"]:
        if output["url_expires_at"] is not None:
            output = {**output, "download_url": None, "url_expires_at": time.time() // half}
        links.append(output)
    text = json.dumps({**answer, "outputs": links}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@blueprint.get("")
def list_all() -> Response:
    """The caller's jobs, by pages."""
    only(*LISTED_BY)
    wanted = Wanted(
        state=choice("status", STATUSES, str),
        model=request.args.get("model", ""),
        task=choice("task", list(REQUESTS), str) or "",
        batch=request.args.get("batch_id", ""),
        since=moment("created_after"),
        until=moment("created_before"),
    )
    return _page(wanted, choice("order", ["desc", "asc"], str) != "asc")


def _page(wanted: Wanted, newest_first: bool = True) -> Response:
    jobs, following = services().store.lists.page(tenant(), wanted, limit(), cursor(), newest_first)
    data = [job_answer(job) for job in jobs]
    more = following is not None
    return jsonify({"object": "list", "data": data, "has_more": more, "next": following})


@blueprint.get("/dead")
def dead() -> Response:
    """What faults ended and nobody has retried, the latest first: a person should look."""
    only("limit", "after")
    return _page(DEAD)


@blueprint.post("/<id>/cancel")
def cancel(id: str) -> Response:
    """No more of it: what waits ends at once, what runs soon. Again and again, if you like: the
    answer is the job as it stands."""
    if not services().store.cancel(id, tenant()):
        raise unknown(id)
    job = known_job(id)
    if job.state.final:
        hint_delivery(services().celery, services().store)
    return jsonify(job_answer(job))


@blueprint.delete("/<id>")
def delete(id: str) -> tuple[str, int]:
    """The job is canceled if it is not over, and forgotten with its outputs."""
    if not services().store.delete(id, tenant()):
        raise unknown(id)
    return "", 204


@blueprint.get("/<id>/preview")
def preview(id: str) -> BaseResponse:
    """The latest preview, a small WebP; 204 while there is none."""
    picture = services().store.previews.get(known_job(id).id)
    if picture is None:
        return Response(status=204)
    response = Response(picture, mimetype="image/webp")
    response.headers["Cache-Control"] = "no-cache"
    response.add_etag()
    return response.make_conditional(request)


@blueprint.get("/<id>/outputs/<int:index>")
def output(id: str, index: int) -> BaseResponse:
    """An output's file. 302 to a signed URL, or the bytes where the storage is a folder.
    `?variant=thumbnail`: of the small picture."""
    variant = choice("variant", ["thumbnail"], str)
    return served(known_job(id), index, small=variant is not None)
