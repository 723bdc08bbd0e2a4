"""JobStore: the job's life in Redis. The only Redis code here; the steps are in lua/."""

import json
import operator
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import redis

from jobs.batches import Batches, row
from jobs.connection import away, connect
from jobs.errors import KeyReused, LeaseLost, Poisoned, QueueFull, StoreFull, WorkerLost
from jobs.events import Events
from jobs.record import Artifact, Claim, Job, JobState, job_from_hash
from jobs.request import JobRequest
from jobs.workers import Workers

_PARTS = ("begin", "api", "batches", "worker", "reaper", "end")
_LUA = "\n".join((Path(__file__).parent / "lua" / f"{part}.lua").read_text() for part in _PARTS)
_WORKER_LOST = json.dumps(WorkerLost("The worker of this attempt is gone.").answer())
_POISONED = json.dumps(Poisoned("Three workers were lost while running this job.").answer())


def _json(value: dict[str, Any] | None) -> str:
    return json.dumps(value) if value else ""


def _spaced(names: Collection[str]) -> str:
    return f" {' '.join(names)} " if names else ""


def new_id(kind: str = "job") -> str:
    """Ids sort by time; milliseconds, then chance."""
    return f"{kind}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


class JobStore:
    """Every method raises StoreUnavailable within about 2 s when Redis is away."""

    def __init__(
        self,
        url: str,
        prefix: str,
        lease_s: float = 30,
        max_queued: int = 100_000,
        max_queued_per_tenant: int = 10_000,
    ) -> None:
        self._redis = connect(url)
        self._script = self._redis.register_script(_LUA)
        self._prefix = prefix
        self.batches = Batches(self._redis, prefix, self._create)
        self.events = Events(self._redis, prefix)
        self.workers = Workers(self._redis, prefix)
        self._lease_s = lease_s
        self._limits = max_queued, max_queued_per_tenant

    def _step(self, name: str, *args: object) -> Any:
        return self._script(keys=[self._prefix], args=[name, *map(str, args)])

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    @away
    def submit(
        self,
        request: JobRequest,
        *,
        tenant: str = "default",
        queue: str = "gpu",
        warnings: list[str] | None = None,
        key: str = "",
        body_hash: str = "",
        retry_of: str = "",
    ) -> tuple[str, bool]:
        """Answers the job's id and whether it is new. key: the caller's idempotency key. retry_of:
        the job that this one does again, which is no longer listed as dead.

        The record is on disk when this returns, where Redis keeps an append-only file.
        Raises: KeyReused, when `key` came before with another body; QueueFull.
        """
        new = row(new_id(), request, queue, tenant, warnings)
        return self._create("submit", [*new, key, body_hash, retry_of])

    def _create(self, step: str, args: list[Any], more: Sequence[Any] = ()) -> tuple[str, bool]:
        args = [step, *args, *self._limits, *more]
        with self._redis.pipeline(transaction=False) as pipe:
            self._script(keys=[self._prefix], client=pipe, args=args)
            pipe.execute_command("WAITAOF", 1, 0, 500)
            answer, flushed = pipe.execute(raise_on_error=False)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(flushed, (redis.ConnectionError, redis.TimeoutError)):
            raise flushed
        created, id = answer
        if created == -2:
            raise QueueFull(f"{id} jobs are waiting already.")
        if created == -3:
            raise StoreFull("Redis has hardly any memory left.")
        if created < 0:
            raise KeyReused("This Idempotency-Key came before with another request.")
        return id, bool(created)

    @away
    def hinted(self, id: str) -> None:
        """The first hint is on its way: the reaper sends the next one in a minute, if need be."""
        self._step("hinted", id)

    @away
    def get(self, id: str, tenant: str = "default") -> Job | None:
        fields = self._redis.hgetall(self._key(f"job:{id}"))
        if not fields or fields["tenant"] != tenant or "deleted" in fields:
            return None
        return job_from_hash(fields)

    @away
    def seq(self, id: str) -> int:
        """Grows with every change of the job; 0 when there is none."""
        return int(self._redis.hget(self._key(f"job:{id}"), "seq") or 0)

    @away
    def position(self, job: Job) -> int | None:
        """How many jobs are before this one in its queue."""
        rank: int | None = self._redis.zrank(self._key(f"queued:{job.queue}"), job.id)
        return rank

    @away
    def list_jobs(
        self,
        tenant: str = "default",
        state: JobState | None = None,
        batch: str = "",
        limit: int = 20,
        after: str = "",
        newest_first: bool = True,
    ) -> tuple[list[Job], str | None]:
        """A page of jobs and the cursor of the next one. after: the cursor of the page before.
        batch, or state: only those."""
        index = self._key(f"jobs:{tenant}:{state}" if state else f"jobs:{tenant}")
        if batch:
            index = self._key(f"batch:{batch}:jobs")
        score, _, last = after.partition("/")
        low, high = ("-inf", score or "+inf") if newest_first else (score or "-inf", "+inf")
        start, end = (high, low) if newest_first else (low, high)
        window = {"desc": newest_first, "byscore": True, "withscores": True}
        spare = 20  # rows that share the cursor's time, which are skipped below
        rows: list[tuple[str, float]] = self._redis.zrange(
            index, start, end, **window, offset=0, num=limit + spare
        )
        if last:
            mark = (float(score), last)
            beyond = operator.lt if newest_first else operator.gt
            rows = [(id, at) for id, at in rows if beyond((at, id), mark)]
        page = rows[:limit]
        with self._redis.pipeline(transaction=False) as pipe:
            for id, _at in page:
                pipe.hgetall(self._key(f"job:{id}"))
            found = [f for f in pipe.execute() if f and "deleted" not in f]
        jobs = [job_from_hash(f) for f in found if f["tenant"] == tenant]
        more = len(rows) > limit
        return jobs, f"{page[-1][1]!r}/{page[-1][0]}" if more else None

    @away
    def dead(self, tenant: str = "default", limit: int = 100) -> list[Job]:
        """The jobs that faults ended and nobody has retried, the latest first."""
        ids = self._redis.zrange(self._key("dead"), 0, -1, desc=True)
        jobs = (self.get(id, tenant) for id in ids)
        return list(islice((job for job in jobs if job is not None), limit))

    @away
    def cancel(self, id: str, tenant: str = "default") -> bool:
        """Queued: canceled at once. Running: the wish is set. Final: nothing. False: unknown."""
        return self._step("cancel", id, tenant) is not None

    @away
    def delete(self, id: str, tenant: str = "default") -> bool:
        """Cancels, hides the job at once, and has the reaper remove its artifacts and record."""
        return self._step("delete", id, tenant) is not None

    @away
    def purged(self, id: str) -> None:
        """The artifacts of a deleted job are gone: so goes its record."""
        self._step("purged", id)

    @away
    def claim(
        self,
        queue: str,
        worker: str,
        ranks: int,
        loaded: Collection[str] = (),
        loaded_elsewhere: Collection[str] = (),
        known: Collection[str] = (),
    ) -> Claim | None:
        """The next job that `ranks` ranks can run, now ours for a lease; None: nothing to do.

        loaded: models that this worker has in memory; loaded_elsewhere: those of workers that are
        idle. Their jobs come first here, or are left to them, for some seconds. known: the models
        that this worker can run; all, where none is named.
        """
        models = map(_spaced, (loaded, loaded_elsewhere, known))
        nonce = secrets.token_hex(4)
        answer = self._step("claim", queue, worker, nonce, self._lease_s, ranks, *models)
        if answer is None:
            return None
        id, token, attempt, request, deadline_s, errors = answer
        left = float(deadline_s) if deadline_s else None
        return Claim(id, token, attempt, request, left, json.loads(errors))

    @away
    def waiting(self, queue: str, ranks: int, known: Collection[str] = ()) -> int:
        """How many jobs `ranks` ranks could claim now; `ranks` stands for more."""
        return int(self._step("waiting", queue, ranks, ranks, _spaced(known)))

    @away
    def renew(
        self,
        claim: Claim,
        plan: dict[str, Any] | None = None,
        progress: dict[str, Any] | None = None,
    ) -> bool:
        """Extends the lease; writes plan and progress where given. True: somebody wishes to cancel.

        Raises: LeaseLost, when another attempt owns the job or it is final.
        """
        news = (_json(plan), _json(progress))
        answer = self._step("renew", claim.id, claim.token, self._lease_s, *news)
        if answer == "lost":
            raise LeaseLost(f"{claim.id} is not ours any more.")
        return bool(answer == "cancel")

    @away
    def wished(self, claim: Claim, timeout_s: float = 1) -> bool:
        """Blocks until somebody wishes to cancel the job, or for timeout_s."""
        return self._redis.blpop([self._key(f"wish:{claim.id}")], timeout_s) is not None

    @away
    def finish(
        self,
        claim: Claim,
        state: JobState,
        artifacts: list[Artifact] | None = None,
        metrics: dict[str, Any] | None = None,
        error: dict[str, Any] | None = None,
        dead: bool = False,
    ) -> None:
        """Ends the job. dead: list it among those that faults ended. Raises: LeaseLost."""
        done = self._step(
            "finish",
            claim.id,
            claim.token,
            state.value,
            json.dumps([asdict(a) for a in artifacts or []]),
            json.dumps(metrics or {}),
            _json(error),
            int(dead),
        )
        if not done:
            raise LeaseLost(f"{claim.id} is not ours any more.")

    @away
    def fail(
        self, claim: Claim, error: dict[str, Any], delay_s: float, counted: bool = True
    ) -> JobState:
        """Ends this attempt; the job waits for the next. Answers its state. Raises: LeaseLost.

        It is canceled instead where that was wished, failed where no time is left.
        """
        state = self._step("fail", claim.id, claim.token, json.dumps(error), delay_s, int(counted))
        if state == "fenced":
            raise LeaseLost(f"{claim.id} is not ours any more.")
        return JobState(state)

    @away
    def reap(self) -> tuple[list[str], list[str]]:
        """Puts back what lost workers held, expires what waited too long.

        Answers the ids whose hint is due and those whose artifacts are to be removed.
        """
        due, purge = self._step("reap", self._lease_s, _WORKER_LOST, _POISONED)
        return due, purge

    @away
    def ping(self) -> None:
        self._redis.ping()
