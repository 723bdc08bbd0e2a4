"""/v1/images/generations and /v1/images/edits, as OpenAI's clients know them.

Several images of an edit are several edits, each by the same prompt: no model here draws one
picture from many.
"""

import base64
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, stream_with_context

from api.answers import known_job, output_url
from api.asked import check_width, choice_of
from api.auth import tenant
from api.errors import away
from api.links import output_link
from api.openai_asked import (
    Asked,
    asked,
    body_of,
    like,
    mask_url,
    named_as_theirs,
    once,
    picture_url,
    wait_s,
)
from api.services import services
from api.submitted import submit, submit_all, wait
from jobs.errors import (
    InvalidRequest,
    NoResult,
    OutputExpired,
    Problem,
    RequestError,
    StorageUnavailable,
    StoreUnavailable,
    WaitTimeout,
)
from jobs.parse import parse_request
from jobs.record import Artifact, Job, JobState
from jobs.request import JobRequest, items

blueprint = Blueprint("openai_images", __name__, url_prefix="/v1/images")

FORMATS = ("png", "webp")
FILES = ("image", "mask")  # of an edit
MOST = 16  # images of an edit
MOST_MADE = 16  # of all of them: an answer has them in it
PREVIEWED_STEPS = 20  # where a request is silent about its steps
LOOK_S = 0.2  # from one look for a preview to the next
HEARTBEAT_S = 5.0  # the longest silence of a stream: clients, and proxies, give up on a silent one
BEAT = ": still drawing\n\n"


@blueprint.post("/generations")
def generations() -> Response:
    """Pictures from a prompt; the answer waits for them."""
    said = asked()
    with named_as_theirs():
        body = body_of(said, "text-to-image", {"size"})
        return _answered(said, [_parsed(said, body)], "image_generation")


@blueprint.post("/edits")
def edits() -> Response:
    """Each of the pictures drawn anew by a prompt, with a mask in its transparent part only."""
    said = asked()
    images = said.files.get("image", [])
    if not 1 <= len(images) <= MOST:
        detail = f"Send 1 to {MOST} files as `image` or `image[]`."
        raise InvalidRequest(detail, Problem("/image", "missing", detail))
    masks = said.files.get("mask", [])
    with named_as_theirs():
        body = body_of(said, "inpaint" if masks else "image-to-image", {"size"}, FILES)
        if masks:
            body["input"]["mask"] = mask_url(masks[0])
        requests = []
        for content in images:
            image = picture_url(content, "image")
            spec = services().catalog.get(str(body["model"]))
            size = like(image, spec) if spec and "width" not in body["input"] else {}
            requests.append(
                _parsed(said, {**body, "input": {**body["input"], **size, "image": image}})
            )
        return _answered(said, requests, "image_edit")


