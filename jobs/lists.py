"""Lists of jobs: pages of a tenant's, and those that faults ended."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.connection import away
from jobs.record import Job, job_from_hash

CHUNK, MOST_READ = 100, 2000  # records at a time, and for one page


@dataclass(frozen=True)
class Wanted:
    """What a list is of. state: one of STATUSES. dead: ended by faults, and retried by nobody, in
    the order of their ends. Times: seconds since 1970, both ends included."""

    state: str | None = None
    model: str = ""
    task: str = ""
    batch: str = ""
    dead: bool = False
    since: float | None = None
    until: float | None = None

    def has(self, job: Job) -> bool:
        return (
            self.state in (None, job.status)
            and self.model in ("", job.model)
            and self.task in ("", job.task)
            and self.batch in ("", job.batch)
        )


ALL, DEAD = Wanted(), Wanted(dead=True)


class Lists:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    @away
    def page(
        self,
        tenant: str = "default",
        wanted: Wanted = ALL,
        limit: int = 20,
        after: str = "",
        newest_first: bool = True,
    ) -> tuple[list[Job], str | None]:
        """A page of jobs and the cursor of the next one, if there may be one. after: the cursor of
        the page before. Where few are wanted of many, a page may have less than `limit`."""
        index = f"{self._prefix}:jobs:{tenant}"
        if wanted.batch:
            index = f"{self._prefix}:batch:{wanted.batch}:jobs"
        elif wanted.dead:
            index = f"{self._prefix}:dead:{tenant}"
        elif wanted.state:
            index += f":{wanted.state}"
        found: list[Job] = []
        last = after
        for read, (cursor, job) in enumerate(
            self._jobs(index, wanted.since, wanted.until, after, newest_first)
        ):
            if len(found) == limit or read == MOST_READ:
                return found, last
            last = cursor
            if job and job.tenant == tenant and not job.deleted and wanted.has(job):
                found.append(job)
        return found, None

    def _jobs(
        self, index: str, since: float | None, until: float | None, after: str, newest_first: bool
    ) -> Iterator[tuple[str, Job | None]]:
        """Each with its cursor, from that of `after` on."""
        low = "-inf" if since is None else repr(since)
        high = "+inf" if until is None else repr(until)
        beyond = operator.lt if newest_first else operator.gt
        score, _, last = after.partition("/")
        while True:
            start, end = (score or high, low) if newest_first else (score or low, high)
            spare = 20  # rows that share the cursor's time, which are skipped below
            window = {"byscore": True, "withscores": True, "offset": 0, "num": CHUNK + spare}
            rows: list[tuple[str, float]] = self._redis.zrange(
                index, start, end, desc=newest_first, **window
            )
            if last:
                mark = (float(score), last)
                rows = [(id, at) for id, at in rows if beyond((at, id), mark)]
            with self._redis.pipeline(transaction=False) as pipe:
                for id, _at in rows:
                    pipe.hgetall(f"{self._prefix}:job:{id}")
                records = pipe.execute()
            for (id, at), fields in zip(rows, records, strict=True):
                score, last = repr(at), id
                yield f"{score}/{id}", job_from_hash(fields) if "id" in fields else None
            if not rows:
                return

    @away
    def videos(
        self, tenant: str, limit: int, after: str = "", newest_first: bool = True
    ) -> tuple[list[Job], bool]:
        """A page of the jobs that make videos, whatever else there is, and whether more follow.
        after: an id; that of a job that is gone is as good, as the ids themselves are the order."""
        start, end = ("+", "-") if newest_first else ("-", "+")
        ids = self._redis.zrange(
            f"{self._prefix}:videos:{tenant}",
            f"({after}" if after else start,
            end,
            bylex=True,
            desc=newest_first,
            offset=0,
            num=limit + 1,
        )
        with self._redis.pipeline(transaction=False) as pipe:
            for id in ids[:limit]:
                pipe.hgetall(f"{self._prefix}:job:{id}")
            jobs = [job_from_hash(fields) for fields in pipe.execute() if "id" in fields]
        return [job for job in jobs if not job.deleted], len(ids) > limit
