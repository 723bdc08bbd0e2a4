"""The task: claim a job, run it on the group, publish its result, say how it ended."""

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from celery import Celery, Task, shared_task

from jobs.errors import (
    DeadlineExceeded,
    GpuFault,
    Internal,
    Interrupted,
    InvalidInput,
    JobError,
    LeaseLost,
    OutOfMemory,
    SpoolFailed,
    StorageUnavailable,
    StoreUnavailable,
)
from jobs.queue import GPU_QUEUE, RUN, hint, send_hint
from jobs.record import Claim, JobState
from jobs.request import Item, items, stored_request
from worker.fleet import Fleet
from worker.lanes import Turn, choose_lane
from worker.lease import CancelWished, Lease, persist
from worker.meter import UPLOAD, Meter
from worker.plan import Plan
from worker.planner import choices
from worker.protocol import Done, Ended, Event, Progress
from worker.publish import Published, Rendered, Spool, commit, published, upload
from worker.retries import Again, decide

logger = logging.getLogger(__name__)

PASS_ON_S = 0.2  # before a hint goes back to the queue for another worker


class JobFailed(Exception):
    """Raised after all is recorded, so that Flower counts the task as failed."""


@shared_task(  # type: ignore[untyped-decorator]
    name=RUN, bind=True, acks_late=True, ignore_result=True, throws=(JobFailed,)
)
def run(self: Task, queue: str) -> dict[str, Any] | None:
    """A hint has come: run the next job of this queue, whichever it is.

    Answers the job and its state, for Flower; None when there was nothing to do.
    """
    fleet: Fleet = self.app.fleet
    fleet.heard = time.monotonic()
    if fleet.refusing:
        pass_on(self.app)
        return None
    if not fleet.group.wait_ready():  # a lost hint is sent again
        return None
    turn = fleet.lanes.turn(lambda: fleet.refusing is not None)
    if turn is None:
        pass_on(self.app)
        return None
    with turn, fleet.lanes.counted():
        if not fleet.group.wait_ready():  # it may have restarted since
            return None
        try:
            there = fleet.loaded_elsewhere()
            claim = fleet.claim(queue, there)
            left = claim is None and there and fleet.waiting(queue)
        except StoreUnavailable as error:  # the reaper sends the hint again
            logger.warning("no claim: %s", error)
            return None
        if left:  # to a worker that has its model: the hint may have been for that one
            turn.end()
            pass_on(self.app)
        if claim is None:
            return None
        logger.info("%s: attempt %d", claim.id, claim.attempt)
        attempt = Attempt(self, fleet, claim, turn)
        try:
            state = attempt.run()
        finally:
            attempt.turn.end()
    with contextlib.suppress(StoreUnavailable):  # that it is idle again, and what it has loaded
        fleet.announce()
    self.app.recycling.after_job(lambda: fleet.drain.begun)
    logger.info("%s: %s", claim.id, state)
    if state is JobState.FAILED:
        raise JobFailed(claim.id)
    return {"job": claim.id, "state": str(state)}


def pass_on(app: Celery) -> None:
    """The hint, to another worker. Not at once: it may come back here."""
    time.sleep(PASS_ON_S)
    hint(app, "")


