"""Every way a request or a job can fail, with the words that its caller reads.

FleetError
├── SettingsError                a bad environment variable or catalogue: the process does not start
├── RequestError                 the caller's mistake; nothing is enqueued
│   ├── MalformedJson            400
│   ├── UnsupportedTask          400
│   ├── Unauthorized             401
│   ├── Forbidden                403
│   ├── NotFound                 404
│   ├── ModelNotFound            404
│   ├── VideoNotReady            404
│   ├── NotReady                 409, ask again later
│   ├── JobActive                409
│   ├── OutputExpired            410
│   ├── TooLarge                 413
│   ├── InvalidRequest           422
│   ├── InputFetchRefused        422, a picture's URL that we do not go to
│   ├── InputFetchFailed         422, one that does not answer with a picture in time
│   ├── KeyReused                422
│   ├── QueueFull                429, ask again later
│   ├── RateLimited              429, ask again later
│   ├── ConcurrencyLimited       429, ask again later
│   ├── QuotaExceeded            429, ask again tomorrow
│   ├── TooManyStreams           429, ask again later
│   ├── NoResult                 500, a job that was waited for has ended without one
│   └── WaitTimeout              504, a job that was waited for goes on
├── StoreUnavailable             Redis is away
│   └── StoreFull                its memory is nearly full: new jobs are refused
├── StorageUnavailable           the object storage is away
│   └── StorageRefused           it is there, and does not accept our key
├── UrlRefused                   a URL that we do not go to, or whose answer we do not take
│   └── UrlTooLarge              for its size
├── UrlUnreachable               its host is unknown, silent or late, or answers with an error
├── LeaseLost                    another attempt owns the job now: stop, publish nothing
└── JobError                     a job's end, or the end of one attempt
    ├── InvalidInput             never tried again
    ├── ModelLoadFailed          never tried again
    ├── ModelUnavailable         its hub, or the way there, is away: tried again, later
    ├── OutOfMemory              tried again once, on a plan that needs less memory
    ├── GroupFault               the group is killed and started again, the job at once
    │   ├── RankDied
    │   ├── GpuFault            a GPU or its driver: two of them drain the worker
    │   └── RankHung
    ├── WorkerLost               a lease expired: the worker is gone
    ├── Poisoned                 the third WorkerLost of one job
    ├── DeadlineExceeded
    ├── Interrupted              the worker is stopping: tried again, not counted
    ├── SpoolFailed              a node's disk took no more, or lost it: tried again, later
    └── Internal                 our own fault
"""

from dataclasses import dataclass
from typing import Any, ClassVar


class FleetError(Exception):
    """Base of all; its text is a sentence for whoever reads it."""


class SettingsError(FleetError):
    pass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a request. pointer: JSON pointer into the caller's body."""

    pointer: str
    code: str
    detail: str


class RequestError(FleetError):
    status: ClassVar[int] = 422
    code: ClassVar[str] = "invalid_request"
    retryable: ClassVar[bool] = False

    def __init__(
        self, detail: str, *problems: Problem, retry_after_s: int = 2, limit: float | None = None
    ) -> None:
        """limit: the one that refused, of which nothing is left for retry_after_s."""
        super().__init__(detail)
        self.problems, self.retry_after_s, self.limit = problems, retry_after_s, limit


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"


class Forbidden(RequestError):
    status, code = 403, "forbidden"


class RateLimited(RequestError):
    status, code, retryable = 429, "rate_limited", True


class ConcurrencyLimited(RequestError):
    status, code, retryable = 429, "concurrency_limited", True


class QuotaExceeded(RequestError):
    status, code, retryable = 429, "quota_exceeded", True


class MalformedJson(RequestError):
    status, code = 400, "malformed_json"


class UnsupportedTask(RequestError):
    status, code = 400, "unsupported_task"


class NotFound(RequestError):
    status, code = 404, "not_found"


class ModelNotFound(RequestError):
    status, code = 404, "model_not_found"


class VideoNotReady(RequestError):
    status, code = 404, "video_not_ready"


class NotReady(RequestError):
    status, code, retryable = 409, "not_ready", True


class JobActive(RequestError):
    status, code = 409, "job_active"


class OutputExpired(RequestError):
    status, code = 410, "output_expired"


class TooLarge(RequestError):
    status, code = 413, "payload_too_large"


class InvalidRequest(RequestError):
    pass


class InputFetchRefused(RequestError):
    code = "input_fetch_refused"


class InputFetchFailed(RequestError):
    code = "input_fetch_failed"


class QueueFull(RequestError):
    status, code, retryable = 429, "queue_full", True


class TooManyStreams(RequestError):
    status, code, retryable = 429, "too_many_streams", True


class NoResult(RequestError):
    status = 500

    def __init__(self, detail: str, code: str) -> None:
        super().__init__(detail)
        self.code = code  # type: ignore[misc]  # the job's own


class WaitTimeout(RequestError):
    status, code = 504, "wait_timeout"


class KeyReused(RequestError):
    code = "idempotency_key_reused"


class StoreUnavailable(FleetError):
    pass


class StoreFull(StoreUnavailable):
    pass


class StorageUnavailable(FleetError):
    pass


class StorageRefused(StorageUnavailable):
    pass


class UrlRefused(FleetError):
    pass


class UrlTooLarge(UrlRefused):
    pass


class UrlUnreachable(FleetError):
    pass


class LeaseLost(FleetError):
    pass


class JobError(FleetError):
    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, stage: str | None = None) -> None:
        super().__init__(detail)
        self.stage = stage

    def answer(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": str(self),
            "stage": self.stage,
            "retryable": self.retryable,
        }


class InvalidInput(JobError):
    code = "invalid_input"


class ModelLoadFailed(JobError):
    code = "model_load_failed"


class ModelUnavailable(JobError):
    code, retryable = "model_unavailable", True


class OutOfMemory(JobError):
    code = "out_of_memory"


class GroupFault(JobError):
    retryable = True


class RankDied(GroupFault):
    code = "rank_died"


class GpuFault(GroupFault):
    code = "gpu_fault"


class RankHung(GroupFault):
    code = "rank_hung"


class WorkerLost(JobError):
    code, retryable = "worker_lost", True


class Poisoned(JobError):
    code = "poisoned"

    def __init__(self) -> None:
        super().__init__("Three workers were lost while running this job.")


class DeadlineExceeded(JobError):
    code = "deadline_exceeded"


class Interrupted(JobError):
    code, retryable = "interrupted", True


class SpoolFailed(JobError):
    code, retryable = "spool_failed", True


class Internal(JobError):
    pass


# What a rank names by its code comes back as the same class on the worker's side.
JOB_ERRORS: dict[str, type[JobError]] = {
    kind.code: kind
    for kind in (
        *(InvalidInput, ModelLoadFailed, ModelUnavailable, OutOfMemory, RankDied, GpuFault),
        *(RankHung, SpoolFailed, Internal),
    )
}
