"""multipart/form-data: a JSON part named `request`, and files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flask import request
from werkzeug.datastructures import FileStorage, MultiDict

from api.asked import json_body, parsed_json
from jobs.errors import InvalidRequest, Problem, TooLarge
from jobs.images import MOST_BYTES
from jobs.parse import pointer_to

FORM = "multipart/form-data"


def sent() -> tuple[Any, dict[str, bytes]]:
    """The JSON, and the file parts by name; a body that is JSON has none.

    Raises: as json_body(); InvalidRequest, TooLarge.
    """
    if request.mimetype != FORM:
        return json_body(), {}
    texts, files = _parts()
    said: str | bytes | None = texts.pop("request", None)
    if said is None and "request" in files:
        if files["request"].mimetype != "application/json":
            raise _refused("request", "The part `request` must be application/json.")
        said = files.pop("request").read()
    if said is None:
        raise _refused("request", "The form has no part `request`, which is the job as JSON.")
    for name in texts:
        raise _refused(name, f"The part {name[:80]!r} is no file; the job goes into `request`.")
    return parsed_json(said), {name: content(name, file) for name, file in files.items()}


def only_file(name: str) -> bytes:
    """Of a form that has one part. Raises: InvalidRequest, TooLarge."""
    texts, files = _parts()
    for other in [*texts, *files]:
        if other != name or other in texts:
            raise _refused(other, f"The form has one part, the file `{name}`.")
    if name not in files:
        raise _refused(name, f"The form has no file part `{name}`.")
    return content(name, files[name])


def content(name: str, file: FileStorage) -> bytes:
    data = file.stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        detail = f"The part {name[:80]!r} holds more than {MOST_BYTES} bytes."
        raise TooLarge(detail, Problem(pointer_to(name), "too_large", detail))
    return data


def body_hash(body: Any, files: Mapping[str, bytes]) -> str:
    """What an idempotency key stands for: the request as its caller sent it, not what it led to."""
    said = json.dumps(body, sort_keys=True)
    for name, data in sorted(files.items()):
        said += f" {json.dumps(name)} {hashlib.sha256(data).hexdigest()}"
    return hashlib.sha256(said.encode()).hexdigest()


def part_names() -> list[str]:
    """Of the form, a name for each of its parts. Raises: InvalidRequest, for one without."""
    parts: tuple[MultiDict[Any, Any], ...] = (request.form, request.files)
    names = [name for part in parts for name, _ in part.items(multi=True)]
    if None in names:
        raise InvalidRequest("A part of the form has no name.", Problem("", "part", "no name"))
    return names


def _parts() -> tuple[dict[str, str], dict[str, FileStorage]]:
    names = part_names()
    for name in names:
        if names.count(name) > 1:
            raise _refused(name, f"The part {name[:80]!r} comes twice.")
    return dict(request.form), dict(request.files)


def _refused(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, Problem(pointer_to(name), "part", detail))
