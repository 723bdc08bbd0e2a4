"""The reaper: puts back what lost workers held, sends due hints, removes what was deleted.

One in every worker, no leader: each step of it may run twice, or at the same time as another's.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable

from celery import Celery

from jobs.errors import StorageUnavailable, StoreUnavailable
from jobs.queue import GPU_QUEUE, hint
from worker.fleet import Fleet
from worker.publish import sweep_spool

logger = logging.getLogger(__name__)

SPOOL_EVERY_S = 3600
DEAF = 70  # the exit code of a worker that hears no hints any more


class Reaper(threading.Thread):
    """leave_queue: has the worker take no more hints; called again for as long as it drains."""

    def __init__(self, app: Celery, fleet: Fleet, leave_queue: Callable[[], None]) -> None:
        super().__init__(name="reaper", daemon=True)
        self._app, self._fleet, self._leave_queue = app, fleet, leave_queue
        self._store, self._every_s = fleet.store, fleet.settings.reap_s
        self._idle_since: float | None = None  # while jobs wait
        self._removal: threading.Thread | None = None
        self._spool_at = 0.0
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(self._every_s * random.uniform(0.7, 1.3)):
            try:
                self._tick()
            except StoreUnavailable as error:
                self._idle_since = None  # nobody hears anything now
                logger.warning("%s", error)
            except Exception:
                logger.exception("the reaper goes on")

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        try:
            self._store.workers.leave(self._fleet.name)
        except StoreUnavailable:
            logger.info("Redis is away; it forgets this worker by itself")

    def _tick(self) -> None:
        due, purge, sweep = self._store.upkeep.reap()
        uploads = self._store.uploads.expired()
        spool = time.monotonic() > self._spool_at
        work = bool(purge or uploads or sweep or spool)
        # First: a Redis that is full takes what follows only once there is less in it.
        if work and not (self._removal and self._removal.is_alive()):
            # Apart: a storage that hangs must not keep leases from being looked after.
            self._removal = threading.Thread(
                target=self._remove, args=(purge, uploads, sweep), daemon=True
            )
            self._removal.start()
        self._drain()
        self._fleet.announce()
        for id in due:
            hint(self._app, id)
        self._wake()

    def _drain(self) -> None:
        fleet, drain = self._fleet, self._fleet.drain
        if not drain.begun and self._store.workers.drain_wished(fleet.name, fleet.start):
            drain.begin("somebody asked for it")
            logger.warning("drained: %s", drain.reason)
        if drain.begun:
            self._leave_queue()

    def _wake(self) -> None:
        """Idle while jobs wait: their hints are lost, or others hear them who can't run these, and
        an hour is long to wait. Where it does not hear its own, which nobody else does, the worker
        has gone deaf: to start anew is what helps."""
        fleet, now = self._fleet, time.monotonic()
        waiting = fleet.waiting(GPU_QUEUE) if fleet.idle else 0
        if not waiting:
            self._idle_since = None
            return
        if self._idle_since is None:
            self._idle_since = now
            return
        for _ in range(waiting):  # counted up to the ranks there are
            hint(self._app, "", worker=fleet.name)
        silent = now - max(self._idle_since, fleet.heard)
        if fleet.lanes.unused and silent > fleet.settings.deaf_s:
            logger.critical("no hint for %.0f s while jobs wait: exit", silent)
            logging.shutdown()
            os._exit(DEAF)  # its group dies with it; no job runs

    def _remove(self, ids: list[str], uploads: list[str], sweep: list[str]) -> None:
        if time.monotonic() > self._spool_at:
            self._spool_at = time.monotonic() + SPOOL_EVERY_S
            sweep_spool(self._fleet.settings.spool, self._fleet.at_work)
        try:
            for id in ids:
                self._fleet.storage.remove(id)
                self._store.upkeep.purged(id)
            for id in sweep:
                self._fleet.storage.sweep(id)
                self._store.upkeep.swept(id)
            for key in uploads:
                self._fleet.storage.delete(key)
                self._store.uploads.removed(key)
        except (StorageUnavailable, StoreUnavailable) as error:
            logger.warning("what nobody needs is not removed yet: %s", error)
