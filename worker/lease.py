"""Lease: what a running job owes Redis and what it learns there: cancel, deadline, loss."""

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Self, TypeVar

from jobs.errors import (
    DeadlineExceeded,
    Interrupted,
    LeaseLost,
    StorageUnavailable,
    StoreUnavailable,
)
from jobs.record import Claim
from jobs.store import JobStore

logger = logging.getLogger(__name__)

R = TypeVar("R")
EVERY_S = 0.25  # at most four progress events a second
AWAY_S = 2  # between tries while Redis is away: each may take seconds
TICK_S = 0.2
STOPPED = "The worker stopped before the job ended."


class CancelWished(Exception):
    """Somebody asked for the end of this job."""


class Drain:
    """No new job for this worker, and so long for the running ones. There is no way back."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._over_at = math.inf

    def begin(self, reason: str, budget_s: float = math.inf) -> None:
        self.reason = self.reason or reason
        self._over_at = min(self._over_at, time.monotonic() + budget_s)

    @property
    def begun(self) -> bool:
        return self.reason is not None

    @property
    def over(self) -> bool:
        return time.monotonic() > self._over_at


class Lease:
    """renew() is called wherever the job gets on; nothing renews for a job that hangs.

    As a context it listens for a wish to cancel, so that a lane hears of it within its step.
    """

    def __init__(self, store: JobStore, claim: Claim, drain: Drain) -> None:
        self._store, self.claim, self._drain = store, claim, drain
        self.stop = threading.Event()  # the lane is to stop; check() says why
        self._ends_at = None if claim.deadline_s is None else time.monotonic() + claim.deadline_s
        self._next = 0.0
        self._cancel = claim.canceled
        self._news: dict[str, Any] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._listen, name="wishes", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _listen(self) -> None:
        while not self._over.is_set() and not self._cancel:
            try:
                if self._store.wished(self.claim):
                    self._cancel = True
            except StoreUnavailable:
                self._over.wait(1)
        if self._cancel:
            self.stop.set()

    def renew(self, progress: dict[str, Any] | None = None) -> bool:
        """Rate-limited: the newest progress is written at the next call that goes through. Answers
        whether this one did.

        If Redis is away, the job goes on. Raises: LeaseLost.
        """
        self._news = progress or self._news
        return time.monotonic() > self._next and self._reach()

    def planned(self, plan: dict[str, Any]) -> None:
        """Writes the plan, and so asks at once whether the job is still ours and still wanted."""
        self._reach(plan)

    def confirm(self, plan: dict[str, Any]) -> None:
        """The same, until Redis answers: while it is away the job may be canceled, or another's.
        The record says from then on that the job may be published.
        Raises: LeaseLost; what check() raises."""
        while not self._reach(plan, publish=True):
            self.check()
            time.sleep(TICK_S)
        self.check()

    def still_ours(self) -> None:
        """Waits for Redis to say so. Raises: LeaseLost, Interrupted."""
        while not self._reach():
            if self._drain.over:
                raise Interrupted(STOPPED)
            time.sleep(TICK_S)

    def _reach(self, plan: dict[str, Any] | None = None, publish: bool = False) -> bool:
        """Whether Redis answered."""
        if self._late() or self._drain.over:
            self.stop.set()
        try:
            if self._store.renew(self.claim, plan, self._news, publish):
                self._cancel = True  # never back: the listener sets it too
            self._news = None
            self._next = time.monotonic() + EVERY_S
        except StoreUnavailable as error:
            logger.warning("%s: lease not renewed: %s", self.claim.id, error)
            self._next = time.monotonic() + AWAY_S
            return False
        if self._cancel:
            self.stop.set()
        return True

    def check(self) -> None:
        """Raises: CancelWished, DeadlineExceeded or Interrupted, if one of them stopped the job."""
        if self._cancel:
            raise CancelWished
        if self._late():
            raise DeadlineExceeded("The job's deadline passed while it ran.")
        if self._drain.over:
            raise Interrupted(STOPPED)

    def _late(self) -> bool:
        return self._ends_at is not None and time.monotonic() > self._ends_at

    def insist(self, call: Callable[[], R], stoppable: bool = True) -> R:
        """Runs a call to the object storage again and again for as long as that is away.

        stoppable: a cancel or a deadline ends the waiting, whatever the call still does; the end of
        a drain's time does in any case.
        Raises: what check() raises; LeaseLost.
        """
        delay = 0.2
        while True:
            try:
                return self.hold(call, stoppable)
            except StorageUnavailable as error:
                logger.warning("%s: %s; again in %.1f s", self.claim.id, error, delay)
            until = time.monotonic() + delay
            while time.monotonic() < until:
                self._turn(stoppable)
                time.sleep(0.1)
            delay = min(5.0, delay * 2)

    def hold(self, call: Callable[[], R], stoppable: bool) -> R:
        """Runs the call in a thread that may be left behind, and renews meanwhile."""
        future: Future[R] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, name="storage", daemon=True).start()
        while not wait([future], TICK_S).done:
            self._turn(stoppable)
        return future.result()

    def _turn(self, stoppable: bool) -> None:
        self.renew()
        if stoppable:
            self.check()
        elif self._drain.over:
            raise Interrupted(STOPPED)

    def persist(self, call: Callable[[], R]) -> R:
        """For the last word on a job: again for as long as Redis is away and the worker may live.
        Raises: LeaseLost."""
        delay = 0.2
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                logger.warning("not written yet: %s", error)
                if self._drain.over:
                    raise LeaseLost(f"{self.claim.id} is left to its lease.") from None
                time.sleep(delay)
                delay = min(5.0, delay * 2)