class Attempt:
    """One attempt at one job, from the claim to its last word."""

    def __init__(self, task: Task, fleet: Fleet, claim: Claim, turn: Turn) -> None:
        self._task, self._fleet, self._claim, self.turn = task, fleet, claim, turn
        self._lease = Lease(fleet.store, claim, fleet.drain)
        self._spool = Spool(fleet.settings.spool, claim)
        self._event_at = 0.0

    def run(self) -> JobState | None:
        """The job's state after this attempt; None when it was not ours to end."""
        store, claim = self._fleet.store, self._claim
        try:
            try:
                with self._lease:
                    result = self._result()
            except CancelWished:
                return self._canceled()
            except JobError as error:
                return self._failed(error)
            except LeaseLost:
                raise
            except Exception as error:
                logger.exception("%s", claim.id)
                return self._failed(Internal(f"{type(error).__name__}: {error}"[:500]))
            persist(
                lambda: store.finish(claim, JobState.SUCCEEDED, result.artifacts, result.metrics)
            )
            self._spool.clear()
            return JobState.SUCCEEDED
        except LeaseLost:
            logger.warning("%s: another attempt took over", claim.id)
            self._spool.clear_attempt()
            return None

    def _result(self) -> Published:
        storage, claim = self._fleet.storage, self._claim
        if claim.attempt > 1:  # an attempt before this one may have died just after its commit
            earlier = self._earlier()
            if earlier:
                return earlier
        rendered = self._spool.load() or self._render()
        self.turn.end()  # to upload takes no rank
        self._tell({"value": UPLOAD, "stage": "upload"})
        began = time.monotonic()
        artifacts = self._lease.insist(lambda: upload(storage, claim, rendered))
        self._lease.confirm(rendered.plan)
        metrics = {**rendered.metrics, "upload_s": time.monotonic() - began}
        # Not to be left half-way: a manifest that appears after a cancel would be a lie.
        return self._lease.insist(
            lambda: commit(storage, claim, artifacts, metrics), stoppable=False
        )

    def _earlier(self) -> Published | None:
        """What an attempt before this one has published. While the storage is away others may
        claim: the turn is given up for that long."""
        storage, id = self._fleet.storage, self._claim.id
        try:
            return self._lease.hold(lambda: published(storage, id), stoppable=True)
        except StorageUnavailable:
            self.turn.end()
        earlier = self._lease.insist(lambda: published(storage, id))
        turn = None if earlier else self._fleet.lanes.turn(self._leaving)
        if turn is not None:
            self.turn = turn
        elif not earlier:
            self._lease.check()
            raise Interrupted("The worker stopped before the job began.")
        return earlier

    def _leaving(self) -> bool:
        self._lease.renew()
        return self._fleet.drain.begun or self._lease.stop.is_set()

    def _render(self) -> Rendered:
        fleet, claim = self._fleet, self._claim
        request = stored_request(claim.request)
        if request.model not in fleet.catalog:
            raise InvalidInput(f"This worker's catalogue has no model {request.model!r}.")
        ran_out = any(error["code"] == OutOfMemory.code for error in claim.errors)
        spec = fleet.catalog[request.model]
        options = choices(spec, request, fleet.group.size, ran_out, fleet.room(spec))
        choice, why = choose_lane(options, self._waiting(), fleet.lanes.free(), fleet.group.size)
        holders = fleet.group.holders(request.model)
        with fleet.lanes.lane(choice.width, self.turn, self._wait_for_ranks, holders) as lane:
            about = {
                **asdict(choice.plan),
                "width": choice.plan.width,
                "lane": list(lane),
                "reason": f"{why}; {choice.reason}",
            }
            self._lease.planned(about)
            return self._run(items(request), choice.plan, lane, about)

    def _waiting(self) -> int:
        """Other jobs that this group could run now; none, while nobody can tell."""
        try:
            return self._fleet.waiting(GPU_QUEUE)
        except StoreUnavailable:
            return 0

    def _wait_for_ranks(self) -> None:
        self._lease.renew()
        self._lease.check()

    def _run(
        self, work: list[Item], plan: Plan, lane: Sequence[int], about: dict[str, Any]
    ) -> Rendered:
        fleet, claim = self._fleet, self._claim
        meter = Meter(work, plan.width)
        stream = fleet.group.run(
            claim.id, claim.request, work, plan, lane, self._spool.folder, self._lease.stop
        )
        with contextlib.closing(stream):
            try:
                self._follow(stream, meter)
            except LeaseLost:
                self._lease.stop.set()  # and not the group: other jobs run there
                for _event in stream:
                    pass
                raise
        rendered = Rendered(meter.files(), meter.metrics(), about)
        try:
            self._spool.keep(rendered)
        except OSError as error:
            raise SpoolFailed(f"The result can't be kept on this node: {error.strerror}.") from None
        return rendered

    def _follow(self, stream: Iterator[Event], meter: Meter) -> None:
        for event in stream:
            if isinstance(event, Progress):
                self._tell(meter.progress(event))
            elif isinstance(event, Done):
                meter.done(event)
            elif isinstance(event, Ended) and event.canceled:
                self._spool.clear_attempt()
                self._lease.check()
            else:
                self._lease.renew()

    def _tell(self, progress: dict[str, Any]) -> None:
        """To the record, and at most once a second to Flower, where the state is PROGRESS."""
        self._lease.renew(progress)
        now = time.monotonic()
        if now - self._event_at >= 1:
            self._event_at = now
            with contextlib.suppress(Exception):  # no news of a job may end it
                self._task.send_event("task-progress", retry=False, job=self._claim.id, **progress)

    def _canceled(self) -> JobState:
        self._spool.clear()
        persist(lambda: self._fleet.store.finish(self._claim, JobState.CANCELED))
        return JobState.CANCELED

    def _failed(self, error: JobError) -> JobState:
        store, claim = self._fleet.store, self._claim
        if not isinstance(error, DeadlineExceeded) and self._lease.stop.is_set():
            try:  # what went wrong while the lane was being stopped is not the news
                self._lease.check()
            except CancelWished:
                return self._canceled()
            except (DeadlineExceeded, Interrupted) as reason:
                error = reason
        if isinstance(error, GpuFault):
            self._fleet.gpu_fault(claim.id)
        if isinstance(error, SpoolFailed):
            self._fleet.spool_failed()
        answer = error.answer()
        logger.error("%s: %s: %s", claim.id, error.code, error)
        decision = decide(error, claim.errors)
        if isinstance(decision, Again):
            if not self._spool.load():
                self._spool.clear_attempt()
            delay_s, counted = decision.delay_s, decision.counted
            state = persist(lambda: store.fail(claim, answer, delay_s, counted))
            if state is JobState.QUEUED and not delay_s:
                send_hint(self._task.app, store, claim.id)
            return state
        self._spool.clear()
        persist(lambda: store.finish(claim, JobState.FAILED, error=answer, dead=decision.dead))
        return JobState.FAILED
