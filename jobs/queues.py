"""What waits and what runs, and whether anything is claimed at all."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

from jobs.connection import away
from jobs.record import PRIORITIES, Job


@dataclass(frozen=True)
class Queue:
    """waiting: jobs that are queued; running: claimed ones of all queues. oldest_s: seconds that
    the one at the head of its priority has waited. typical_s: that the last jobs ran, median."""

    name: str
    waiting: int
    running: int
    oldest_s: float | None
    typical_s: float | None
    paused: bool


@dataclass(frozen=True)
class Place:
    """position: how many jobs of its tenant are before a job; None: it does not wait any more.
    eta_s: seconds until it may begin, as far as the last jobs and those that run tell."""

    position: int | None
    eta_s: float | None
    paused: bool


class Queues:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    @away
    def about(self, queue: str) -> Queue:
        jobs = f"{self._prefix}:queued:{queue}"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(jobs)
            pipe.zcard(f"{self._prefix}:running")
            pipe.exists(f"{self._prefix}:paused:{queue}")
            for priority in range(3):
                low = priority * 1e11
                window = {"byscore": True, "offset": 0, "num": 1, "withscores": True}
                pipe.zrange(jobs, low, low + 9e10, **window)
            pipe.lrange(f"{self._prefix}:ran:{queue}", 0, -1)
            pipe.time()
            waiting, running, paused, *heads, ran, now = pipe.execute()
        since = [score % 1e11 for head in heads for _, score in head]
        oldest = max(0.0, now[0] - min(since)) if since else None
        return Queue(queue, waiting, running, oldest, _median(ran), bool(paused))

    @away
    def typical_s(self, queue: str, model: str, work: int) -> float | None:
        """That so much work would run, by the median pace of the model's last jobs."""
        pace = _median(self._redis.lrange(f"{self._prefix}:pace:{queue}:{model}", 0, -1))
        return None if pace is None else round(pace * work, 3)

    @away
    def place(
        self, queue: str, tenant: str, priority: str = "normal", job: Job | None = None
    ) -> Place:
        """Of this job; None: of one that came now."""
        jobs = f"{self._prefix}:queued:{queue}"
        mine, first = f"{jobs}:{tenant}", f"({PRIORITIES[priority] * 1e11:f}"
        below = f"({(PRIORITIES[priority] + 1) * 1e11:f}"
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrank(mine, job.id) if job else pipe.zcount(mine, "-inf", below)
            pipe.zcount(mine, "-inf", first)
            pipe.zcount(jobs, "-inf", first)
            pipe.zcount(jobs, "-inf", below)
            pipe.zrange(f"{self._prefix}:turns:{queue}", 0, -1)
            pipe.zcard(f"{self._prefix}:running")
            pipe.exists(f"{self._prefix}:paused:{queue}")
            pipe.lrange(f"{self._prefix}:ran:{queue}", 0, -1)
            pipe.time()
            position, own_first, all_first, waiting, *about = pipe.execute()
        tenants, running, paused, ran, now = about
        typical_s = _median(ran)
        if position is None or paused or not running or typical_s is None:
            return Place(position, None, bool(paused))
        with self._redis.pipeline(transaction=False) as pipe:
            for each in {*tenants, tenant}:
                pipe.exists(f"{jobs}:{each}")
            in_turn = sum(pipe.execute())  # tenants who wait take turns
        others = waiting - all_first - (1 if job else 0)  # of its priority
        before = all_first + min((position - own_first) * in_turn, others)
        eta_s = (before + 1) * typical_s / running
        if job:  # which may have been told to wait
            eta_s = max(eta_s, job.ready_at - now[0] - now[1] / 1e6)
        return Place(position, round(eta_s, 1), False)

    @away
    def pause(self, queue: str) -> None:
        """Nothing more is claimed; what runs goes on, what comes waits."""
        self._redis.set(f"{self._prefix}:paused:{queue}", time.time())

    @away
    def resume(self, queue: str) -> None:
        self._redis.delete(f"{self._prefix}:paused:{queue}")


def _median(numbers: list[str]) -> float | None:
    return statistics.median(map(float, numbers)) if numbers else None
