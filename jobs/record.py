"""The job as it stands in Redis, read back as frozen values.

    queued ──claim──> running ──finish──> succeeded | failed | canceled
      │  ^               │
      │  └──fail/reap────┘   another attempt
      ├──cancel──> canceled
      └──reap────> expired

queued     waits to be claimed, at ready_at at the earliest; moved by a worker's claim. If every
           worker dies it stays, and the reaper of the next one sends its hint again. Once an
           attempt has begun to publish, only a claim moves it: the storage has to be asked.
running    owned by the holder of `token` until lease_until; moved by that holder. If the holder
           dies the reaper puts it back (WorkerLost), and after three such crashes it is failed.
the rest   final: nothing moves them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"  # its deadline passed before it began

    @property
    def final(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
    JobState.EXPIRED: frozenset(),
}

# What callers read, and list by: see Job.status.
STATUSES = [*(state.value for state in JobState), "canceling"]

# What a smaller number means to claim: sooner.
PRIORITIES = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True)
class Attempt:
    """One claim of the job. Times are Unix seconds of the Redis server's clock."""

    number: int
    worker: str
    started_at: float
    ended_at: float | None = None
    plan: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class Artifact:
    """One output file. key: where it lies in the object storage; bytes: its size. thumbnail: the
    key of a small picture of it, a WebP."""

    index: int
    key: str
    content_type: str
    width: int
    height: int
    frames: int
    fps: int | None
    bytes: int
    sha256: str
    seed: int
    thumbnail: str | None = None  # records and manifests of before have none


@dataclass(frozen=True)
class Job:
    id: str
    state: JobState
    seq: int
    tenant: str
    queue: str
    model: str
    task: str
    priority: str
    request: dict[str, Any]
    warnings: list[str]
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float | None
    ready_at: float
    worker: str | None
    plan: dict[str, Any] | None
    progress: dict[str, Any]
    attempts: list[Attempt]
    artifacts: list[Artifact]
    metrics: dict[str, Any]
    error: dict[str, Any] | None
    retry_of: str | None
    batch: str | None
    cancel_wished: bool
    deleted: bool

    @property
    def status(self) -> str:
        """The state as api.md names it: a wish to cancel shows until the job has ended."""
        canceling = self.cancel_wished and not self.state.final
        return "canceling" if canceling else self.state.value


@dataclass(frozen=True)
class Claim:
    """What a worker owns: the right to finish this job, until somebody with a newer token does.

    deadline_s: seconds left at the time of the claim; below 0 only where committing. errors: of
    earlier attempts. committing: one of them had begun to publish, and whether it has published
    the storage knows; canceled, poisoned: how the job is to end if it has not.
    """

    id: str
    token: str
    attempt: int
    request: str
    deadline_s: float | None
    errors: list[dict[str, Any]]
    committing: bool = False
    canceled: bool = False
    poisoned: bool = False


def job_from_hash(fields: Mapping[str, str]) -> Job:
    """fields: HGETALL of a job; see lua/begin.lua for their names."""

    def number(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

    def value(name: str, silent: Any) -> Any:
        return json.loads(fields[name]) if fields.get(name) else silent

    attempts = [json.loads(text) for name, text in fields.items() if name.startswith("attempt:")]
    return Job(
        id=fields["id"],
        state=JobState(fields["state"]),
        seq=int(fields["seq"]),
        tenant=fields["tenant"],
        queue=fields["queue"],
        model=fields["model"],
        task=fields["task"],
        priority=next(name for name, n in PRIORITIES.items() if n == int(fields["priority"])),
        request=json.loads(fields["request"]),
        warnings=value("warnings", []),
        created_at=float(fields["created_at"]),
        started_at=number("started_at"),
        finished_at=number("finished_at"),
        deadline_at=number("deadline_at"),
        ready_at=float(fields["ready_at"]),
        worker=fields.get("worker"),
        plan=value("plan", None),
        progress=value("progress", {}),
        attempts=sorted((Attempt(**a) for a in attempts), key=lambda a: a.number),
        artifacts=[Artifact(**a) for a in value("artifacts", [])],
        metrics=value("metrics", {}),
        error=value("error", None),
        retry_of=fields.get("retry_of"),
        batch=fields.get("batch"),
        cancel_wished="cancel" in fields,
        deleted="deleted" in fields,
    )


def time_answer(seconds: float | None) -> str | None:
    """RFC 3339, UTC, milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
