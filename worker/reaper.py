"""The reaper: puts back what lost workers held, sends due hints, removes what was deleted.

One in every worker, no leader: each step of it may run twice, or at the same time as another's.
"""

import logging
import random
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery

from jobs.artifacts import ArtifactStorage
from jobs.errors import StorageUnavailable, StoreUnavailable
from jobs.queue import GPU_QUEUE, hint
from jobs.store import JobStore

logger = logging.getLogger(__name__)


class Reaper(threading.Thread):
    """about: what this worker says of itself, each tick. idle: whether it could take a job."""

    def __init__(
        self,
        app: Celery,
        store: JobStore,
        storage: ArtifactStorage,
        every_s: float,
        worker: str,
        ranks: int,
        about: Callable[[], dict[str, Any]],
        idle: Callable[[], bool],
    ) -> None:
        super().__init__(name="reaper", daemon=True)
        self._app, self._store, self._storage = app, store, storage
        self._every_s, self._worker, self._about = every_s, worker, about
        self._ranks, self._idle, self._idle_before = ranks, idle, False
        self._removal: threading.Thread | None = None
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._every_s * random.uniform(0.7, 1.3)):
            try:
                self._tick()
            except StoreUnavailable as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("the reaper goes on")

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        try:
            self._store.leave(self._worker)
        except StoreUnavailable:
            logger.info("Redis is away; it forgets this worker by itself")

    def announce(self) -> None:
        self._store.announce(self._worker, self._about(), ttl_s=max(15, int(4 * self._every_s)))

    def _wake(self) -> None:
        """Idle for two ticks while jobs wait: their hints are lost, and an hour is long to wait."""
        idle = self._idle() and self._store.waiting(GPU_QUEUE, self._ranks) > 0
        if idle and self._idle_before:
            hint(self._app, "")
        self._idle_before = idle

    def _tick(self) -> None:
        self.announce()
        due, purge = self._store.reap()
        for id in due:
            hint(self._app, id)
        self._wake()
        if purge and not (self._removal and self._removal.is_alive()):
            # Apart: a storage that hangs must not keep leases from being looked after.
            self._removal = threading.Thread(target=self._remove, args=(purge,), daemon=True)
            self._removal.start()

    def _remove(self, ids: list[str]) -> None:
        for id in ids:
            try:
                self._storage.remove(id)
                self._store.purged(id)
            except (StorageUnavailable, StoreUnavailable) as error:
                logger.warning("%s: outputs not removed yet: %s", id, error)
                return
