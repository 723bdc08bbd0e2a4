"""What the API answers, as far as it is commonly read; an answer has more than is named here."""

from typing import Any, Literal, TypedDict

Status = Literal["queued", "running", "canceling", "succeeded", "failed", "canceled", "expired"]


class Error(TypedDict):
    """Why a job, or one of its attempts, ended."""

    code: str
    message: str
    stage: str | None
    retryable: bool


class Progress(TypedDict):
    """value: 0 to 1, and never back within an attempt."""

    value: float
    stage: str | None
    step: int
    steps: int
    it_per_s: float | None
    eta_s: float | None


class Output(TypedDict):
    index: int
    content_type: str
    width: int
    height: int
    frames: int
    fps: float | None
    bytes: int
    sha256: str
    seed: int
    url: str
    download_url: str
    thumbnail_url: str | None


class Job(TypedDict):
    """seq: grows with every change. input: as the server understood it, with what it filled in."""

    id: str
    status: Status
    seq: int
    model: str
    task: str
    input: dict[str, Any]
    warnings: list[str]
    attempt: int
    attempts: list[dict[str, Any]]
    created_at: str
    started_at: str | None
    finished_at: str | None
    progress: Progress
    outputs: list[Output]
    error: Error | None
    metrics: dict[str, Any]
    worker: str | None
    plan: dict[str, Any] | None
    retry_of: str | None
    batch_id: str | None
