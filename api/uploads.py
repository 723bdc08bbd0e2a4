"""/v1/uploads: pictures that come ahead of a job, through here or straight into the storage."""

import hashlib
from typing import Any

from flask import Blueprint, Response, jsonify, request, url_for
from werkzeug.exceptions import UnsupportedMediaType

from api.asked import json_body
from api.auth import tenant
from api.forms import FORM, only_file
from api.services import services
from jobs.artifacts import upload_key
from jobs.errors import InvalidRequest, NotFound, Problem, TooLarge
from jobs.images import KINDS, MOST_BYTES, content_type
from jobs.record import time_answer
from jobs.store import new_id
from jobs.uploads import Upload

blueprint = Blueprint("uploads", __name__, url_prefix="/v1/uploads")

PUT_S = 3600  # for which a link takes a PUT: far less than an upload lives, see jobs/uploads.py
TYPES = [f"image/{kind}" for kind in KINDS]


@blueprint.post("")
def create() -> Response:
    """A picture for later jobs, in a form; or, announced as JSON, a URL that takes it by PUT."""
    if request.mimetype == FORM:
        return _created(_stored(only_file("file")))
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(f"Send the picture as {FORM}, or announce it as JSON.")
    kind, size = _announced(json_body())
    id = new_id("upl")
    link = services().storage.put_link(upload_key(tenant(), id), PUT_S)
    if link is None:
        raise InvalidRequest("The storage here is a folder: send the picture as multipart.")
    upload = Upload(id, tenant(), kind, size, services().store.uploads.begin(id, tenant()))
    services().store.uploads.add(upload)
    until = time_answer(upload.created_at + PUT_S)
    return _created(upload, {"put_url": link, "put_url_expires_at": until})


@blueprint.get("/<id>")
def get(id: str) -> Response:
    """What is known of an upload."""
    return jsonify(_answer(known_upload(id)))


@blueprint.delete("/<id>")
def delete(id: str) -> tuple[str, int]:
    """An upload is forgotten, with its file."""
    upload = known_upload(id)
    services().storage.delete(upload.key)  # first: where that fails, the caller can ask again
    services().store.uploads.forget(id)
    return "", 204


def known_upload(id: str) -> Upload:
    """Raises: NotFound."""
    upload = services().store.uploads.get(id, tenant())
    if upload is None:
        raise NotFound(f"There is no upload {id[:80]!r}, or it has expired.")
    return upload


def _stored(data: bytes) -> Upload:
    kind = content_type(data)
    if kind is None:
        detail = f"The file is none of {', '.join(TYPES)}."
        raise InvalidRequest(detail, Problem("/file", "picture", detail))
    id, fleet = new_id("upl"), services()
    at = fleet.store.uploads.begin(id, tenant())
    fleet.storage.put(upload_key(tenant(), id), data)
    upload = Upload(id, tenant(), kind, len(data), at, hashlib.sha256(data).hexdigest())
    fleet.store.uploads.add(upload)
    return upload


def _announced(body: Any) -> tuple[str, int]:
    if not isinstance(body, dict) or set(body) != {"content_type", "bytes"}:
        detail = 'Send {"content_type": "image/png", "bytes": n}, or the picture as multipart.'
        raise InvalidRequest(detail, Problem("", "upload", detail))
    kind, size = body["content_type"], body["bytes"]
    if kind not in TYPES:
        detail = f"One of {', '.join(TYPES)}."
        raise InvalidRequest(f"/content_type: {detail}", Problem("/content_type", "type", detail))
    if type(size) is not int or size < 1:
        detail = "A whole number from 1 on."
        raise InvalidRequest(f"/bytes: {detail}", Problem("/bytes", "type", detail))
    if size > MOST_BYTES:
        detail = f"At most {MOST_BYTES} bytes."
        raise TooLarge(f"/bytes: {detail}", Problem("/bytes", "too_large", detail))
    return kind, size


def _created(upload: Upload, more: dict[str, Any] | None = None) -> Response:
    response = jsonify({**_answer(upload), **(more or {})})
    response.status_code = 201
    response.headers["Location"] = url_for("uploads.get", id=upload.id)
    return response


def _answer(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "content_type": upload.content_type,
        "sha256": upload.sha256,
        "created_at": time_answer(upload.created_at),
        "expires_at": time_answer(upload.expires_at),
    }
