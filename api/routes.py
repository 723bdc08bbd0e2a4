"""What each route takes and answers, by Flask's endpoint; its summary is its view's docstring."""

from dataclasses import dataclass, field
from typing import Any

from api.bodies import ref
from jobs.logs import KEPT
from jobs.record import STATUSES
from jobs.request import REQUESTS

Schema = dict[str, Any]
Content = dict[str, Schema]  # by media type

JSON, FORM, SSE = "application/json", "multipart/form-data", "text/event-stream"
URLENCODED, PROBLEM = "application/x-www-form-urlencoded", "application/problem+json"
FILES: Content = {kind: {} for kind in ("image/png", "image/webp", "video/mp4")}
STREAM: Content = {SSE: {"description": "Events; `data` is JSON."}}
HTML: Content = {"text/html": {"type": "string"}}

HEADERS = {
    "Idempotency-Key": "The same key and body again: the first one's answer, no second job.",
    "Prefer": "wait=N: answer when there is news, at the latest after N seconds; wait: the cap.",
    "Last-Event-ID": "The last event that was seen: its snapshot is not sent again.",
    "X-Stainless-Retry-Count": "Of OpenAI's clients: from 1 on, the same body is the same job.",
}
OF_V1 = (401, 403, 429, 503)
OF_BODY = (400, 413, 415, 422)

_TEXT: Schema = {"type": "string"}
_WHEN: Schema = {"type": "string", "description": "RFC 3339, or seconds since 1970."}
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
_ORDER: Schema = {"enum": ["desc", "asc"], "default": "desc", "description": "desc: newest first."}
_LISTED_BY: Content = {
    "status": {"enum": STATUSES},
    "model": _TEXT,
    "task": {"enum": list(REQUESTS)},
    "batch_id": _TEXT,
    "created_after": _WHEN,
    "created_before": _WHEN,
    "limit": _LIMIT,
    "after": {**_TEXT, "description": "`next` of the page before."},
    "order": _ORDER,
}
_LINK: Content = {
    "expires": {"type": "integer", "description": "Of a `download_url`, which needs no key."},
    "signature": {"type": "string", "description": "Of the same."},
}
_VARIANT: Schema = {"enum": ["thumbnail"], "description": "thumbnail: its small picture."}


@dataclass(frozen=True)
class Route:
    """answers: by status, None without a body. errors: statuses beside those of all of /v1.
    body: by media type. example: a JSON body that is accepted; MODEL is one of the catalogue."""

    tag: str
    answers: dict[int, Content | None]
    errors: tuple[int, ...] = ()
    query: Content = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    body: Content = field(default_factory=dict)
    body_needed: bool = True
    example: Any = None


def _json(name: str) -> Content:
    return {JSON: ref(name)}


def _page(name: str) -> Content:
    fields: Schema = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": ref(name)},
        "has_more": {"type": "boolean"},
        "next": {"type": ["string", "null"]},
    }
    return {JSON: {"type": "object", "required": list(fields), "properties": fields}}


def _fields(**fields: Schema) -> Content:
    return {JSON: {"type": "object", "required": list(fields), "properties": fields}}


_VIDEOS = _fields(
    object={"const": "list"},
    data={"type": "array", "items": ref("Video")},
    first_id={"type": ["string", "null"]},
    last_id={"type": ["string", "null"]},
    has_more={"type": "boolean"},
)
_JOB = _json("Job")
_JOB_OR_DRY: Content = {JSON: {"anyOf": [ref("Job"), ref("DryRun")]}}
_FILE: dict[int, Content | None] = {200: FILES, 206: FILES, 302: {"text/html": {}}, 304: None}
_ASKED = {"model": "MODEL", "input": {"prompt": "a red circle moving left", "seed": 7}}
_MATRIX = {"job": _ASKED, "matrix": {"input.seed": [1, 2, 3]}}
_MADE = (404, 409, 410, *OF_BODY)
_THEIRS = ("X-Stainless-Retry-Count",)


def _any(name: str, form: str | None = None) -> Content:
    """As OpenAI's clients send it: JSON or a form."""
    return {JSON: ref(name), FORM: ref(form or name), URLENCODED: ref(name)}


