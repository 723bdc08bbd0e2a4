"""The group and the reaper, or the courier of webhooks, live and die with the Celery worker."""

import logging
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

from celery import bootsteps
from celery.platforms import EX_OK
from celery.worker import state

from jobs.artifacts import ArtifactStorage
from jobs.catalog import load_catalog
from jobs.errors import FleetError, SettingsError, StoreUnavailable
from jobs.queue import GPU_QUEUE, WEBHOOKS_QUEUE
from jobs.settings import Settings
from jobs.store import JobStore
from worker.fleet import Fleet
from worker.group import Group
from worker.lanes import Lanes
from worker.lease import Drain
from worker.reaper import Reaper
from worker.recycle import Recycling
from worker.warm import warm
from worker.webhooks import Courier

logger = logging.getLogger(__name__)

CPU_RANKS = 2
COURIERS = 16  # threads that deliver webhooks, besides the courier's own: they only wait


class GroupStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """On the worker, before its pool: ready before a message comes, stopped after the last job.

    Not on the consumer, whose steps start anew at every reconnect.
    """

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        queues = set(worker.app.amqp.queues.consume_from)
        if {GPU_QUEUE, WEBHOOKS_QUEUE} <= queues:  # deliveries would take the lanes' threads
            raise SystemExit("A worker runs jobs or delivers webhooks: give one of the two queues.")
        self.enabled = WEBHOOKS_QUEUE not in queues
        if not self.enabled:
            return
        if worker.concurrency != 1 or "thread" not in worker.pool_cls.__module__:
            raise SystemExit("The group has as many lanes as ranks: give no --pool, --concurrency.")
        try:
            self._ranks = count_ranks(worker.app.settings)
        except SettingsError as error:
            raise SystemExit(str(error)) from None
        worker.concurrency = self._ranks + 1  # as many lanes, and a job that only uploads
        # Each of the two talks to every other worker, at the price of n² messages.
        worker.options.update(without_gossip=True, without_mingle=True)

    def start(self, worker: Any) -> None:
        settings: Settings = worker.app.settings
        try:
            fleet = Fleet(
                worker.hostname,
                settings,
                load_catalog(settings.models),
                JobStore(settings.redis_url, settings.key_prefix, settings.lease_s),
                ArtifactStorage(settings),
                Group(self._ranks, settings),
                Drain(),
                Lanes(self._ranks),
            )
            started = threading.Event()
            leave_on_signal(fleet.drain, settings.drain_s, started)
            settings.spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            worker.app.fleet = fleet
            if unknown := set(settings.preload) - set(fleet.catalog):
                raise SettingsError(f"FLEET_PRELOAD: there is no model {min(unknown)!r}.")
            fleet.group.start()
            warm(fleet)
            worker.app.recycling = Recycling(
                settings, fleet.group, fleet.lanes, lambda: warm(fleet)
            )
        except FleetError as error:
            raise SystemExit(str(error)) from None
        except OSError as error:
            raise SystemExit(f"FLEET_DATA_DIR can't be used: {error}.") from None
        self._reaper = Reaper(worker.app, fleet, lambda: leave_queue(worker))
        try:
            fleet.announce()
        except StoreUnavailable as error:
            logger.warning("%s", error)
        if fleet.refusing:
            logger.warning("it takes no jobs: %s", fleet.refusing)
        self._reaper.start()
        started.set()

    def stop(self, worker: Any) -> None:
        self._reaper.stop()
        worker.app.fleet.group.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        """Shown by `celery inspect stats` and in Flower."""
        if not self.enabled:
            return {}
        about: dict[str, Any] = worker.app.fleet.announcement()
        return about


class WebhooksStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """With `-Q webhooks`, on any machine: no group, no jobs."""

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = WEBHOOKS_QUEUE in worker.app.amqp.queues.consume_from
        if not self.enabled:
            return
        if worker.concurrency != 1 or "thread" not in worker.pool_cls.__module__:
            raise SystemExit(f"It delivers by {COURIERS} threads: give no --pool, --concurrency.")
        worker.concurrency = COURIERS
        worker.options.update(without_gossip=True, without_mingle=True)

    def start(self, worker: Any) -> None:
        settings: Settings = worker.app.settings
        store = JobStore(settings.redis_url, settings.key_prefix, settings.lease_s)
        drain, started = Drain(), threading.Event()
        leave_on_signal(drain, 0, started)
        self._courier = Courier(worker.app, settings, store, drain, COURIERS)
        worker.app.courier = self._courier
        self._courier.start()
        started.set()

    def stop(self, worker: Any) -> None:
        self._courier.stop()

    terminate = stop


def leave_on_signal(drain: Drain, drain_s: float, started: threading.Event) -> None:
    """SIGTERM and Ctrl-C: running jobs have drain_s seconds. SIGQUIT and a second Ctrl-C: they go
    back to the queue at once. Before `started` there is nothing to wait for.

    In place of celery's handlers, which cancel requests at SIGQUIT. A pool of threads can't: that
    ends in a traceback, with the jobs running on and nobody to listen to a cancel.
    """
    came: set[int] = set()

    def leave(number: int, _frame: FrameType | None) -> None:
        if not started.is_set():
            raise SystemExit(EX_OK)
        hasty = number == signal.SIGQUIT or (number == signal.SIGINT and number in came)
        came.add(number)
        logger.warning("%s: the worker stops", signal.Signals(number).name)
        drain.begin("the worker stops", 0 if hasty else drain_s)
        state.should_stop = EX_OK

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, leave)


def leave_queue(worker: Any) -> None:
    """Takes no more hints; the rest of the consumer, heartbeats too, goes on."""
    consumer = worker.consumer
    taker = consumer and consumer.task_consumer  # none while it connects
    if taker and taker.consuming_from(GPU_QUEUE):
        consumer.call_soon(consumer.cancel_task_queue, GPU_QUEUE)


def count_ranks(settings: Settings) -> int:
    gpus = count_gpus(settings)
    if gpus and (settings.ranks or 0) > gpus:
        raise SettingsError(f"FLEET_RANKS={settings.ranks}, but this node shows {gpus} GPUs.")
    return settings.ranks or gpus or CPU_RANKS


def count_gpus(settings: Settings) -> int:
    """GPUs of this node, asked of the driver: this process does not import torch."""
    if settings.visible_gpus is not None:
        return settings.visible_gpus
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=60)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
