"""What a request says, apart from the job that it asks for: body, headers, query."""

import contextlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from flask import g, request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.wrappers import Response

from api.services import services
from jobs.errors import InvalidRequest, MalformedJson, Problem, UrlRefused
from jobs.guard import check_url
from jobs.request import JobRequest, Parallel

R = TypeVar("R", bound=Response)


def json_body() -> Any:
    """Raises: UnsupportedMediaType, RequestEntityTooLarge, MalformedJson."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("Send the request as application/json.")
    data = request.get_data()
    if len(data) >= services().settings.max_body_bytes:  # sent in chunks, it was cut there
        raise RequestEntityTooLarge
    return parsed_json(data)


def json_object() -> dict[str, Any]:
    """Raises: as json_body(); InvalidRequest."""
    body = json_body()
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", Problem("", "type", "No object."))
    return body


def parsed_json(data: bytes | str) -> Any:
    """Raises: MalformedJson."""
    try:
        body = json.loads(data, parse_constant=_no_constant)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return body
    except RecursionError:
        raise MalformedJson("The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise MalformedJson(f"The body is no JSON: {error}") from None
    except ValueError:  # what Python reads and JSON does not know: NaN, halves of characters
        detail = "The body is no JSON: NaN, Infinity, half a character, a number without end."
        raise MalformedJson(detail) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def check_width(asked: JobRequest) -> None:
    """An explicit plan that no worker of now could run is refused, not queued for ever."""
    plan = asked.parallel
    if not isinstance(plan, Parallel):
        return
    if "sizes" not in g:  # a batch has many jobs
        g.sizes = {about["size"] for about in services().store.workers.alive().values()}
    refusals = [plan.refused_by(size) for size in sorted(g.sizes)]
    if refusals and all(refusals):
        detail = str(refusals[0])
        raise InvalidRequest(f"/parallel: {detail}", Problem("/parallel", "plan", detail))


def check_webhook(asked: JobRequest) -> None:
    """A URL that nothing could be sent to is refused; the courier checks its addresses, too."""
    if asked.webhook is None:
        return
    pointer, settings = "/webhook", services().settings
    detail = "This fleet signs no webhooks: FLEET_WEBHOOK_SECRET is not set."
    if settings.webhook_secret is not None:
        pointer = "/webhook/url"
        try:
            check_url(asked.webhook.url, settings)
            return
        except UrlRefused as error:
            detail = str(error)
    raise InvalidRequest(f"{pointer}: {detail}", Problem(pointer, "webhook", detail))


def idempotency_key() -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > 255 or not key.isprintable():
        raise InvalidRequest("Idempotency-Key: at most 255 printable characters.")
    return key


def wait_s_asked() -> int:
    """Of `Prefer: wait=N`, up to the cap, which `wait` alone asks for; 0: do not wait."""
    most = services().settings.max_wait_s
    for preference in request.headers.get("Prefer", "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() != "wait":
            continue
        text = value.strip().strip('"')
        if not text:
            return most
        return min(int(text[:9]), most) if re.fullmatch("[0-9]+", text) else 0
    return 0


def applied(response: R, wait_s: int) -> R:
    if wait_s:
        response.headers["Preference-Applied"] = f"wait={wait_s}"
    return response


def bad_parameter(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"Query parameter {name[:80]!r}: {detail}", Problem("", "query", detail))


def only(*known: str) -> None:
    """Query parameters that have no other name: one with a slip in it must not do another thing.
    Raises: InvalidRequest."""
    for name, values in request.args.lists():
        if name not in known:
            says = f"Known are {', '.join(known)}." if known else "There is none here."
            raise bad_parameter(name, says)
        if len(values) > 1:
            raise bad_parameter(name, "It comes twice.")


def choice(name: str, known: list[str], kind: Any) -> Any:
    value = request.args.get(name)
    if value is None:
        return None
    if value not in known:
        raise bad_parameter(name, f"One of {', '.join(known)}.")
    return kind(value)


def choice_of(name: str, value: str, known: Sequence[str]) -> str:
    """Of a field of the body."""
    if value not in known:
        detail = f"One of {', '.join(known)}."
        raise InvalidRequest(f"{name}: {detail}", Problem(f"/{name}", "choice", detail))
    return value


def limit() -> int:
    return whole("limit", 20, 100)


def whole(name: str, silent: int, most: int) -> int:
    """A query parameter from 1 to most, below 1000. Raises: InvalidRequest."""
    text = request.args.get(name, str(silent))
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= most:
        raise bad_parameter(name, f"A whole number from 1 to {most}.")
    return int(text)


def moment(name: str) -> float | None:
    """Seconds since 1970, of a time in RFC 3339 or such a number."""
    text = request.args.get(name)
    if text is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
            return float(text)
        at = datetime.fromisoformat(text.replace(" ", "+"))  # a bare + in a query is a blank
        return at.replace(tzinfo=at.tzinfo or UTC).timestamp()
    raise bad_parameter(name, "A time such as 2026-01-31T12:00:00Z, or seconds since 1970.")


def cursor() -> str:
    text = request.args.get("after", "")
    if text and not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?/[0-9a-z_]+", text):
        raise bad_parameter("after", "The `next` of the page before.")
    return text
