"""Who follows which job: one reader of the stream of all changes, for all streams of a process."""

import logging
import threading
import time
from collections import defaultdict

from api.places import Places
from jobs.errors import StoreUnavailable
from jobs.events import Events

logger = logging.getLogger(__name__)

AWAY_S = 1


class Follower:
    def __init__(self, events: Events, places: Places) -> None:
        self._events, self._places = events, places
        self._lock = threading.Lock()
        self._watchers: dict[str, set[threading.Event]] = defaultdict(set)
        self._thread: threading.Thread | None = None

    def watch(self, job: str, tenant: str = "default") -> threading.Event:
        """Set whenever the job may have changed, until it is given back. Raises: TooManyStreams."""
        changed = threading.Event()
        self._places.take(tenant)
        with self._lock:
            self._watchers[job].add(changed)
            if self._thread is None:  # not earlier: gunicorn forks
                self._thread = threading.Thread(target=self._read, name="follower", daemon=True)
                self._thread.start()
        return changed

    def give_back(self, job: str, changed: threading.Event, tenant: str = "default") -> None:
        self._places.give_back(tenant)
        with self._lock:
            self._watchers[job].discard(changed)
            if not self._watchers[job]:
                del self._watchers[job]

    def _read(self) -> None:
        place = None
        while True:
            try:
                place = place or self._events.latest()
                place, jobs = self._events.after(place)
                self._wake(jobs)
            except StoreUnavailable as error:
                logger.warning("%s", error)
                place = None  # the stream may begin anew
                time.sleep(AWAY_S)
                self._wake(set(self._watchers))

    def _wake(self, jobs: set[str]) -> None:
        with self._lock:
            for job in jobs & set(self._watchers):
                for changed in self._watchers[job]:
                    changed.set()
