"""Pictures as callers give them: a URL, an upload, another job's output, a part of the form. All
become data URLs here, which is all that jobs/parse.py takes.

{"image": "https://…" | "data:…" | {"upload": "upl_…"} | {"job": "job_…", "output": 0}
        | {"file": "part"}}
"""

import re
import time
from collections.abc import Mapping
from typing import Any

from api.answers import finished_artifact, known_job
from api.auth import tenant
from api.services import services
from api.uploads import known_upload
from jobs.errors import (
    InputFetchFailed,
    InputFetchRefused,
    InvalidRequest,
    NotReady,
    OutputExpired,
    Problem,
    RateLimited,
    RequestError,
    TooLarge,
    TooManyStreams,
    UrlRefused,
    UrlTooLarge,
    UrlUnreachable,
)
from jobs.guard import fetch
from jobs.images import MOST_BYTES, data_url
from jobs.parse import parse_request
from jobs.request import JobRequest

FETCH_S = 20.0  # for all URLs of a request
MOST_CHARS = 80_000_000  # of the pictures of a request's jobs: each job's record has its own
FIELDS = ("image", "mask")
_DATA = "data:"
_URL = re.compile("(?i)[a-z][a-z0-9+.-]*://")
_STANDS_IN = (  # 1x1
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81y"
    "tgAAAABJRU5ErkJggg=="
)
_NO_PICTURE = "is no PNG, JPEG or WebP."


class Inputs:
    """The pictures of one request. Each is looked for once, however many jobs have it."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        """files: the parts of the form, each of which must be asked for."""
        self._files = dict(files or {})
        self._until: float | None = None  # of all fetching, from the first on
        self._found: dict[tuple[str, str, int], str | RequestError] = {}
        self._chars = 0

    def check(self, body: Any) -> None:
        """All that can be known without a look at the pictures, so that nothing is fetched for a
        request that is refused anyway. Raises: as parse()."""
        given = _pictures(body)
        named = [value.get("file") for value in given.values() if isinstance(value, dict)]
        for name in self._files:
            if name not in named:
                detail = f"No picture of the job names the part {name[:80]!r}."
                raise InvalidRequest(detail, Problem("", "part", detail))
        parse_request(_with(body, dict.fromkeys(given, _STANDS_IN)), services().catalog)

    def parse(self, body: Any) -> tuple[JobRequest, list[str]]:
        """As parse_request(). Raises: what it does; with a pointer to the picture, NotFound,
        NotReady, OutputExpired, InputFetchRefused, InputFetchFailed, RateLimited; TooLarge."""
        urls = {field: self._whole(field, value) for field, value in _pictures(body).items()}
        self._chars += sum(map(len, urls.values()))
        if self._chars > MOST_CHARS:
            raise TooLarge("The pictures of these jobs are too large together: send fewer at once.")
        return parse_request(_with(body, urls), services().catalog)

    def _whole(self, field: str, value: Any) -> str:
        """Its data URL. Raises: a RequestError with a pointer."""
        if isinstance(value, str) and value.startswith(_DATA):
            return value
        try:
            form = _form(value)
            if form not in self._found:
                self._found[form] = self._look(*form)
            found = self._found[form]
        except RequestError as error:
            found = error
        if isinstance(found, str):
            return found
        problem = Problem(f"/input/{field}", found.code, str(found))
        about: dict[str, Any] = {"retry_after_s": found.retry_after_s, "limit": found.limit}
        raise type(found)(str(found), problem, **about)

    def _look(self, kind: str, name: str, index: int) -> str | RequestError:
        try:
            match kind:
                case "url":
                    return self._fetched(name)
                case "upload":
                    return _uploaded(name)
                case "job":
                    return _drawn(name, index)
            if name not in self._files:
                raise InvalidRequest(f"The form has no file part {name[:80]!r}.")
            return _url(self._files[name], f"The part {name[:80]!r}")
        except RequestError as error:
            return error

    def _fetched(self, url: str) -> str:
        self._until = self._until or time.monotonic() + FETCH_S
        left = self._until - time.monotonic()
        if left <= 0:
            raise InputFetchFailed(f"The URLs did not all answer within {FETCH_S:g} s.")
        try:
            with services().fetches.held(tenant()):
                data, _ = fetch(url, services().settings, max_bytes=MOST_BYTES, timeout_s=left)
        except TooManyStreams as error:
            detail = "As many pictures as may be are being fetched already; try again."
            raise RateLimited(detail, limit=error.limit) from None
        except (UrlTooLarge, UrlUnreachable) as error:
            raise InputFetchFailed(str(error)) from None
        except UrlRefused as error:
            raise InputFetchRefused(str(error)) from None
        found = data_url(data)  # what the answer says of its type anybody may say
        if found is None:
            raise InputFetchFailed(f"What the URL answers {_NO_PICTURE}")
        return found


def _pictures(body: Any) -> dict[str, Any]:
    """By field, as they were given. What is nothing of that kind is left to the parser."""
    given = body.get("input") if isinstance(body, dict) else None
    values = {field: given.get(field) for field in FIELDS} if isinstance(given, dict) else {}
    return {
        field: value
        for field, value in values.items()
        if isinstance(value, dict)
        or (isinstance(value, str) and (value.startswith(_DATA) or _URL.match(value)))
    }


def _form(value: Any) -> tuple[str, str, int]:
    """What kind of picture, which, and for an output its index. Raises: InvalidRequest."""
    match value:
        case str():
            return "url", value, 0
        case {"upload": str(id), **more} if not more:
            return "upload", id, 0
        case {"job": str(id), **more} if set(more) <= {"output"}:
            index = more.get("output", 0)
            if type(index) is int and index >= 0:
                return "job", id, index
        case {"file": str(name), **more} if not more:
            return "file", name, 0
    raise InvalidRequest(
        'A picture is a URL, {"upload": "upl_…"}, {"job": "job_…", "output": 0} or, in a form, '
        '{"file": "part"}.'
    )


def _with(body: Any, urls: dict[str, str]) -> Any:
    return {**body, "input": {**body["input"], **urls}} if urls else body


def _uploaded(id: str) -> str:
    upload = known_upload(id)
    data = _read(upload.key, f"Upload {upload.id}")
    if data is None and upload.sha256 is None:
        raise NotReady(f"Nothing has been PUT to upload {upload.id} yet.")
    return _url(data, f"Upload {upload.id}")


def _drawn(id: str, index: int) -> str:
    artifact = finished_artifact(known_job(id), index)
    what = f"Output {index} of job {id}"
    if not artifact.content_type.startswith("image/"):
        raise InvalidRequest(f"{what} is {artifact.content_type}, no picture.")
    return _url(_read(artifact.key, what), what)


def _read(key: str, what: str) -> bytes | None:
    try:
        return services().storage.read(key, MOST_BYTES)
    except ValueError as error:
        raise InvalidRequest(f"{what}: {error}") from None


def _url(data: bytes | None, what: str) -> str:
    if data is None:
        raise OutputExpired(f"{what} is gone from the storage.")
    found = data_url(data)
    if found is None:
        raise InvalidRequest(f"{what} {_NO_PICTURE}")
    return found
