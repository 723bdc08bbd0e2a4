"""What each job's attempts had to say, for its caller: the last lines."""

import json
from typing import Any, TypedDict

from jobs.connection import away

KEPT, KEPT_S = 500, 7 * 86400
MOST_CHARACTERS = 2000


class Line(TypedDict):
    """at: seconds since 1970, by the worker's clock. rank: None, where the worker says it."""

    at: float
    attempt: int
    rank: int | None
    level: str
    message: str


class Logs:
    """Every method raises StoreUnavailable when Redis is away."""

    def __init__(self, redis: Any, prefix: str) -> None:
        self._redis, self._prefix = redis, prefix

    def _key(self, job: str) -> str:
        return f"{self._prefix}:log:{job}"

    @away
    def add(self, job: str, lines: list[Line]) -> None:
        """At most KEPT lines stay, for KEPT_S seconds after the last one came."""
        short = [{**line, "message": line["message"][:MOST_CHARACTERS]} for line in lines]
        with self._redis.pipeline() as pipe:
            pipe.rpush(self._key(job), *map(json.dumps, short))
            pipe.ltrim(self._key(job), -KEPT, -1)
            pipe.expire(self._key(job), KEPT_S)
            pipe.execute()

    @away
    def tail(self, job: str, count: int) -> list[Line]:
        """The last ones, the oldest first."""
        return [json.loads(line) for line in self._redis.lrange(self._key(job), -count, -1)]
