"""A job record as its caller reads it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import g, url_for

from api.auth import tenant
from api.links import output_link
from api.services import services
from jobs.errors import NotFound, NotReady
from jobs.record import Artifact, Attempt, Job, JobState, time_answer
from jobs.workers import takes_jobs


def job_answer(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "seq": job.seq,
        **job.request,
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
    job = services().store.get(id, tenant())
    if job is None:
        raise unknown(id)
    return job


def finished_artifact(job: Job, index: int) -> Artifact:
    """Raises: NotFound, NotReady."""
    if job.state is not JobState.SUCCEEDED:
        if job.state.final:
            raise NotFound(f"Job {job.id} is {job.status}: it has no outputs.")
        raise NotReady(f"Job {job.id} is {job.status}.")
    found = next((a for a in job.artifacts if a.index == index), None)
    if found is None:
        raise NotFound(f"Job {job.id} has outputs 0 to {len(job.artifacts) - 1}.")
    return found


def unknown(id: str) -> NotFound:
    return NotFound(f"There is no job {id[:80]!r}.")


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
    place = services().store.queues.place(job.queue, job.tenant, job.priority, job)
    reason = "waiting for a worker"
    if place.paused:
        reason = "the queue is paused"
    elif not _taken_by_some(job.model):
        reason = "no worker that has its model takes jobs now"
    elif job.attempts:
        error = job.attempts[-1].error or {}
        reason = f"waiting for attempt {len(job.attempts) + 1}, after {error.get('code')}"
    return {
        "name": job.queue,
        "position": place.position,
        "reason": reason,
        "eta_s": place.eta_s,
    }


def _taken_by_some(model: str) -> bool:
    at, workers = g.get("workers", (0.0, {}))  # of all jobs of a list; a stream lives for hours
    if time.monotonic() > at + 1:
        workers = services().store.workers.alive()
        g.workers = time.monotonic(), workers
    return any(takes_jobs(about) and model in about["models"] for about in workers.values())


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


def output_url(job: Job, artifact: Artifact) -> str:
    return url_for("jobs.output", id=job.id, index=artifact.index, _external=True)


def _output(job: Job, artifact: Artifact) -> dict[str, Any]:
    place: dict[str, Any] = {"id": job.id, "index": artifact.index, "_external": True}
    url = output_url(job, artifact)
    small = url_for("jobs.output", variant="thumbnail", **place) if artifact.thumbnail else None
    link = output_link(job, artifact)
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
        "thumbnail_url": small,
        "url_expires_at": expires.isoformat(timespec="seconds") if expires else None,
    }
