"""JobStore: the job's life in Redis. The only Redis code here; the steps are in lua/."""

import json
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import redis

from jobs.batches import NOBODY, Asker, Batches, made_before, refusal, row
from jobs.connection import away, connect
from jobs.errors import DeadlineExceeded, LeaseLost, OutputExpired
from jobs.events import Events
from jobs.lists import Lists
from jobs.logs import Logs
from jobs.outbox import Outbox
from jobs.previews import Previews
from jobs.queues import Queues
from jobs.record import Artifact, Claim, Job, JobState, job_from_hash
from jobs.request import JobRequest, apart, whole
from jobs.tenants import Tenants
from jobs.upkeep import Upkeep
from jobs.uploads import Uploads
from jobs.workers import Workers

_PARTS = ("begin", "outbox", "api", "batches", "worker", "reaper", "end")
# What runs ends, and what is deleted goes, also where Redis takes nothing new for want of memory.
_LUA = "#!lua flags=allow-oom\n" + "\n".join(
    (Path(__file__).parent / "lua" / f"{part}.lua").read_text() for part in _PARTS
)
_LATE = json.dumps(DeadlineExceeded("No time was left for another attempt.").answer())


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
        self.lists = Lists(self._redis, prefix)
        self.logs = Logs(self._redis, prefix)
        self.outbox = Outbox(self._redis, prefix, self._step)
        self.previews = Previews(self._redis, prefix)
        self.queues = Queues(self._redis, prefix)
        self.tenants = Tenants(self._redis, prefix, self._step)
        self.upkeep = Upkeep(self._step, lease_s)
        self.uploads = Uploads(self._redis, prefix)
        self.workers = Workers(self._redis, prefix)
        self._lease_s = lease_s
        self._limits = {"queued": max_queued, "queued_of_tenant": max_queued_per_tenant}

    def _step(self, name: str, *args: object) -> Any:
        return self._script(keys=[self._prefix], args=[name, *map(str, args)])

    def _key(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    @away
    def submit(
        self,
        request: JobRequest,
        *,
        asker: Asker = NOBODY,
        queue: str = "gpu",
        warnings: list[str] | None = None,
        key: str = "",
        body_hash: str = "",
        retry_of: str = "",
        id: str = "",
    ) -> tuple[str, bool]:
        """Answers the job's id and whether it is new. key: the caller's idempotency key. retry_of:
        the job that this one does again, which is no longer listed as dead. id: of new_id(), for
        who may come again with it: it is one job. The record is on disk when this returns, where
        Redis keeps an append-only file. Raises: KeyReused, when `key` came before with another
        body; QueueFull, ConcurrencyLimited, QuotaExceeded."""
        new = row(id or new_id(), request, queue, asker, warnings)
        return self._create("submit", asker, [*new, key, body_hash, retry_of])

    def _create(
        self, step: str, asker: Asker, args: list[Any], more: Sequence[Any] = ()
    ) -> tuple[str, bool]:
        limits = {"active": asker.active_jobs, "gpu_s": asker.gpu_seconds}
        known = {name: limit for name, limit in limits.items() if limit is not None}
        args = [step, *args, json.dumps({**self._limits, **known}), *more]
        answer, flushed = self._flushed(args)
        if isinstance(answer, redis.exceptions.NoScriptError):  # Redis was started anew
            self._redis.script_load(_LUA)
            answer, flushed = self._flushed(args)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(flushed, (redis.ConnectionError, redis.TimeoutError)):
            raise flushed
        created, id, *rest = answer
        if created < 0:
            raise refusal(created, id, rest, asker)
        return id, bool(created)

    def _flushed(self, args: list[Any]) -> tuple[Any, Any]:
        """The script's answer and WAITAOF's, or their exceptions, in one round trip: redis-py's own
        script in a pipeline first asks whether Redis knows it."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.evalsha(self._script.sha, 1, self._prefix, *args)
            pipe.execute_command("WAITAOF", 1, 0, 500)
            answer, flushed = pipe.execute(raise_on_error=False)
        return answer, flushed

    @away
    def came_before(self, tenant: str, key: str, body_hash: str) -> str | None:
        """The job that this request has made already: nothing need be fetched for it again. No
        promise, submit() looks once more. Raises: KeyReused."""
        place = self._key(f"idem:{tenant}:{key}")
        return made_before(self._redis, place, body_hash, self.get, tenant) if key else None

    @away
    def hinted(self, id: str) -> None:
        """The first hint is on its way: the reaper sends the next one in a minute, if need be."""
        self._step("hinted", id)

    @away
    def get(self, id: str, tenant: str = "default") -> Job | None:
        fields = self._redis.hgetall(self._key(f"job:{id}"))
        if fields.get("tenant") != tenant or "deleted" in fields:
            return None
        return job_from_hash(fields)

    @away
    def request(self, job: Job) -> dict[str, Any]:
        """The whole of it: a record has only what is shown of pictures. Raises: OutputExpired,
        where these are gone."""
        text = self._redis.get(self._key(f"pictures:{job.id}"))
        if text is None and apart(job.request)[1]:
            raise OutputExpired(f"The pictures of job {job.id} are gone.")
        return whole(job.request, json.loads(text or "{}"))

    @away
    def seq(self, id: str) -> int:
        """Grows with every change of the job; 0 when there is none."""
        return int(self._redis.hget(self._key(f"job:{id}"), "seq") or 0)

    @away
    def cancel(self, id: str, tenant: str = "default") -> bool:
        """Queued: canceled at once, unless an attempt may have published. Running: the wish is set.
        Final: nothing. False: unknown."""
        return self._step("cancel", id, tenant) is not None

    @away
    def delete(self, id: str, tenant: str = "default") -> bool:
        """Cancels, hides the job at once, and has the reaper remove its artifacts and record."""
        return self._step("delete", id, tenant) is not None

    @away
    def claim(
        self,
        queue: str,
        worker: str,
        ranks: int,
        loaded: Collection[str] = (),
        loaded_elsewhere: Collection[str] = (),
        known: Collection[str] = (),
        nonce: str = "",
    ) -> Claim | None:
        """The next job that `ranks` ranks can run, now ours for a lease; None: nothing to do.

        loaded: models that this worker has in memory; loaded_elsewhere: those of workers that are
        idle. Their jobs come first here, or are left to them, for some seconds. known: the models
        that this worker can run; all, where none is named. nonce: the same one again, after no
        answer, is answered with the same job.
        """
        models = map(_spaced, (loaded, loaded_elsewhere, known))
        nonce = nonce or secrets.token_hex(4)
        answer = self._step("claim", queue, worker, nonce, self._lease_s, ranks, *models)
        if answer is None:
            return None
        id, token, attempt, request, pictures, deadline_s, errors, *marks = answer
        if pictures:
            request = json.dumps(whole(json.loads(request), json.loads(pictures)))
        left = float(deadline_s) if deadline_s else None
        return Claim(id, token, attempt, request, left, json.loads(errors), *map(bool, marks))

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
        publish: bool = False,
    ) -> bool:
        """Extends the lease; writes plan and progress where given. True: somebody wishes to cancel.

        publish: the holder will publish, unless the answer is True. From then on the job ends
        only by a worker that has asked the storage. Raises: LeaseLost, when another attempt owns
        the job or it is final.
        """
        news = (_json(plan), _json(progress), int(publish))
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

        It is canceled instead where that was wished, failed where no time is left; not so where an
        attempt may have published.
        """
        news = (json.dumps(error), delay_s, int(counted), _LATE)
        state = self._step("fail", claim.id, claim.token, *news)
        if state == "fenced":
            raise LeaseLost(f"{claim.id} is not ours any more.")
        return JobState(state)

    @away
    def ping(self) -> None:
        self._redis.ping()
