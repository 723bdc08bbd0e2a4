"""A job record as its caller reads it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from flask import url_for

from api.services import services
from jobs.errors import NotFound
from jobs.images import shown
from jobs.record import Artifact, Attempt, Job, JobState


def job_answer(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "seq": job.seq,
        **_asked(job.request),
        "retry_of": job.retry_of,
        "batch_id": job.batch,
        "warnings": job.warnings,
        "attempt": len(job.attempts),
        "attempts": [_attempt(a) for a in job.attempts],
        "created_at": time_answer(job.created_at),
        "started_at": time_answer(job.started_at),
        "finished_at": time_answer(job.finished_at),
        "deadline_at": time_answer(job.deadline_at),
        "queue": _queue(job),
        "progress": _progress(job),
        "outputs": [_output(job, a) for a in job.artifacts],
        "error": job.error,
        "metrics": _metrics(job),
        "worker": job.worker,
        "plan": job.plan,
        "urls": {
            "get": url_for("jobs.get", id=job.id, _external=True),
            "events": url_for("events.events", id=job.id, _external=True),
            "cancel": url_for("jobs.cancel", id=job.id, _external=True),
        },
    }


def known_job(id: str) -> Job:
    """Raises: NotFound."""
    job = services().store.get(id)
    if job is None:
        raise unknown(id)
    return job


def unknown(id: str) -> NotFound:
    return NotFound(f"There is no job {id[:80]!r}.")


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """The request without the bytes of its pictures."""
    pictures = {k: shown(v) for k, v in request["input"].items() if k in ("image", "mask")}
    return {**request, "input": {**request["input"], **pictures}}


def time_answer(seconds: float | None) -> str | None:
    """RFC 3339, UTC, milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "plan": attempt.plan,
        "started_at": time_answer(attempt.started_at),
        "ended_at": time_answer(attempt.ended_at),
        "error": attempt.error,
    }


def _queue(job: Job) -> dict[str, Any] | None:
    if job.state is not JobState.QUEUED:
        return None
    position = services().store.position(job)
    reason = "waiting for a worker"
    if job.attempts:
        error = job.attempts[-1].error or {}
        reason = f"waiting for attempt {len(job.attempts) + 1}, after {error.get('code')}"
    return {"name": job.queue, "position": position, "reason": reason, "eta_s": None}


def _progress(job: Job) -> dict[str, Any]:
    silent = {"value": 0.0, "stage": None, "step": 0, "steps": 0, "it_per_s": None, "eta_s": None}
    progress = {**silent, **job.progress}
    if job.state is JobState.SUCCEEDED:
        progress.update(value=1.0, eta_s=0)
    return progress


def _metrics(job: Job) -> dict[str, Any]:
    if job.started_at is None:
        return job.metrics
    return {"queue_s": round(job.attempts[0].started_at - job.created_at, 4), **job.metrics}


def _output(job: Job, artifact: Artifact) -> dict[str, Any]:
    url = url_for("jobs.output", id=job.id, index=artifact.index, _external=True)
    link = services().storage.link(artifact.key)
    expires = datetime.now(UTC) + timedelta(seconds=link[1]) if link else None
    return {
        "index": artifact.index,
        "content_type": artifact.content_type,
        "width": artifact.width,
        "height": artifact.height,
        "frames": artifact.frames,
        "fps": artifact.fps,
        "bytes": artifact.bytes,
        "sha256": artifact.sha256,
        "seed": artifact.seed,
        "url": url,
        "download_url": link[0] if link else url,
        "url_expires_at": expires.isoformat(timespec="seconds") if expires else None,
    }
