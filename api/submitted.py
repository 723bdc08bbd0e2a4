"""A job that is recorded, told to a worker, and waited for."""

import contextlib
import time
from collections.abc import Callable, Sequence

from api.answers import known_job
from api.asked import check_webhook, check_width, wait_s_asked
from api.auth import asker, tenant
from api.services import services
from jobs.errors import TooManyStreams
from jobs.queue import send_hint
from jobs.record import Job
from jobs.request import JobRequest
from jobs.store import new_id

POLL_S = 0.1
HINTS = 16  # of a batch, at once; the reaper sends the others


def submit(
    asked: JobRequest,
    warnings: list[str],
    key: str = "",
    body_hash: str = "",
    retry_of: str = "",
    id: str = "",
) -> tuple[str, bool]:
    """Answers its id, and whether it is new. Takes and raises what JobStore.submit() does."""
    check_width(asked)
    check_webhook(asked)
    fleet = services()
    id, created = fleet.store.submit(
        asked,
        asker=asker(),
        warnings=warnings,
        key=key,
        body_hash=body_hash,
        retry_of=retry_of,
        id=id,
    )
    if created:
        send_hint(fleet.celery, fleet.store, id, first=True)
    return id, created


def submit_all(
    asked: Sequence[tuple[JobRequest, list[str]]],
    key: str = "",
    body_hash: str = "",
    id: str = "",
) -> tuple[str, bool]:
    """As submit(), for a batch of requests, which are checked already, with their warnings."""
    fleet = services()
    jobs = [(new_id(), request, warnings) for request, warnings in asked]
    id, created = fleet.store.batches.submit(
        id or new_id("batch"), jobs, asker(), key=key, body_hash=body_hash
    )
    for job, _request, _warnings in jobs[:HINTS] if created else ():
        send_hint(fleet.celery, fleet.store, job, first=True)
    return id, created


def wait_as_preferred(id: str, enough: Callable[[Job], bool]) -> tuple[Job, int]:
    """As `Prefer: wait` asks: the job, and the seconds that were granted; 0 where nothing was
    asked, or no place is left in which to wait, and the answer comes at once."""
    wait_s = wait_s_asked()
    with contextlib.ExitStack() as held:
        try:
            if wait_s:
                held.enter_context(services().places.held(tenant()))
        except TooManyStreams:
            wait_s = 0
        return wait(id, wait_s, enough), wait_s


def wait(id: str, wait_s: float, enough: Callable[[Job], bool]) -> Job:
    """Reads the whole record only when its seq has moved."""
    until = time.monotonic() + wait_s
    job = known_job(id)
    while not enough(job) and time.monotonic() < until:
        time.sleep(POLL_S)
        if services().store.seq(id) != job.seq:
            job = known_job(id)
    return job
