"""One attempt at one job, from the claim to its last word: the only writer of a running job."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from celery import Task

from jobs.errors import (
    DeadlineExceeded,
    GpuFault,
    Internal,
    Interrupted,
    InvalidInput,
    JobError,
    LeaseLost,
    OutOfMemory,
    Poisoned,
    SpoolFailed,
    StorageRefused,
    StorageUnavailable,
    StoreUnavailable,
)
from jobs.queue import GPU_QUEUE, send_hint
from jobs.record import Claim, JobState
from jobs.request import Item, items, stored_request
from worker.fleet import Fleet
from worker.joblog import JobLog
from worker.lanes import Turn, choose_lane
from worker.lease import CancelWished, Lease
from worker.meter import UPLOAD, Meter
from worker.plan import Plan
from worker.planner import choices
from worker.protocol import MEETING, Done, Ended, Event, Progress, Said
from worker.publish import Published, Rendered, Spool, Voided, commit, published, upload, void
from worker.retries import Again, decide

logger = logging.getLogger(__name__)

R = TypeVar("R")


class Attempt:
    def __init__(self, task: Task, fleet: Fleet, claim: Claim, turn: Turn) -> None:
        self._task, self._fleet, self._claim, self.turn = task, fleet, claim, turn
        self._lease = Lease(fleet.store, claim, fleet.drain)
        self._log = JobLog(fleet.store, claim)
        self._spool = Spool(fleet.settings.spool, claim)
        self._committing = claim.committing
        self._taken: dict[str, float] = {}  # of the GPUs, by what gave no result
        self._event_at = 0.0

    def run(self) -> JobState | None:
        """The job's state after this attempt; None when it was not ours to end."""
        try:
            try:
                return self._attempt()
            except Interrupted as error:  # as it was being ended
                return self._again(error, Again(counted=False))
        except LeaseLost as lost:
            logger.warning("%s", lost)
            self._spool.clear_attempt()
            return None

    def _attempt(self) -> JobState:
        """Raises: LeaseLost; Interrupted, before the job's last word is said."""
        try:
            with self._lease:
                result = self._result()
        except CancelWished:
            return self._end(Voided(JobState.CANCELED, None, False))
        except JobError as error:
            return self._failed(error)
        except Voided as verdict:
            return self._ended(verdict)
        except LeaseLost:
            raise
        except Exception as error:
            logger.exception("%s", self._claim.id)
            return self._failed(Internal(f"{type(error).__name__}: {error}"[:500]))
        return self._succeeded(result)

    def _result(self) -> Published:
        storage, claim = self._fleet.storage, self._claim
        # An attempt before this one may have died just after its commit.
        if claim.attempt > 1 and (earlier := self._earlier()):
            return earlier
        self._log.say(f"attempt {claim.attempt} on {self._fleet.name}")
        self._lease.check()
        if claim.poisoned:
            raise Poisoned
        rendered = self._spool.load() or self._render()
        self.turn.end()  # to upload takes no rank
        self._log.say("upload")
        self._tell({"value": UPLOAD, "stage": "upload"})
        began = time.monotonic()
        artifacts = self._insist(lambda: upload(storage, claim, rendered))
        self._lease.confirm(rendered.plan)
        self._committing = True
        metrics = {**rendered.metrics, "upload_s": time.monotonic() - began}
        # Not to be left half-way: a manifest that appears after a cancel would be a lie.
        return self._insist(lambda: commit(storage, claim, artifacts, metrics), stoppable=False)

    def _insist(self, call: Callable[[], R], stoppable: bool = True) -> R:
        """lease.insist; while the storage refuses this worker its jobs wait, and others are for
        others."""

        def tell() -> R:
            try:
                return call()
            except StorageRefused:
                self._fleet.rest("the object storage refuses its key")
                raise

        return self._lease.insist(tell, stoppable)

    def _earlier(self) -> Published | None:
        """What an attempt before this one has published. While the storage is away others may
        claim: the turn is given up for that long."""
        storage, id = self._fleet.storage, self._claim.id
        try:
            return self._lease.hold(lambda: published(storage, id), stoppable=True)
        except StorageUnavailable:
            self.turn.end()
        earlier = self._insist(lambda: published(storage, id))
        turn = None if earlier else self._fleet.lanes.turn(self._leaving)
        if turn is not None:
            self.turn = turn
        elif not earlier:
            self._lease.check()
            raise Interrupted("The worker stopped before the job began.")
        return earlier

    def _leaving(self) -> bool:
        self._renew()
        return self._fleet.drain.begun or self._lease.stop.is_set()

    def _renew(self, progress: dict[str, Any] | None = None) -> None:
        if self._lease.renew(progress):
            self._log.flush()

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
        with fleet.lanes.lane(choice.width, self.turn, self._go_on, holders) as lane:
            about = {
                **asdict(choice.plan),
                "width": choice.plan.width,
                "lane": list(lane),
                "reason": f"{why}; {choice.reason}",
            }
            self._log.say(f"ranks {', '.join(map(str, lane))}: {about['reason']}")
            self._lease.planned(about)
            return self._run(items(request), choice.plan, lane, about)

    def _waiting(self) -> int:
        """Other jobs that this group could run now; none, while nobody can tell."""
        try:
            return self._fleet.waiting(GPU_QUEUE)
        except StoreUnavailable:
            return 0

    def _go_on(self) -> None:
        self._renew()
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
            finally:
                self._taken["gpu_seconds"] = meter.gpu_seconds()
        rendered = Rendered(meter.files(), meter.metrics(), about)
        try:
            self._spool.keep(rendered)
        except OSError as error:
            raise SpoolFailed(f"The result can't be kept on this node: {error.strerror}.") from None
        return rendered

    def _follow(self, stream: Iterator[Event], meter: Meter) -> None:
        for event in stream:
            if isinstance(event, Said):
                self._log.say(event.message, event.level, event.rank)
                self._renew()
            elif isinstance(event, Progress) and event.stage != MEETING:
                self._log.stage(event)
                self._tell(meter.progress(event))
                if event.preview:
                    self._show(Path(event.preview))
            elif isinstance(event, Done):
                meter.done(event)
            elif isinstance(event, Ended) and event.canceled:
                self._spool.clear_attempt()
                self._lease.check()
            else:
                self._renew()

    def _tell(self, progress: dict[str, Any]) -> None:
        """To the record, and at most once a second to Flower, where the state is PROGRESS."""
        self._renew(progress)
        now = time.monotonic()
        if now - self._event_at >= 1:
            self._event_at = now
            with contextlib.suppress(Exception):  # no news of a job may end it
                self._task.send_event("task-progress", retry=False, job=self._claim.id, **progress)

    def _show(self, preview: Path) -> None:
        with contextlib.suppress(StoreUnavailable, OSError):  # it is only news
            self._fleet.store.previews.put(self._claim.id, preview.read_bytes())

    def _succeeded(self, result: Published) -> JobState:
        state = JobState.SUCCEEDED
        made, store = (result.artifacts, result.metrics), self._fleet.store
        self._lease.persist(lambda: store.finish(self._claim, state, *made))
        self._close(state)
        return state

    def _close(self, state: JobState) -> None:
        self._spool.clear()
        self._log.say(f"the job {state}")
        self._log.flush()

    def _end(self, verdict: Voided) -> JobState:
        """Without a result, unless it turns out that there is one."""
        storage, claim = self._fleet.storage, self._claim
        if self._committing:
            self.turn.end()
            self._lease.still_ours()  # who slept must not void what another is making
            try:
                earlier = self._insist(lambda: void(storage, claim, verdict), stoppable=False)
            except Voided as earlier_verdict:
                return self._ended(earlier_verdict)
            if earlier:
                return self._succeeded(earlier)
        return self._ended(verdict)

    def _ended(self, verdict: Voided) -> JobState:
        store, state, error, dead = self._fleet.store, verdict.state, verdict.error, verdict.dead
        taken = {} if dead else self._taken  # for a fault nobody pays
        self._lease.persist(lambda: store.finish(self._claim, state, [], taken, error, dead))
        self._close(state)
        return state

    def _failed(self, error: JobError) -> JobState:
        if not isinstance(error, DeadlineExceeded) and self._lease.stop.is_set():
            try:  # what went wrong while the lane was being stopped is not the news
                self._lease.check()
            except CancelWished:
                return self._end(Voided(JobState.CANCELED, None, False))
            except (DeadlineExceeded, Interrupted) as reason:
                error = reason
        if isinstance(error, GpuFault):
            self._fleet.gpu_fault(self._claim.id)
        if isinstance(error, SpoolFailed):
            self._fleet.rest("its spool failed")
        decision = decide(error, self._claim.errors)
        if isinstance(decision, Again):
            return self._again(error, decision)
        self._say(error)
        return self._end(Voided(JobState.FAILED, error.answer(), decision.dead))

    def _again(self, error: JobError, decision: Again) -> JobState:
        store, claim, delay_s = self._fleet.store, self._claim, decision.delay_s
        self._say(error)
        if not self._spool.load():
            self._spool.clear_attempt()
        said = error.answer(), delay_s, decision.counted
        if (state := self._lease.persist(lambda: store.fail(claim, *said))).final:
            self._close(state)
        self._log.flush()
        if state is JobState.QUEUED and not delay_s:
            send_hint(self._task.app, store, claim.id)
        return state

    def _say(self, error: JobError) -> None:
        logger.error("%s: %s: %s", self._claim.id, error.code, error)
        self._log.say(f"{error.code}: {error}", "error")
