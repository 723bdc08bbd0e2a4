"""What an attempt says to its job's caller: kept here until Redis takes it."""

import contextlib
import time

from jobs.errors import StoreUnavailable
from jobs.logs import KEPT, Line
from jobs.record import Claim
from jobs.store import JobStore
from worker.protocol import Progress


class JobLog:
    def __init__(self, store: JobStore, claim: Claim) -> None:
        self._store, self._claim = store, claim
        self._lines: list[Line] = []
        self._told: set[tuple[int, str]] = set()

    def say(self, message: str, level: str = "info", rank: int | None = None) -> None:
        attempt = self._claim.attempt
        line = Line(at=time.time(), attempt=attempt, rank=rank, level=level, message=message)
        self._lines = [*self._lines[1 - KEPT :], line]

    def stage(self, event: Progress) -> None:
        """Says once where an item is, whichever rank tells it first."""
        place = event.index, event.stage
        if place not in self._told:
            self._told.add(place)
            self.say(f"item {event.index}: {event.stage}")

    def flush(self) -> None:
        """It is only news: where Redis is away it waits for the next time."""
        with contextlib.suppress(StoreUnavailable):
            if self._lines:
                self._store.logs.add(self._claim.id, self._lines)
            self._lines = []
