"""The tasks: claim a job, run it on the group, publish its result, say how it ended; or deliver
webhooks."""

import contextlib
import logging
import time
from typing import Any

from celery import Celery, Task, shared_task

from jobs.errors import StoreUnavailable
from jobs.queue import DELIVER, RUN, hint, hint_delivery
from jobs.record import JobState
from worker.attempt import Attempt
from worker.fleet import Fleet
from worker.webhooks import Courier

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

    def leaving() -> bool:
        return fleet.refusing is not None

    if leaving():
        pass_on(self.app)
        return None
    if not fleet.group.wait_ready(leaving):  # a lost hint is sent again
        return None
    turn = fleet.lanes.turn(leaving)
    if turn is None:
        pass_on(self.app)
        return None
    with turn, fleet.lanes.counted():
        if not fleet.group.wait_ready(leaving) or leaving():  # it may have restarted since
            turn.end()
            pass_on(self.app)
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
        fleet.at_work.add(claim.id)
        try:
            state = attempt.run()
        finally:
            fleet.at_work.discard(claim.id)
            attempt.turn.end()
    hint_delivery(self.app, fleet.store)
    with contextlib.suppress(StoreUnavailable):  # that it is idle again, and what it has loaded
        fleet.announce()
    self.app.recycling.after_job(lambda: fleet.drain.begun)
    logger.info("%s: %s", claim.id, state)
    if state is JobState.FAILED:
        raise JobFailed(claim.id)
    return {"job": claim.id, "state": str(state)}


@shared_task(name=DELIVER, bind=True, acks_late=True, ignore_result=True)  # type: ignore[untyped-decorator]
def deliver(self: Task) -> int:
    """A hint has come: deliver the webhooks that are due. Answers how many it tried."""
    courier: Courier = self.app.courier
    try:
        return courier.deliver_all()
    except StoreUnavailable as error:  # the courier's loop goes on
        logger.warning("no delivery: %s", error)
        return 0


def pass_on(app: Celery) -> None:
    """The hint, to another worker. Not at once: it may come back here."""
    time.sleep(PASS_ON_S)
    hint(app, "")
