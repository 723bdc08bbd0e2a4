"""What a request says, apart from the job that it asks for: body, headers, query."""

import json
import re
from typing import Any

from flask import Response, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from api.services import services
from jobs.errors import InvalidRequest, MalformedJson, Problem
from jobs.request import JobRequest, Parallel


def json_body() -> Any:
    """Raises: UnsupportedMediaType, RequestEntityTooLarge, MalformedJson."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the request as application/json.")
    data = request.get_data()
    if len(data) >= services().settings.max_body_bytes:  # sent in chunks, it was cut there
        raise RequestEntityTooLarge
    try:
        body = json.loads(data, parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return body
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"The body is no JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def check_width(asked: JobRequest) -> None:
    """An explicit plan that no worker of now could run is refused, not queued for ever."""
    plan = asked.parallel
    if not isinstance(plan, Parallel):
        return
    refusals = [
        plan.refused_by(about["size"]) for about in services().store.workers.alive().values()
    ]
    if refusals and all(refusals):
        detail = str(refusals[0])
        raise InvalidRequest(f"/parallel: {detail}", Problem("/parallel", "plan", detail))


def idempotency_key() -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > 255 or not key.isprintable():
        raise InvalidRequest("Idempotency-Key: at most 255 printable characters.")
    return key


def wait_s_asked() -> int:
    """Of `Prefer: wait=N`, up to the cap; 0: do not wait."""
    asked = re.search(r"\bwait=([0-9]+)", request.headers.get("Prefer", ""))
    return min(int(asked[1][:9]), services().settings.max_wait_s) if asked else 0


def applied(response: Response, wait_s: int) -> Response:
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return response


def bad_parameter(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"Query parameter {name[:80]!r}: {detail}", Problem("", "query", detail))


def choice(name: str, known: list[str], kind: Any) -> Any:
    value = request.args.get(name)
    if value is None:
        return None
    if value not in known:
        raise bad_parameter(name, f"One of {', '.join(known)}.")
    return kind(value)


def limit() -> int:
    text = request.args.get("limit", "20")
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise bad_parameter("limit", "A whole number from 1 to 100.")
    return int(text)


def cursor() -> str:
    text = request.args.get("after", "")
    if text and not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?/[0-9a-z_]+", text):
        raise bad_parameter("after", "The `next` of the page before.")
    return text