ROUTES: dict[str, Route] = {
    "jobs.create": Route(
        "Jobs",
        {202: _JOB, 200: {**_JOB_OR_DRY, **FILES}},
        (*_MADE, 504),
        {"dry_run": {"enum": ["true", "false"], "description": "true: nothing is recorded."}},
        headers=("Idempotency-Key", "Prefer"),
        body={JSON: ref("JobRequest"), FORM: ref("JobForm")},
        example=_ASKED,
    ),
    "jobs.list_all": Route("Jobs", {200: _page("Job")}, (422,), _LISTED_BY),
    "jobs.dead": Route("Jobs", {200: _page("Job")}, (422,), {"limit": _LIMIT, "after": _TEXT}),
    "jobs.get": Route("Jobs", {200: _JOB, 304: None}, (404,), headers=("Prefer",)),
    "jobs.cancel": Route("Jobs", {200: _JOB}, (404,)),
    "jobs.delete": Route("Jobs", {204: None}, (404,)),
    "jobs.retry": Route(
        "Jobs",
        {202: _JOB, 200: {**_JOB, **FILES}},
        (*_MADE, 504),
        headers=("Idempotency-Key", "Prefer"),
        body=_json("RetryRequest"),
        body_needed=False,
        example={"input": {"seed": 8}},
    ),
    "jobs.preview": Route("Jobs", {200: {"image/webp": {}}, 204: None, 304: None}, (404,)),
    "jobs.output": Route("Jobs", _FILE, (404, 409, 410, 416, 422), {"variant": _VARIANT, **_LINK}),
    "events.events": Route("Jobs", {200: STREAM, 204: None}, (404,), headers=("Last-Event-ID",)),
    "logs.tail": Route(
        "Jobs",
        {200: _page("LogLine")},
        (404, 422),
        {"tail": {"type": "integer", "minimum": 1, "maximum": KEPT, "default": 100}},
    ),
    "deliveries.list_all": Route("Jobs", {200: _page("Delivery")}, (404,)),
    "deliveries.redeliver": Route("Jobs", {202: _json("Delivery")}, (404,)),
    "webhooks.secret": Route("Fleet", {200: _json("WebhookSecret")}, (404,)),
    "batches.create": Route(
        "Batches",
        {202: _json("Batch")},
        _MADE,
        headers=("Idempotency-Key",),
        body=_json("BatchRequest"),
        example=_MATRIX,
    ),
    "batches.get": Route("Batches", {200: _json("Batch")}, (404,)),
    "batches.cancel": Route("Batches", {200: _json("Batch")}, (404,)),
    "uploads.create": Route(
        "Uploads",
        {201: _json("Upload")},
        OF_BODY,
        body={FORM: ref("UploadForm"), JSON: ref("UploadRequest")},
    ),
    "uploads.get": Route("Uploads", {200: _json("Upload")}, (404,)),
    "uploads.delete": Route("Uploads", {204: None}, (404,)),
    "models.list_all": Route("Fleet", {200: _page("Model")}),
    "models.get": Route("Fleet", {200: _json("Model")}, (404,)),
    "queue.get": Route("Fleet", {200: _page("Queue")}),
    "queue.pause": Route("Fleet", {200: _json("Queue")}, (404,)),
    "queue.resume": Route("Fleet", {200: _json("Queue")}, (404,)),
    "queue.usage": Route(
        "Fleet",
        {200: _page("Usage")},
        (422,),
        {"days": {"type": "integer", "minimum": 1, "maximum": 400, "default": 30}},
    ),
    "workers.list_all": Route("Fleet", {200: _page("Worker")}),
    "workers.drain": Route("Fleet", {202: _json("Worker")}, (404,)),
    "openai_images.generations": Route(
        "OpenAI",
        {200: {**_json("ImagesResponse"), **STREAM}},
        (404, 410, *OF_BODY, 500, 504),
        headers=_THEIRS,
        body=_any("ImageGeneration"),
    ),
    "openai_images.edits": Route(
        "OpenAI",
        {200: {**_json("ImagesResponse"), **STREAM}},
        (404, 410, *OF_BODY, 500, 504),
        headers=_THEIRS,
        body={FORM: ref("ImageEdit")},
    ),
    "openai_videos.create": Route(
        "OpenAI",
        {200: _json("Video")},
        _MADE,
        headers=_THEIRS,
        body=_any("VideoRequest", "VideoForm"),
    ),
    "openai_videos.list_all": Route(
        "OpenAI", {200: _VIDEOS}, (422,), {"limit": _LIMIT, "after": _TEXT, "order": _ORDER}
    ),
    "openai_videos.get": Route("OpenAI", {200: _json("Video")}, (404,)),
    "openai_videos.delete": Route("OpenAI", {200: _json("VideoDeleted")}, (404,)),
    "openai_videos.content": Route(
        "OpenAI", _FILE, (404, 410, 416, 422), {"variant": {"enum": ["video", "thumbnail"]}}
    ),
    "openai_videos.remix": Route(
        "OpenAI",
        {200: _json("Video")},
        (404, 410, *OF_BODY),
        headers=_THEIRS,
        body=_any("Remix"),
        example={"prompt": "a blue circle moving left"},
    ),
    "health.livez": Route("Service", {200: _fields(status={"const": "ok"})}),
    "health.readyz": Route("Service", {200: _json("Readiness"), 503: _json("Readiness")}),
    "health.get_version": Route("Service", {200: _fields(version=_TEXT)}),
    "metrics.metrics": Route("Service", {200: {"text/plain": _TEXT}}, (401, 403)),
    "openapi.openapi": Route("Service", {200: {JSON: {"type": "object"}}}),
    "pages.start": Route("Service", {200: HTML}),
    "pages.docs": Route("Service", {200: HTML}),
}