def _parsed(said: Asked, body: dict[str, Any]) -> JobRequest:
    if partial := _partial_images(said):
        steps = body["input"].get("num_inference_steps")
        known = steps if isinstance(steps, int) and steps > 0 else PREVIEWED_STEPS
        body["preview"] = {"every_n_steps": max(1, known // (partial + 1))}
    body["output"] = {
        "format": choice_of("output_format", said.words("output_format", "png"), FORMATS)
    }
    request, _warnings = parse_request(body, services().catalog)
    return request


def _answered(said: Asked, requests: list[JobRequest], event: str) -> Response:
    if sum(len(items(each)) for each in requests) > MOST_MADE:
        detail = f"At most {MOST_MADE} pictures at once."
        raise InvalidRequest(detail, Problem("/n", "limit", detail))
    form = choice_of(
        "response_format", said.words("response_format", "b64_json"), ("b64_json", "url")
    )
    with contextlib.ExitStack() as held:
        held.enter_context(services().places.held(tenant()))
        began = time.monotonic()  # the wait is for all of them together
        ids = _submitted(said, requests)
        if said.true("stream"):
            until = began + services().settings.openai_wait_s
            told = _stream(ids, until, requests[0], event, _partial_images(said))
            stream = Response(stream_with_context(told), mimetype="text/event-stream")
            stream.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
            stream.call_on_close(held.pop_all().close)
            return stream
        jobs = [_waited(id, began + wait_s()) for id in ids]
    made = [(job, artifact) for job in jobs for artifact in job.artifacts]
    about = requests[0]
    return jsonify(
        {
            "created": int(jobs[0].created_at),
            "data": [
                {"url": _link(job, each)} if form == "url" else {"b64_json": _base64(each)}
                for job, each in made
            ],
            "size": f"{about.input.width}x{about.input.height}",
            "output_format": about.output.format,
        }
    )


def _submitted(said: Asked, requests: list[JobRequest]) -> list[str]:
    """The jobs: one, or all of a batch."""
    if len(requests) == 1:
        return [once(said, lambda id: submit(requests[0], [], id=id)[0])]

    def together(id: str) -> str:
        for each in requests:
            check_width(each)
        return submit_all([(each, []) for each in requests], id=id)[0]

    id = once(said, together, "batch")
    batch = services().store.batches.get(id, tenant())
    return batch.jobs if batch else [id]  # of which nothing is known any more: 404


def _waited(id: str, until: float) -> Job:
    """until: by time.monotonic(). Raises: NoResult, for a job without a result; WaitTimeout."""
    job = wait(id, until - time.monotonic(), lambda job: job.state.final)
    if not job.state.final:
        raise WaitTimeout(f"Job {id} goes on: GET /v1/jobs/{id}.")
    if job.state is not JobState.SUCCEEDED:
        error = job.error or {"code": job.state.value, "message": f"The job is {job.state}."}
        raise NoResult(error["message"], error["code"])
    return job


def _stream(
    ids: list[str], until: float, request: JobRequest, event: str, partial: int
) -> Iterator[str]:
    """An event for each preview, up to `partial` a job, and for each picture, and a comment where
    there is none for long; an error is the last one."""

    def told(kind: str, job: Job, picture: str, form: str, **more: Any) -> str:
        about = {"size": f"{request.input.width}x{request.input.height}", "quality": "auto"}
        about.update(background="opaque", output_format=form, b64_json=picture)
        return _event(f"{event}.{kind}", {**about, "created_at": int(job.created_at), **more})

    try:
        for id in ids:
            index = 0
            for picture in _meanwhile(id, until, partial):
                if picture is None:
                    yield BEAT
                    continue
                text = base64.b64encode(picture).decode()
                yield told("partial_image", known_job(id), text, "webp", partial_image_index=index)
                index += 1
            job = _waited(id, until)
            usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            for artifact in job.artifacts:
                yield told("completed", job, _base64(artifact), request.output.format, usage=usage)
    except RequestError as error:
        yield _failed(error.code, str(error))
    except (StorageUnavailable, StoreUnavailable) as error:
        yield _failed(*away(error))


def _failed(code: str, message: str) -> str:
    about = {"message": message, "code": code, "type": "server_error", "param": None}
    return _event("error", {"error": about})


def _meanwhile(id: str, until: float, most: int) -> Iterator[bytes | None]:
    """Up to `most` previews as they come, and None in between, so that there is news every
    HEARTBEAT_S; until the job is over, or the time is."""
    last, told, store = None, time.monotonic(), services().store
    yield None  # the answer begins at once
    while (left := until - time.monotonic()) > 0:
        look_s = min(left, LOOK_S if most else HEARTBEAT_S)
        if wait(id, look_s, lambda job: job.state.final).state.final:
            return
        picture = store.previews.get(id) if most else None
        if picture and picture != last:
            last, most = picture, most - 1
            yield picture
        elif time.monotonic() - told >= HEARTBEAT_S - LOOK_S:
            yield None
        else:
            continue
        told = time.monotonic()


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"


def _base64(artifact: Artifact) -> str:
    content = services().storage.read(artifact.key)
    if content is None:
        raise OutputExpired("The picture is gone from the storage.")
    return base64.b64encode(content).decode()


def _partial_images(said: Asked) -> int:
    return int(choice_of("partial_images", said.words("partial_images", "0"), ("0", "1", "2", "3")))


def _link(job: Job, artifact: Artifact) -> str:
    """Needs no key, whether the storage signs or we do."""
    link = output_link(job, artifact)
    return link[0] if link else output_url(job, artifact)
