"""Many jobs at once: all are recorded, or none."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.connection import away
from jobs.record import PRIORITIES, JobState
from jobs.request import JobRequest, Parallel


def row(
    id: str, request: JobRequest, queue: str, tenant: str, warnings: list[str] | None
) -> list[Any]:
    """What the scripts are told of a new job."""
    plan = request.parallel
    width = plan.width if isinstance(plan, Parallel) else 1
    deadline_s = "" if request.deadline_s is None else request.deadline_s
    about = [request.model, request.task, width, deadline_s, json.dumps(warnings or [])]
    asked = request.model_dump_json()
    return [id, asked, queue, PRIORITIES[request.priority], tenant, *about]


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
        tenant: str = "default",
        queue: str = "gpu",
        key: str = "",
        body_hash: str = "",
    ) -> tuple[str, bool]:
        """jobs: id, request and warnings of each. Answers and raises as JobStore.submit()."""
        rows = [row(job, request, queue, tenant, warnings) for job, request, warnings in jobs]
        return self._record("submit_all", [id, tenant, queue, key, body_hash], [json.dumps(rows)])

    @away
    def get(self, id: str, tenant: str = "default") -> Batch | None:
        about = self._redis.hgetall(f"{self._prefix}:batch:{id}")
        if not about or about["tenant"] != tenant:
            return None
        ids = self._redis.zrange(f"{self._prefix}:batch:{id}:jobs", 0, -1)
        with self._redis.pipeline(transaction=False) as pipe:
            for job in ids:
                pipe.hget(f"{self._prefix}:job:{job}", "state")
            states = Counter(JobState(state) for state in pipe.execute() if state)
        return Batch(id, float(about["created_at"]), int(about["total"]), ids, dict(states))
