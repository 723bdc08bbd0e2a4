"""/v1/videos, as OpenAI's clients know it. A video's id is its job's."""

import json
import re
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.wrappers import Response as BaseResponse

from api.answers import known_job, unknown
from api.asked import bad_parameter, choice, limit
from api.auth import tenant
from api.files import served
from api.inputs import Inputs
from api.openai_asked import asked, body_of, named_as_theirs, once, picture_url
from api.services import services
from api.submitted import submit
from jobs.catalog import Task
from jobs.errors import InvalidRequest, NotFound, Problem, VideoNotReady
from jobs.parse import parse_request
from jobs.record import Job, JobState
from jobs.request import MOST_METADATA, VideoInput, stored_request

blueprint = Blueprint("openai_videos", __name__, url_prefix="/v1/videos")

STATUS = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "in_progress",
    JobState.SUCCEEDED: "completed",
}
REMIXED = "remixed_from_video_id"  # in a job's metadata
REFERENCE = "input_reference"  # a video's first picture
POLL_MS = "1000"
TASKS = {"text-to-video", "image-to-video"}


@blueprint.post("")
def create() -> Response:
    """A new video, from a prompt and perhaps a first picture."""
    said = asked()
    known = {"size", "seconds", REFERENCE}
    pictures, referred = said.files.get(REFERENCE, []), said.fields.get(REFERENCE)
    task: Task = "image-to-video" if pictures or referred else "text-to-video"
    inputs = Inputs()
    with named_as_theirs(image=REFERENCE):
        body = body_of(said, task, known, (REFERENCE,))
        if pictures:
            body["input"]["image"] = picture_url(pictures[0], REFERENCE)
        elif referred:
            body["input"]["image"] = _referred(referred)
        inputs.check(body)

    def make(id: str) -> str:
        with named_as_theirs(image=REFERENCE):
            wanted, warnings = inputs.parse(body)  # here, lest a second request fetches once more
        return submit(wanted, warnings, id=id)[0]

    return _answer(known_job(once(said, make)))


@blueprint.get("")
def list_all() -> Response:
    """The caller's videos. Of all that are not videos nothing is told."""
    after = request.args.get("after", "")
    if after and not re.fullmatch("job_[0-9a-f]{28}", after):  # one that is gone by now will do
        raise bad_parameter("after", "The id of a video.")
    newest_first = choice("order", ["desc", "asc"], str) != "asc"
    page, more = services().store.lists.videos(tenant(), limit(), after, newest_first)
    return jsonify(
        {
            "object": "list",
            "data": [_card(job) for job in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": more,
        }
    )


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """A video."""
    return _answer(_video(id))


@blueprint.delete("/<id>")
def delete(id: str) -> Response:
    """The video is canceled if it is not over, and forgotten with its file."""
    if not services().store.delete(_video(id).id, tenant()):
        raise unknown(id)
    return jsonify({"id": id, "object": "video.deleted", "deleted": True})


@blueprint.get("/<id>/content")
def content(id: str) -> BaseResponse:
    """The video's file; `variant=thumbnail`: its small picture."""
    variant = choice("variant", ["video", "thumbnail"], str)
    job = _video(id)
    if job.state is not JobState.SUCCEEDED:
        raise VideoNotReady(f"Video {id} is {job.status}.")
    return served(job, 0, small=variant == "thumbnail")


@blueprint.post("/<id>/remix")
def remix(id: str) -> Response:
    """The same video with another prompt; the same seed, so that what it does not name stays
    alike."""
    job, said = _video(id), asked()
    prompt = said.fields.get("prompt")
    if not isinstance(prompt, str) or not prompt or [*said.fields, *said.files] != ["prompt"]:
        detail = "Send the new prompt, and nothing else."
        raise InvalidRequest(detail, Problem("/prompt", "invalid", detail))
    before = services().store.request(job)
    body = {**before, "input": {**before["input"], "prompt": prompt}}
    if len(before["metadata"]) < MOST_METADATA:
        body["metadata"] = {**before["metadata"], REMIXED: id}
    with named_as_theirs():
        wanted, warnings = parse_request(body, services().catalog)
    return _answer(known_job(once(said, lambda id: submit(wanted, warnings, id=id)[0])))


def _video(id: str) -> Job:
    job = known_job(id)
    if job.task not in TASKS:
        raise NotFound(f"Job {id} makes no video.")
    return job


def _referred(said: Any) -> str | dict[str, str]:
    """The first picture by its URL, or by the id of an upload, which is what we have for files."""
    match said:
        case {"image_url": str(url), **others} if not others:
            return url
        case {"file_id": str(id), **others} if not others:
            return {"upload": id}
    detail = 'Send a file, {"image_url": "…"}, or an upload as {"file_id": "upl_…"}.'
    raise InvalidRequest(detail, Problem(f"/{REFERENCE}", "invalid", detail))


def _answer(job: Job) -> Response:
    response = jsonify(_card(job))
    if not job.state.final:
        response.headers["openai-poll-after-ms"] = POLL_MS
    return response


def _card(job: Job) -> dict[str, Any]:
    wanted = stored_request(json.dumps(job.request)).input
    assert isinstance(wanted, VideoInput)
    prompt = wanted.prompt if isinstance(wanted.prompt, str) else wanted.prompt[0]
    error = job.error
    if job.state in (JobState.CANCELED, JobState.EXPIRED):
        error = {"code": job.state.value, "message": f"The job is {job.state}."}
    value = 1.0 if job.state is JobState.SUCCEEDED else job.progress.get("value", 0.0)
    return {
        "id": job.id,
        "object": "video",
        "status": STATUS.get(job.state, "failed"),
        "model": job.model,
        "prompt": prompt,
        "progress": int(100 * value),
        "seconds": f"{wanted.num_frames / wanted.fps:g}",
        "size": f"{wanted.width}x{wanted.height}",
        "created_at": int(job.created_at),
        "completed_at": int(job.finished_at) if job.finished_at else None,
        "expires_at": None,  # nothing does
        "remixed_from_video_id": job.request.get("metadata", {}).get(REMIXED),
        "error": error and {"code": error["code"], "message": error["message"]},
    }
