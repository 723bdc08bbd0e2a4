"""Every error as application/problem+json (RFC 9457), with OpenAI's `error` object in it."""

import http
import logging
import math
import secrets
import time
from typing import Any

from flask import Flask, Response, g, jsonify, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

from jobs.errors import (
    NoResult,
    Problem,
    QuotaExceeded,
    RequestError,
    StorageUnavailable,
    StoreFull,
    StoreUnavailable,
    WaitTimeout,
)
from jobs.record import Job

logger = logging.getLogger(__name__)

CODES = {404: "not_found", 413: "payload_too_large", 415: "unsupported_media_type"}


def register(app: Flask) -> None:
    app.before_request(_name_request)
    app.after_request(_tell_name)
    app.register_error_handler(RequestError, _refused)
    app.register_error_handler(StoreUnavailable, _away)
    app.register_error_handler(StorageUnavailable, _away)
    app.register_error_handler(RequestEntityTooLarge, _too_large)
    for kind in (ParseException, NoMoreData, BlockingIOError):
        app.register_error_handler(kind, _unreadable)
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _internal)


def _name_request() -> None:
    g.request_id = f"req_{secrets.token_hex(8)}"


def _tell_name(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.request_id
    return response


def problem(
    status: int,
    code: str,
    detail: str,
    problems: tuple[Problem, ...] = (),
    retry_after_s: int | None = None,
) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    body: dict[str, Any] = {
        "type": f"urn:diffusion-fleet:problem:{code}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": g.request_id,
        "retryable": retry_after_s is not None,
        "errors": [{"pointer": p.pointer, "code": p.code, "detail": p.detail} for p in problems],
        "error": {
            "message": detail,
            "type": kind,
            "param": problems[0].pointer.lstrip("/").replace("/", ".") if problems else None,
            "code": code,
        },
    }
    response = jsonify(body)
    response.status_code = status
    response.mimetype = "application/problem+json"
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(retry_after_s)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def waited_in_vain(job: Job, wait_s: int) -> Response:
    detail = f"Job {job.id} is {job.status} after {wait_s} s. It goes on: Location says where."
    return _refused(WaitTimeout(detail))


def _refused(error: RequestError) -> Response:
    after_s = error.retry_after_s if error.retryable else None
    response = problem(error.status, error.code, str(error), error.problems, after_s)
    if error.limit is not None:
        response.headers["RateLimit-Limit"] = str(math.ceil(error.limit))
        response.headers["RateLimit-Remaining"] = "0"
        response.headers["RateLimit-Reset"] = str(error.retry_after_s)
    if isinstance(error, NoResult | WaitTimeout | QuotaExceeded):
        response.headers["x-should-retry"] = "false"  # a client's second request would wait again
    return response


def _away(error: StoreUnavailable | StorageUnavailable) -> Response:
    code, detail = away(error)
    return problem(503, code, detail, retry_after_s=2)


def away(error: StoreUnavailable | StorageUnavailable) -> tuple[str, str]:
    """A code and a sentence for callers; the log has the rest, such as where it is."""
    logger.warning("%s: %s", g.request_id, error)
    if isinstance(error, StorageUnavailable):
        return "storage_unavailable", "The object storage does not answer; try again."
    says = "has no room for new jobs" if isinstance(error, StoreFull) else "does not answer"
    return "broker_unavailable", f"The queue {says}; try again."


def _too_large(error: RequestEntityTooLarge) -> Response:
    """A client that is still sending would see a reset, not the answer: read on, within bounds."""
    until = time.monotonic() + 5
    left = min(request.content_length or 2**28, 2**28)
    stream = request.environ["wsgi.input"]
    while left > 0 and time.monotonic() < until and (data := stream.read(min(left, 2**16))):
        left -= len(data)
    return _http(error)


def _unreadable(error: Exception) -> Response:
    """A body that breaks off, stalls (see sockets.py) or is not in the chunks that it says."""
    broken_off = isinstance(error, OSError)
    return _http(BadRequest("The body breaks off." if broken_off else f"The body is none: {error}"))


def _http(error: HTTPException) -> Response:
    status = error.code or 500
    code = CODES.get(status, http.HTTPStatus(status).name.lower())
    response = problem(status, code, error.description or code)
    if allow := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allow))
    if (length := getattr(error, "length", None)) is not None:  # of what a range was asked of
        response.headers["Content-Range"] = f"bytes */{length}"
    return response


def _internal(error: Exception) -> Response:
    logger.error("%s", g.request_id, exc_info=error)
    return problem(500, "internal", "Our fault. The request id finds it in the log.")
