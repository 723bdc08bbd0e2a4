"""The answers as the OpenAPI document describes them; tests hold real ones against it."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

REF = "#/components/schemas/{model}"

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Url = Annotated[str, Field(json_schema_extra={"format": "uri"})]
Status = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled", "expired"]


class FieldProblem(TypedDict):
    """One thing wrong with a request. pointer: a JSON pointer into the caller's body."""

    pointer: str
    code: str
    detail: str


class OpenAIError(TypedDict):
    """The same for OpenAI's clients."""

    message: str
    type: str
    param: str | None
    code: str


class Problem(TypedDict):
    """RFC 9457. retryable: the same request may succeed later, after Retry-After."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    errors: list[FieldProblem]
    error: OpenAIError


class JobError(TypedDict):
    """What ended a job, or one attempt at it. retryable: another attempt may help."""

    code: str
    message: str
    stage: str | None
    retryable: bool


class Attempt(TypedDict):
    """One worker's go at the job."""

    number: int
    worker: str
    plan: dict[str, Any] | None
    started_at: Time
    ended_at: Time | None
    error: JobError | None


class QueuePlace(TypedDict):
    """position: how many of the caller's jobs are before this one. eta_s: until it may begin, as
    far as the last jobs tell."""

    name: str
    position: int | None
    reason: str
    eta_s: float | None


class Progress(TypedDict):
    """value: from 0 to 1; it never goes back within an attempt. memory: bytes, by rank."""

    value: float
    stage: str | None
    step: int
    steps: int
    it_per_s: float | None
    eta_s: float | None
    memory: NotRequired[dict[str, dict[str, int]]]


class Output(TypedDict):
    """One file. download_url: a signed link, which needs no key, where keys are needed or the
    storage signs; else the same as url."""

    index: int
    content_type: str
    width: int
    height: int
    frames: int
    fps: int | None
    bytes: int
    sha256: str
    seed: int
    url: Url
    download_url: Url
    thumbnail_url: Url | None
    url_expires_at: Time | None


class Asked(TypedDict):
    """The request with every default filled in."""

    model: str
    task: str
    input: dict[str, Any]
    output: dict[str, Any]
    parallel: str | dict[str, Any]
    priority: str
    deadline_s: float | None
    metadata: dict[str, str | int | float | bool | None]
    webhook: NotRequired[dict[str, Any] | None]
    preview: NotRequired[dict[str, Any] | None]


class DryRun(Asked):
    """What would be recorded, and what it could expect. fits: a worker of now could run it;
    null where none has the model in memory, and so nobody knows."""

    object: Literal["dry_run"]
    warnings: list[str]
    fits: bool | None
    workers_able: int
    workers_ready: int
    position: int
    estimated_wait_s: float | None
    estimated_run_s: float | None


class Job(Asked):
    """The request with every default filled in, and what has become of it. metrics: seconds of
    each stage, GPU seconds, and each rank's peak memory."""

    id: str
    object: Literal["job"]
    status: Status
    seq: int
    retry_of: str | None
    batch_id: str | None
    warnings: list[str]
    attempt: int
    attempts: list[Attempt]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    deadline_at: Time | None
    queue: QueuePlace | None
    progress: Progress
    outputs: list[Output]
    error: JobError | None
    metrics: dict[str, float | dict[str, int]]
    worker: str | None
    plan: dict[str, Any] | None
    urls: dict[str, Url]


class Batch(TypedDict):
    """counts: of its jobs that are still there, by state. jobs: their ids."""

    id: str
    object: Literal["batch"]
    status: Literal["running", "finished"]
    created_at: Time
    total: int
    counts: dict[str, int]
    jobs: list[str]
    urls: dict[str, Url]


class Delivery(TypedDict):
    """What a webhook was told, or is to be told at next_at."""

    id: str
    object: Literal["delivery"]
    job_id: str
    event: str
    url: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    last_status: int | None
    last_error: str | None
    created_at: Time
    next_at: Time | None
    delivered_at: Time | None


class LogLine(TypedDict):
    """rank: None, where the worker says it."""

    at: Time
    attempt: int
    rank: int | None
    level: Literal["info", "warning", "error", "critical"]
    message: str


class Upload(TypedDict):
    """sha256: null for a picture that its caller PUTs to put_url."""

    id: str
    object: Literal["upload"]
    bytes: int
    content_type: str
    sha256: str | None
    created_at: Time
    expires_at: Time
    put_url: NotRequired[Url]
    put_url_expires_at: NotRequired[Time]


class Picture(TypedDict):  # one of the two, as response_format says
    b64_json: NotRequired[str]
    url: NotRequired[Url]


class ImagesResponse(TypedDict):
    created: int
    data: list[Picture]
    size: str
    output_format: Literal["png", "webp"]


class Video(TypedDict):
    """OpenAI's view of a job."""

    id: str
    object: Literal["video"]
    status: Literal["queued", "in_progress", "completed", "failed"]
    model: str
    prompt: str
    progress: int
    seconds: str
    size: str
    created_at: int
    completed_at: int | None
    expires_at: int | None
    remixed_from_video_id: str | None
    error: dict[str, str] | None


class VideoDeleted(TypedDict):
    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


class Readiness(TypedDict):
    """checks: "ok", or why not."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]
    workers: list[str]
