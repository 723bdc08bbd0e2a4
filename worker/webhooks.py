"""Webhooks: what a job's end says to its caller's server, signed as Standard Webhooks has it
(https://www.standardwebhooks.com), tried again for three days."""

import base64
import hashlib
import hmac
import json
import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict

from celery import Celery

from jobs.errors import StoreUnavailable, UrlRefused, UrlUnreachable
from jobs.guard import check_url, client
from jobs.outbox import Errand
from jobs.queue import hint_delivery
from jobs.record import Job, time_answer
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.version import VERSION
from jobs.webhooks import secret_of
from worker.lease import Drain

logger = logging.getLogger(__name__)

MINUTE, HOUR = 60.0, 3600.0
# Seconds before each further attempt, of ten in all.
DELAYS = (5.0, 5 * MINUTE, *(hours * HOUR for hours in (0.5, 2, 5, 10, 14, 20, 24)))
JITTER = 0.1  # so that what failed together is not tried again together
TIMEOUT_S = 15  # of an attempt, in all
MARGIN_S = 5  # beyond it, before a delivery whose worker is gone is made again
AWAY_S = 1  # between tries while Redis is away
GONE = 410


def delay_s(attempt: int, chance: float, delays: Sequence[float] = DELAYS) -> float | None:
    """Seconds before the next attempt, None after the last. attempt: the one that failed, from 1.
    chance: from 0 to 1."""
    if attempt > len(delays):
        return None
    return delays[attempt - 1] * (1 - JITTER + 2 * JITTER * chance)


def signature(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    signed = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


def message(errand: Errand, job: Job) -> bytes:
    """The same at every attempt: a job that is over does not change. Links it has none, they would
    have run out; the API makes them."""
    hidden = ("key", "thumbnail")
    outputs = [
        {name: value for name, value in asdict(artifact).items() if name not in hidden}
        for artifact in job.artifacts
    ]
    data = {
        "id": job.id,
        "object": "job",
        "status": errand.event,
        "seq": job.seq,
        "model": job.model,
        "task": job.task,
        "metadata": job.request.get("metadata", {}),
        "retry_of": job.retry_of,
        "batch_id": job.batch,
        "created_at": time_answer(job.created_at),
        "started_at": time_answer(job.started_at),
        "finished_at": time_answer(job.finished_at),
        "outputs": outputs,
        "error": job.error,
    }
    at = time_answer(errand.created_at)
    return json.dumps({"type": f"job.{errand.event}", "timestamp": at, "data": data}).encode()


class Courier(threading.Thread):
    """Delivers what is due: by its own loop, and by whatever threads call deliver_all().

    threads: how many of those there are; the loop sends them hints of what it finds, which covers
    second attempts and lost hints. drain: nothing more is begun.
    """

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        store: JobStore,
        drain: Drain,
        threads: int,
        timeout_s: float = TIMEOUT_S,
        delays: Sequence[float] = DELAYS,
    ) -> None:
        super().__init__(name="courier", daemon=True)
        self._app, self._settings, self._store, self._drain = app, settings, store, drain
        self._threads, self._timeout_s, self._delays = threads, timeout_s, delays
        self._busy, self._lock = 0, threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> None:
        if self._settings.webhook_secret is None:
            logger.error("FLEET_WEBHOOK_SECRET is not set: no webhook is delivered")
            return
        while not self._stopped.wait(self._settings.reap_s * random.uniform(0.7, 1.3)):
            try:
                self._tick()
            except StoreUnavailable as error:
                logger.warning("%s", error)
            except Exception:
                logger.exception("the courier goes on")

    def stop(self) -> None:
        self._drain.begin("the worker stops")
        self._stopped.set()
        self.join()

    def deliver_all(self) -> int:
        """Until nothing is due; answers how many attempts it made. Raises: StoreUnavailable."""
        with self._lock:
            self._busy += 1
        try:
            made = 0
            while self.deliver_next():
                made += 1
            return made
        finally:
            with self._lock:
                self._busy -= 1

    def deliver_next(self) -> bool:
        """One attempt at what is due; False: there is nothing, or no secret to sign it with.
        Raises: StoreUnavailable."""
        if self._drain.begun or self._settings.webhook_secret is None:
            return False
        errand = self._store.outbox.claim(self._timeout_s + MARGIN_S)
        if errand is None:
            return False
        try:
            secret = secret_of(errand.tenant, self._settings.webhook_secret)
            status, error = self._attempt(errand, secret)
        except Exception:
            logger.exception("%s", errand.id)
            status, error = None, "The fleet's own fault; its log has more."
        self._settle(errand, status, error)
        return True

    def _tick(self) -> None:
        while True:
            due = self._store.outbox.due()
            for _ in range(min(due - 1, self._threads - self._busy)):
                hint_delivery(self._app, self._store)
            if not due or not self.deliver_next():
                return

    def _attempt(self, errand: Errand, secret: bytes) -> tuple[int | None, str | None]:
        """The status of the answer if there was one, and what was wrong, if anything."""
        job = self._store.get(errand.job, errand.tenant)
        if job is None:
            return None, "The job is deleted."
        body, now = message(errand, job), int(errand.began_at)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"diffusion-fleet/{VERSION}",
            "webhook-id": errand.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(secret, errand.id, now, body),
        }
        try:
            url = check_url(errand.url, self._settings)
            with (
                client(self._settings, self._timeout_s) as http,
                http.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status = int(answer.status_code)
        except (UrlRefused, UrlUnreachable) as error:
            return None, str(error)
        good = 200 <= status < 300
        return status, None if good else f"The URL answers with status {status}."

    def _settle(self, errand: Errand, status: int | None, error: str | None) -> None:
        delay = None if status == GONE else delay_s(errand.attempt, random.random(), self._delays)
        logger.info("%s: attempt %d: %s", errand.id, errand.attempt, error or "delivered")
        while True:
            try:
                if error is None:
                    self._store.outbox.settle(errand, "delivered", status)
                elif delay is None:
                    self._store.outbox.settle(errand, "failed", status, error)
                else:
                    self._store.outbox.settle(errand, "pending", status, error, delay)
                return
            except StoreUnavailable as away:
                if self._drain.begun:  # it is made again, after its lease
                    raise
                logger.warning("%s", away)
                time.sleep(AWAY_S)
