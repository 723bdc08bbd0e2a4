"""Many jobs at once: all are recorded, or none."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.connection import away
from jobs.errors import (
    ConcurrencyLimited,
    FleetError,
    InvalidRequest,
    KeyReused,
    Problem,
    QueueFull,
    QuotaExceeded,
    StoreFull,
)
from jobs.record import PRIORITIES, JobState
from jobs.request import JobRequest, apart, work


@dataclass(frozen=True)
class Asker:
    """Who asks for new jobs. key: the id of his API key, to whose account they go. active_jobs: of
    his tenant, not over; gpu_seconds: of his tenant, a day; None: no limit."""

    tenant: str = "default"
    key: str = "none"
    active_jobs: int | None = None
    gpu_seconds: float | None = None


NOBODY = Asker()
KEY_REUSED = "This Idempotency-Key came before with another request."


def row(
    id: str, request: JobRequest, queue: str, asker: Asker, warnings: list[str] | None
) -> list[Any]:
    """What the scripts are told of a new job."""
    deadline_s = "" if request.deadline_s is None else request.deadline_s
    about = [request.model, request.task, request.width, deadline_s, json.dumps(warnings or [])]
    asked, pictures = apart(request.model_dump(mode="json"))
    webhook = request.webhook.model_dump_json() if request.webhook else ""
    standing = [queue, PRIORITIES[request.priority], asker.tenant]
    kept = json.dumps(pictures) if pictures else ""
    return [id, json.dumps(asked), *standing, *about, asker.key, webhook, kept, work(request)]


def refusal(code: int, about: Any, more: list[Any], asker: Asker) -> FleetError:
    """What a script says where it records nothing new: see lua/api.lua."""
    if code == -2:
        return QueueFull(f"{about} jobs are waiting already.", limit=int(more[0]))
    if code == -3:
        return StoreFull("Redis has hardly any memory left.")
    if code == -4:
        detail = f"{about} jobs of {asker.active_jobs} are not over yet."
        return ConcurrencyLimited(detail, limit=asker.active_jobs)
    if code == -6:
        detail = f"{about} jobs are more than may be here at once, {more[0]}."
        return InvalidRequest(detail, Problem("", "batch", detail))
    if code == -5:
        detail = f"Today's {asker.gpu_seconds:g} GPU seconds are used."
        return QuotaExceeded(detail, retry_after_s=int(about), limit=asker.gpu_seconds)
    return KeyReused(KEY_REUSED)


def made_before(
    redis: Any, place: str, body_hash: str, get: Callable[[str, str], object], tenant: str
) -> str | None:
    """What the key whose record is at `place` has made, where get(id, tenant) still finds it.
    Raises: KeyReused."""
    id, body = redis.hmget(place, "id", "body")
    if not (id and get(id, tenant)):
        return None
    if body != body_hash:
        raise KeyReused(KEY_REUSED)
    return str(id)


@dataclass(frozen=True)
class Batch:
    """counts: of its jobs that are still there, by state."""

    id: str
    created_at: float
    total: int
    jobs: list[str]
    counts: dict[JobState, int]

    @property
    def final(self) -> bool:
        return all(state.final for state in self.counts)


class Batches:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str, record: Callable[..., tuple[str, bool]]) -> None:
        """record: runs a step that records something new; answers its id, and whether it is new."""
        self._redis, self._prefix, self._record = redis, prefix, record

    @away
    def submit(
        self,
        id: str,
        jobs: Sequence[tuple[str, JobRequest, list[str]]],
        asker: Asker = NOBODY,
        queue: str = "gpu",
        key: str = "",
        body_hash: str = "",
    ) -> tuple[str, bool]:
        """jobs: id, request and warnings of each. Answers and raises as JobStore.submit()."""
        rows = [row(job, request, queue, asker, warnings) for job, request, warnings in jobs]
        args = [id, asker.tenant, queue, key, body_hash]
        return self._record("submit_all", asker, args, [json.dumps(rows)])

    @away
    def came_before(self, tenant: str, key: str, body_hash: str) -> str | None:
        """As JobStore.came_before()."""
        place = f"{self._prefix}:idem-batch:{tenant}:{key}"
        return made_before(self._redis, place, body_hash, self.get, tenant) if key else None

    @away
    def get(self, id: str, tenant: str = "default") -> Batch | None:
        about = self._redis.hgetall(f"{self._prefix}:batch:{id}")
        if not about or about["tenant"] != tenant:
            return None
        ids = self._redis.zrange(f"{self._prefix}:batch:{id}:jobs", 0, -1)
        with self._redis.pipeline(transaction=False) as pipe:
            for job in ids:
                pipe.hmget(f"{self._prefix}:job:{job}", "state", "deleted")
            found = zip(ids, pipe.execute(), strict=True)
        states = {job: JobState(state) for job, (state, gone) in found if state and not gone}
        counts = dict(Counter(states.values()))
        return Batch(id, float(about["created_at"]), int(about["total"]), list(states), counts)
